"""Makes a ladder of smaller models of a classifier, each a number of times as fast, from one call."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfcompress.distill.arguments import DistillationArguments
from hfcompress.errors import CompressionError
from hfcompress.models.classifier import max_tokens
from hfcompress.models.labels import are_default_names, check_class_names, label_names
from hfcompress.models.padding import pad_like
from hfcompress.models.profiling import TimeTable
from hfcompress.search.candidates import Search, TooFastError, make_candidate
from hfcompress.search.clock import Clock, Runtime, describe_machine, on_device, typical_length
from hfcompress.search.deadline import Deadline, TimeUpError
from hfcompress.search.ladder import FULL, Ladder, Rung, describe_choice, in_words
from hfcompress.search.processes import PATIENCE, agree, processes
from hfcompress.search.progress import Progress
from hfcompress.search.request import (
    LEAST_FOR_INT8,
    Request,
    check_models,
    check_training_and_place,
    read_device,
    read_request,
)
from hfcompress.search.rows import check_padding, check_teacher, read_parts, readable, text_lengths, with_logits
from hfcompress.search.rungs import WORK, Job, describe_rung, make_rung
from hfcompress.search.state import LeftOut, State, describe_arguments, digest_call
from hfcompress.search.structure import Structure, find_structure
from hfcompress.search.training import check_training, default_arguments
from hfcompress.search.vocabulary import read_with, with_fewer_tokens
from hfcompress.shrink.importance import Importance
from hfcompress.storage.load import load_compressed

_OF_TABLE, _OF_SEARCH, _OF_RUNG = 0.3, 0.3, 1.0  # of the work


def compress(
    model: PreTrainedModel,
    train_dataset: Any,
    *,
    processing_class: PreTrainedTokenizerBase,
    eval_dataset: Any = None,
    speedup: float | Sequence[float] | None = None,
    max_drop: float | None = None,
    runtime: Runtime = "torch",
    device: str | torch.device | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    time_limit: float | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    args: DistillationArguments | None = None,
    importance: Importance | Literal["auto"] = "auto",
    reconstruct: bool | Literal["auto"] = "auto",
    teacher: nn.Module | None = None,
    teacher_processing_class: PreTrainedTokenizerBase | None = None,
    batch_size: int = 16,
    length: int | None = None,
    max_length: int | None = None,
    vocabulary: bool = False,
    round_to: int = 8,
    evaluations: int = 48,
    seed: int = 0,
) -> Ladder:
    """Make smaller models of a fine-tuned classifier, each a number of times as fast, and measure what that cost.

    For each speed-up it searches how many heads and neurons, and which layers, to keep so that the least is lost within
    the time; removes the others and reconstructs the outputs of what is left; and distills the model from the original.
    Each model starts from the one before. Times are measured in the runtime that will serve, and each model is measured
    in turns with the original. A model is saved as soon as it is done; called again with the same arguments, a call
    that was interrupted goes on behind the last one.

    Args:
        model: The fine-tuned classifier; it is not changed. All weights of the smaller ones are trained, also those
            that are frozen in it.
        train_dataset: Rows with texts, or ``input_ids``; and ``labels``, as a Trainer takes them. Rows without a label
            (None; where there is one class a row, also -1 or -100) learn from the teacher alone.
        processing_class: The tokenizer, saved beside each model.
        eval_dataset: Other labelled rows, which the model was not fine-tuned on: a third of them, 1,000 at most, says
            when a training is stopped early and which of its weights are kept, and the others measure the models. These
            choose nothing, but that a model which is neither faster nor better than the one before is left out, and
            with ``max_drop`` which speed-up is the last. If None, a fifth of the labelled rows of ``train_dataset``,
            3,000 at most, is held out for both; if the model was fine-tuned on them, its accuracy there is too high.
        speedup: How many times as fast, above 1, or several such numbers. If None: 2, 4 and 10, or with ``max_drop``
            1.5, 2, 3, 4 and so on until more is lost, and one between the last that is kept and the next.
        max_drop: The loss of accuracy allowed, such as 0.01 (label accuracy of several labels; R2 of a regression). A
            model that loses more, as measured, is not in the ladder; faster ones are not tried if its 95 % interval is
            beyond that too, or if the one before lost more as well. Of the others
            ``ladder.best(max_drop)`` is the fastest that is shown to lose at most that: the 95 % interval of its
            paired difference ends there or before. The notes name it, say of each model whether that is shown, and if
            not how many rows it would take.
        runtime: What serves: ``"torch"``; or ``"onnx"`` and ``"onnx-int8"``, ONNX Runtime, for which each model is also
            exported, into the folder ``onnx`` beside it. Speed-ups are against the original in torch.
        device: Where torch runs the models that are timed and measured, such as ``"cpu"`` for models that are trained
            on a GPU and served without one. If None, where they are trained, and the CPU with ONNX Runtime.
        output_dir: The folder for the models; a temporary one if None.
        time_limit: In minutes: what is done by then is returned, which may be no model. One whose training is stopped
            is measured, for which time is left; for the first one it comes on top, as nothing says yet how long it
            takes. The same call later makes it again, and goes on from there. A search that was stopped begins anew
            then; the teacher's logits, in whole files of 4,096 rows or more, and the table of times that were done
            stay. With several processes nothing but training is stopped in the middle.
        text_column: Column of the text; ``"text"`` if None. Where ``args`` is passed, name it there.
        text_pair_column: Column of the second text of a pair.
        args: How each model is trained, all of it. If None, for four epochs at 5e-5, which falls linearly, on the
            labels (cross-entropy, or the mean squared error) and on the teacher (KL divergence at temperature 2, or the
            mean squared error) by halves, in the mixed precision that the device computes natively.
        importance: How heads and neurons are ranked: ``"obs"``, ``"fisher"`` or ``"taylor"``, as for
            `prune_structured`. ``"auto"``: ``"obs"`` where outputs are reconstructed, else ``"fisher"``.
        reconstruct: Whether outputs are reconstructed; ``"auto"``: yes.
        teacher: What the models learn from instead of the original: a classifier with the same labels.
        teacher_processing_class: Its tokenizer, where it is another.
        batch_size: Texts in the batch that is timed.
        length: Tokens of each of its texts; if None, the median of the texts to learn from.
        max_length: Tokens of a text at most; if None, as many as the model reads. Rows with ``input_ids`` are read as
            they are.
        vocabulary: Whether the models keep only the tokens of the texts of ``train_dataset`` (see `prune_vocabulary`),
            of which all rows must have the text then. It makes models smaller, not faster. A text with another token is
            made up of shorter pieces; what that costs is in the accuracy measured.
        round_to: Neurons stay in multiples of this.
        evaluations: Plans that are evaluated on calibration rows, at most, for each model: the first search; each of
            up to four others, where the plan that was found misses its time as measured, evaluates a quarter as many.
        seed: Of the rows held out, the search and, where ``args`` is None, the training.

    Returns:
        The models, from the slowest to the fastest, and what could not be reached.

    Raises:
        CompressionError: An argument is out of range, the model cannot be shrunk, the rows cannot be read, or the
            folder holds the ladder of another call.
        ImportError: `datasets` is not installed, or what ``runtime`` needs.

    Example:
        ``ladder = hfc.compress(model, data, processing_class=tokenizer, speedup=(2, 4), output_dir="ladder")``
    """
    check_models(model, processing_class, teacher, teacher_processing_class)
    check_training_and_place(args, (text_column, text_pair_column), output_dir, time_limit)
    deadline = Deadline(time_limit)
    request = read_request(
        speedup=speedup,
        max_drop=max_drop,
        runtime=runtime,
        importance=importance,
        reconstruct=reconstruct,
        batch_size=batch_size,
        length=length,
        max_length=max_length,
        vocabulary=vocabulary,
        round_to=round_to,
        evaluations=evaluations,
        seed=seed,
    )
    reading = args or DistillationArguments(
        output_dir=WORK,
        report_to="none",
        text_column=text_column or "text",
        text_pair_column=text_pair_column,
        ddp_timeout=PATIENCE,
    )
    original = copy.deepcopy(model).to(reading.device).eval()
    for parameter in filter(torch.is_floating_point, original.parameters()):
        parameter.requires_grad_(True)  # as those have that are loaded where a call goes on
    parts = read_parts(model, processing_class, train_dataset, eval_dataset, reading, request.max_length, request.seed)
    if teacher is not None and are_default_names(label_names(model)):  # by which the teacher is not put in order
        for owner, data in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            check_class_names(f"{owner}, as the teacher reads it,", teacher, data)
    check_padding(model, processing_class, parts)
    pad_like(original, processing_class)
    reads_ids = check_teacher(model, processing_class, teacher, teacher_processing_class, parts, reading)
    if request.importance in ("fisher", "taylor") and not parts.labelled:
        raise CompressionError(
            f"importance={request.importance!r} needs labels, and train_dataset has none; choose 'obs'."
        )
    if request.runtime == "onnx-int8" and len(parts.check) < LEAST_FOR_INT8:
        raise CompressionError(
            f"runtime='onnx-int8' judges int8 by a third of the rows that no rung learns from, {len(parts.check)}; "
            f"pass an eval_dataset of at least {3 * LEAST_FOR_INT8} rows, or choose runtime='onnx'."
        )
    base, tokenizer, fewer = original, processing_class, None
    if request.vocabulary:
        if reading.compares_layers and teacher is not None:
            raise CompressionError(
                f"hidden_weight={reading.hidden_weight}, relation_weight={reading.relation_weight} compare layers "
                "token by token, but with vocabulary=True the models read other tokens than teacher=; set both to 0."
            )
        base, fewer = with_fewer_tokens(original, processing_class, parts, reading, request.max_length)
        tokenizer = fewer.tokenizer
    structure = find_structure(base)
    rows = len(parts.train)
    own = args or default_arguments(WORK, parts.problem, labelled=parts.labelled, seed=request.seed, rows=rows)
    check_training(
        original, (teacher or model) if own.compares_layers else None, parts, own, processing_class, structure
    )
    served_on = read_device(device, request.runtime, own.device)
    folder = _folder(output_dir)
    if args is None:
        own.output_dir = str(folder / WORK)
        own.text_column, own.text_pair_column = reading.text_column, reading.text_pair_column
    args = own
    settings = asdict(request) | {"device": served_on.type, "args": describe_arguments(args)}
    settings["speedup"] = settings.pop("targets")
    tokenizers = processing_class, teacher_processing_class
    digest = agree(digest_call(model, teacher, parts, settings, tokenizers))
    state = State.open(folder, digest, agree(describe_machine(served_on)), parts.held_out, settings)
    if state.ended:
        return _finish(state, request, folder)
    with _progress(args, len(request.targets)) as progress, _until(deadline, state, request):
        progress.at("the teacher's logits", 0)
        of_teacher = None if reads_ids else teacher_processing_class
        logits_of = teacher or original
        parts = with_logits(original, logits_of, parts, of_teacher, reading, folder / WORK, deadline)
        if fewer is not None:
            parts = read_with(base, tokenizer, parts, reading, request.max_length)
        parts = readable(parts, model, args)
        usual = typical_length(model, text_lengths(parts.train))
        tokens = usual if request.length is None else min(request.length, max_tokens(model) or request.length)
        clock = Clock(base, tokenizer, request.runtime, request.batch_size, tokens, served_on)
        deadline.check()
        state.times = _tabulate(clock, structure, request.round_to, state.times, progress, deadline)
        state.write()
        job = Job(
            original=clock.original if fewer is None else on_device(original, served_on),
            base=base,
            teacher=teacher,
            parts=parts,
            args=args,
            tokenizers=(processing_class, tokenizer),
            vocabulary=fewer,
            search=Search(clock, state.times, request),
            folder=folder,
            deadline=deadline,
            progress=progress,
        )
        _climb(job, state)
    return _finish(state, request, folder)


def _finish(state: State, request: Request, folder: Path) -> Ladder:
    """Return the ladder; where it is complete, the teacher's logits are not needed any more."""
    if state.ended and processes().is_main_process:
        shutil.rmtree(folder / WORK, ignore_errors=True)
    rungs, rows = state.all_rungs, state.held_out
    chosen = [] if request.max_drop is None else describe_choice(rungs, request.max_drop)
    left_out = [one.note for one in state.left_out]
    notes = (*left_out, *state.notes, *rows.notes, *chosen)
    return Ladder(tuple(rungs), notes, str(folder), tuple(rows.measure), rows.repeated)


