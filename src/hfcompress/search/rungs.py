"""A rung: trained, exported where another runtime serves, measured in turns with the original, and saved."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hfcompress.distill.arguments import DistillationArguments
from hfcompress.distill.teacher_inputs import TEACHER_LOGITS
from hfcompress.errors import CompressionError
from hfcompress.models.classifier import in_float32
from hfcompress.models.exported import ExportedClassifier
from hfcompress.report.benchmark import compare
from hfcompress.report.comparison import Comparison
from hfcompress.report.intervals import paired_interval
from hfcompress.report.vocabulary import VocabularyReport
from hfcompress.search.candidates import Candidate, Search
from hfcompress.search.clock import Runtime, describe_machine, on_device
from hfcompress.search.deadline import Deadline
from hfcompress.search.ladder import FULL, Ladder, Rung, describe_test
from hfcompress.search.processes import agree, processes
from hfcompress.search.progress import Progress
from hfcompress.search.request import Request
from hfcompress.search.rows import Parts
from hfcompress.search.structure import find_structure
from hfcompress.search.training import Trained, train_rung
from hfcompress.storage.save import save_compressed

WORK = ".work"  # what is not a rung, in the folder
_MORE = 4  # times as many rounds as the search times of a model: what is published is known better
TRAINING = 0.6  # of the work of a rung


@dataclass(frozen=True)
class Job:
    """What all rungs have in common.

    Attributes:
        original: What they are measured beside, where they are measured.
        base: What the first of them is made of, where they are trained: the original, or it with a smaller vocabulary.
        teacher: What they learn from; the original if None.
        parts: The rows, with the teacher's logits.
        args: Of each training.
        tokenizers: That of the original, and that of the rungs.
        vocabulary: What was removed of the vocabulary, if anything was.
        search: How plans are searched for.
        folder: Of the ladder.
        deadline: When to stop.
        progress: What shows how far it is.
    """

    original: PreTrainedModel
    base: PreTrainedModel
    teacher: nn.Module | None
    parts: Parts
    args: DistillationArguments
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]
    vocabulary: VocabularyReport | None
    search: Search
    folder: Path
    deadline: Deadline
    progress: Progress

    @property
    def request(self) -> Request:
        """What is asked of them."""
        return self.search.request

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """That of the rungs."""
        return self.tokenizers[1]


def make_rung(
    job: Job,
    candidate: Candidate,
    name: str,
    target: float,
    made_of: str,
    begin: float,
    unfinished: Rung | None,
    is_wanted: Callable[[Rung], bool],
) -> tuple[Rung, PreTrainedModel]:
    """Train a candidate, measure it in turns with the original, and save it if it is wanted.

    Args:
        job: What all rungs have in common.
        candidate: The model, which is trained in place.
        name: Of the rung.
        target: The speed-up that was asked.
        made_of: The name of the model that the candidate was made of.
        begin: The share of all work at which its own begins.
        unfinished: The same one of an earlier call, whose training was stopped: returned if this training is stopped
            too and comes no further.
        is_wanted: Whether the rung belongs in the ladder; else it is not saved.
    """
    student = candidate.model
    set_seed(job.args.seed)
    with in_float32(student):  # half precision is for autocast, not for the weights that learn
        trained = train_rung(
            student,
            copy.deepcopy(job.teacher or job.base) if job.args.compares_layers else None,
            job.parts,
            job.args,
            job.tokenizer,
            deadline=job.deadline,
            tick=lambda done: job.progress.at(f"{name}: training", begin + TRAINING * done),
        )
    if trained.is_stopped and unfinished is not None and unfinished.epochs >= trained.epochs:
        return unfinished, student
    job.progress.at(f"{name}: measuring", begin + TRAINING)
    start, folder = time.perf_counter(), job.folder / name
    runtime, notes = job.request.runtime, list[str]()
    rung: Rung | None = None
    processes().wait_for_everyone()
    if processes().is_main_process:
        served: Any = on_device(student, job.original.device)
        exported = job.folder / WORK / name
        if job.request.runtime != "torch":
            served, runtime, notes = _export(job, student, exported)
        if trained.is_stopped:
            notes.append(describe_stop(job.args, trained))
        found = _measure(job, name, served)
        left = find_structure(student).blocks
        layers = len(find_structure(job.base).blocks)
        drop, interval = _drop(found, name, job.parts)
        rung = Rung(
            name=name,
            target=target,
            runtime=runtime,
            folder=str(folder),
            original=found.rows[FULL],
            measured=found.rows[name],
            predicted=1 / candidate.predicted,
            shapes=tuple(block.shape for block in left),
            layers=(len(left), layers),
            drop=drop,
            drop_interval=interval,
            recipe=_recipe(job, candidate, trained, made_of),
            epochs=trained.epochs,
            machine=describe_machine(job.original.device),
            notes=tuple(notes),
            stopped=trained.is_stopped,
        )
        if job.request.max_drop is not None:
            rung = replace(rung, notes=(*rung.notes, describe_test(rung, job.request.max_drop)))
        if is_wanted(rung):
            card = Ladder((rung,), (), str(folder), repeated=job.parts.held_out.repeated)
            save_compressed(student, folder, processing_class=job.tokenizer, results=card)
            if job.request.runtime != "torch":
                shutil.rmtree(folder / "onnx", ignore_errors=True)
                shutil.move(exported, folder / "onnx")
    processes().wait_for_everyone()
    job.deadline.reserve(time.perf_counter() - start)
    values = agree({} if rung is None else rung.to_dict())
    return rung or Rung.from_dict(values), student


def _export(job: Job, student: PreTrainedModel, folder: Path) -> tuple[ExportedClassifier, Runtime, list[str]]:
    """Export a model for the runtime; in float32 where no int8 model passes the gate. Return what it is, and notes."""
    from hfcompress.deploy.exported_model import load_exported
    from hfcompress.deploy.exporting import export

    if job.request.runtime == "onnx-int8":
        rows = [{name: row[name] for name in row if name != TEACHER_LOGITS} for row in job.parts.check]
        try:
            export(student, folder, processing_class=job.tokenizer, dtype="int8", dataset=rows, repeats=0)
            return load_exported(folder), "onnx-int8", []
        except CompressionError as error:
            export(student, folder, processing_class=job.tokenizer, repeats=0)
            return load_exported(folder), "onnx", [f"float32, because int8 was refused: {error}"]
    export(student, folder, processing_class=job.tokenizer, repeats=0)
    return load_exported(folder), "onnx", []


def _measure(job: Job, name: str, served: Any) -> Comparison:
    """Measure a model beside the original; in an odd number of rounds, so that a median is the time of one of them."""
    batch = job.search.clock.batch["input_ids"]
    rows = {FULL: job.parts.measure_original, name: job.parts.measure}
    return compare(
        {FULL: job.original, name: served},
        {one: [dict(row) for row in data] for one, data in rows.items()},
        batch_size=batch.shape[0],
        length=batch.shape[1],
        repeats=_MORE * job.search.clock.rounds + 1,
        processing_class=dict(zip((FULL, name), job.tokenizers, strict=True)),
    )


def _drop(found: Comparison, name: str, parts: Parts) -> tuple[float, tuple[float, float]]:
    """Return the loss of accuracy, in regression of R2, and its 95 % interval, paired by rows."""
    before, after = found.rows[FULL], found.rows[name]
    if (test := after.mcnemar) is not None:
        assert after.examples is not None
        signs = torch.zeros(after.examples)
        signs[: test.only_first] = 1
        signs[len(signs) - test.only_this :] = -1
        return (test.only_first - test.only_this) / len(signs), paired_interval(signs)
    assert after.sign_flip is not None
    assert after.sign_flip.interval is not None
    low, high = after.sign_flip.interval
    if before.accuracy is not None and after.accuracy is not None:
        return before.accuracy - after.accuracy, (-high, -low)
    labels = torch.tensor(parts.measure["labels"], dtype=torch.float64).reshape(len(parts.measure), -1)
    variance = max(1e-12, float(labels.var(0, correction=0).mean()))
    return after.sign_flip.difference / variance, (low / variance, high / variance)


def _recipe(job: Job, candidate: Candidate, trained: Trained, made_of: str) -> str:
    args = job.args
    learned = "labels and the teacher" if 0 < args.alpha < 1 else "the teacher" if args.alpha else "labels"
    if trained.kept == trained.epochs:
        kept = ""
    elif trained.kept == 0:
        kept = ", which made it worse on held-out rows and was undone"
    else:
        kept = f", the first {_digits(trained.kept)} kept, as it became worse on held-out rows after that"
    tokens = "" if job.vocabulary is None else "{1:,} of {0:,} tokens; ".format(*job.vocabulary.tokens)
    several = "" if args.world_size == 1 else f" by {args.world_size} processes"  # each with batches of its own
    epochs = f"{_digits(trained.epochs)} epoch{'' if trained.epochs == 1 else 's'}"
    training = f"{epochs} on {learned} at {args.learning_rate:g}{several}"
    return f"of {made_of}; {tokens}{candidate.evaluated} plans evaluated; {training}{kept}"


def describe_stop(args: DistillationArguments, trained: Trained) -> str:
    """Say how far a training was when time_limit stopped it."""
    if args.max_steps > 0:  # whatever num_train_epochs is
        done = f"of {args.max_steps:,} steps after {_digits(trained.epochs)} epochs"
    else:
        done = f"after {_digits(trained.epochs)} of {args.num_train_epochs:g} epochs"
    return f"time_limit stopped its training {done}; the same call makes it again."


def _digits(epochs: float) -> str:
    return f"{round(epochs, 2) or epochs:.3g}"


def describe_rung(rung: Rung) -> str:
    """One line about a rung."""
    found, own, first = rung.speedup, rung.measured, rung.original
    quality = (
        f"mean squared error {first.mse:.3g} -> {own.mse:.3g}"
        if own.accuracy is None
        else (f"accuracy {first.accuracy:.3f} -> {own.accuracy:.3f}")
    )
    return f"{rung.name}: {found.ratio:.2f} times as fast, {quality}, in {rung.folder}"