def _climb(job: Job, state: State) -> None:
    """Make one rung after the other, each from the one above.

    Args:
        job: What they have in common.
        state: What is done; noted as it grows.
    """
    request, made = job.request, dict[str, PreTrainedModel]()
    while left := state.to_make(request.targets, refine=request.refine):
        target, *left = left
        name = f"{target:g}x"
        job.deadline.check()
        base = _OF_TABLE + (len(state.rungs) + len(state.left_out)) * _OF_RUNG

        def tick(done: float, what: str = f"{name}: search", base: float = base) -> None:
            job.progress.at(what, base + _OF_SEARCH * done)
            job.deadline.check_alone()

        last = state.below(target)
        above = job.base if last is None else made.pop(last.name, None) or _load(job, last)
        try:
            candidate = make_candidate(above, job.search, job.parts, 1 / target, tick)
        except TooFastError as error:
            reached = f" The nearest is {last.name}, {last.speedup.ratio:.2f} times." if last else ""
            note = (
                f"{_names([target, *left])}: cannot be reached; even the fewest heads, neurons and layers are "
                f"predicted to be {1 / error.share:.1f} times as fast.{reached}"
            )
            if request.refine:  # one that is not as fast may be
                made = {} if last is None else {last.name: above}
                below = last.target if last else 1.0
                state.left_out.append(LeftOut(target, below, True, True, note, 1 / error.share))
                state.write()
                continue
            state.notes.append(note)
            break
        job.deadline.check()

        def is_wanted(rung: Rung, last: Rung | None = last) -> bool:
            return _why_left_out(rung, last, request.max_drop)[0] is None

        unfinished = state.unfinished if state.unfinished and state.unfinished.target == target else None
        made_of = last.name if last else FULL
        rung, student = make_rung(job, candidate, name, target, made_of, base + _OF_SEARCH, unfinished, is_wanted)
        reason, loses_more = _why_left_out(rung, last, request.max_drop)
        if reason is not None and rung.stopped and unfinished is not None:
            rung, reason = unfinished, None
        if reason is None:
            state.rungs.append(rung)
            made = {name: student}
            state.write()
            job.progress.say(describe_rung(rung))
            continue
        made = {} if last is None else {last.name: above}
        note = f"{name}: left out, as it {reason}; the nearest is {last.name if last else 'the ' + FULL}."
        if rung.stopped:  # its full training may do better, so nothing ends here
            state.notes += [note, f"{name}: time_limit stopped its training; the same call makes it again."]
            if left:
                state.notes.append(f"{_names(left)}: not begun within time_limit.")
            return
        if processes().is_main_process:
            shutil.rmtree(rung.folder, ignore_errors=True)  # of an earlier call, whose training was stopped
        is_end = loses_more and rung.drop_interval[0] > (request.max_drop or 0.0)
        state.left_out.append(LeftOut(target, last.target if last else 1.0, loses_more, is_end, note))
        state.unfinished = None if unfinished is not None else state.unfinished
        state.write()
    else:
        tried = {rung.target for rung in state.rungs} | {one.target for one in state.left_out}
        untried = [one for one in request.targets if one not in tried]
        if untried and not request.refine:
            state.notes.append(f"{_names(untried)}: not tried, as slower ones lose too much already.")
        if request.refine and not untried and not any(one.loses_more for one in state.left_out):
            state.notes.append(f"None faster than {request.targets[-1]:g}x was tried; name some in speedup=.")
    state.ended = not any(rung.stopped for rung in state.all_rungs)
    state.write()


def _why_left_out(rung: Rung, last: Rung | None, max_drop: float | None) -> tuple[str | None, bool]:
    """Say why a rung is not in the ladder, if it is not, and whether that is since it loses more than is allowed."""
    ratio, drop = (1.0, 0.0) if last is None else (last.speedup.ratio, last.drop)
    loses_more = max_drop is not None and rung.drop > max_drop + 1e-9
    if rung.speedup.ratio <= ratio and rung.drop >= drop:
        return f"is neither faster nor better than {last.name if last else 'the ' + FULL}", loses_more
    if max_drop is not None and loses_more:
        return f"loses {in_words(rung, rung.drop)}, more than max_drop={max_drop:g} allows", True
    return None, False


def _load(job: Job, rung: Rung) -> PreTrainedModel:
    """Load a rung of an earlier call; no config says how attention is computed, and the original's may be another."""
    attention: str = getattr(job.base.config, "_attn_implementation", None) or "eager"
    model: PreTrainedModel = load_compressed(rung.folder, attn_implementation=attention).to(job.args.device)
    return model


def _names(targets: Sequence[float]) -> str:
    return ", ".join(f"{target:g}x" for target in targets)


def _folder(output_dir: str | os.PathLike[str] | None) -> Path:
    """Return the ladder's folder; a temporary one, of the first process, if none is named."""
    if output_dir is not None:
        return Path(agree(str(Path(output_dir).expanduser())))
    return Path(agree(tempfile.mkdtemp(prefix="hfcompress-ladder-") if processes().is_main_process else ""))


@contextmanager
def _until(deadline: Deadline, state: State, request: Request) -> Iterator[None]:
    """End the work where the time is over, and note what was not begun."""
    try:
        yield
    except TimeUpError:
        held = {rung.target for rung in state.all_rungs}  # of which one was stopped, and says so
        left = state.to_make(request.targets, refine=request.refine)
        if others := [target for target in left if target not in held]:
            state.notes.append(f"{_names(others)}: not begun within time_limit.")
        state.write()


def _tabulate(
    clock: Clock,
    structure: Structure,
    round_to: int,
    known: TimeTable | None,
    progress: Progress,
    deadline: Deadline,
) -> TimeTable:
    """Measure the table of times, if an earlier call has not; all processes have that of the first."""
    count, done = clock.count_shapes(structure, round_to), 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress.at("times", _OF_TABLE * done / count)
        deadline.check_alone()

    if not processes().is_main_process:
        return agree(TimeTable((), (), (), 0.0))
    clock.share(clock.original)  # which tells how many rounds there is time for, also where a call goes on
    return agree(known or clock.tabulate(structure, round_to, tick))


@contextmanager
def _progress(args: DistillationArguments, rungs: int) -> Iterator[Progress]:
    """Show one bar over all, and none of those of other libraries."""
    import datasets
    from transformers.utils import logging

    of_datasets, of_transformers = not datasets.are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    main = processes().is_main_process
    progress = Progress(main and not args.disable_tqdm, main, _OF_TABLE + rungs * _OF_RUNG)
    try:
        yield progress
    finally:
        progress.close()
        if of_datasets:
            datasets.enable_progress_bars()
        if of_transformers:
            logging.enable_progress_bar()
