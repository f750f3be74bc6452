"""Write docs/works-with.md: what each verb does to a tiny model of each architecture, by running it.

Run from the repository's root with the versions of ``constraints.txt``, ``python -m docs.works_with``; a test runs it
too and compares the page.
"""

from __future__ import annotations

import copy
import functools
import gc
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    MixtralConfig,
    PreTrainedModel,
)

import hfcompress as hfc

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from architectures import (
    LISTED,
    arguments,
    batch,
    build,
    rows,
    same_bits,
    state_of,
)

PAGE = Path(__file__).with_name("works-with.md")
_HEAD = """# Works with

What each verb does to a tiny random model of each architecture. This page is written by `python -m docs.works_with`,
which applies each verb and checks the result; a test repeats it and compares. Do not edit it by hand.

| column | "yes" means |
|---|---|
| prune | `prune_global_l1(model, 0.2)` left exactly 20 % of the prunable weights at zero |
| keep | after optimizer steps with `KeepSparsity` every zero was there, and other weights had changed |
| heads | `prune_structured` removed half of the heads; the saved folder loads and has the same logits |
| neurons | the same of the feed-forward neurons |
| student | `student_from_teacher(model, 1)` has one layer; the saved folder loads with the same logits |
| distill | a `DistillationTrainer` trained a student of one layer, or a copy of the teacher where there is none |
| report | `measure` counted parameters, zeros, bytes and FLOPs |

"""
_TAIL = """
"in part": the body has matrices in kinds of module that cannot be pruned. They are unchanged, and named in the report
(`not_covered`).

"no": the call raised a `CompressionError` with the message in the note, and the model was as before.

An architecture that is not listed may work too. Pruning, keeping and reporting need matrices in `nn.Linear` or
`Conv1D`; a student needs one stack of `config.num_hidden_layers` layers. Heads are found by
[records](structured.md#how-each-result-is-verified), neurons without a record in a trace; each result is verified.
[Contributing](../CONTRIBUTING.md#add-an-architecture) describes how to add one to this table.

"""


def _mixtral() -> PreTrainedModel:
    """Not among the tests' architectures: here for the message with which its neurons are refused."""
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2}
    config = MixtralConfig(
        **sizes,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        num_local_experts=4,
        pad_token_id=0,
    )
    config.initializer_range = 0.2
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
        config
    ).train()
    return model


def _check(claim: bool, message: str) -> None:
    if not claim:
        raise AssertionError(message)


@torch.no_grad()
def _loads_again(model: PreTrainedModel) -> None:
    inputs = {key: value for key, value in batch(8).items() if key != "labels"}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = AutoModelForSequenceClassification.from_pretrained(folder)
    one, other = (each.eval()(**inputs).logits for each in (model, again))
    _check(
        torch.allclose(one, other, rtol=0, atol=1e-5),
        "the loaded model has other logits",
    )


def _prune(model: PreTrainedModel) -> str:
    report = hfc.prune_global_l1(model, 0.2)
    _check(
        report.zeros == round(0.2 * report.weights), "another number of zeros"
    )
    return "in part" if report.not_covered else "yes"


def _keep(model: PreTrainedModel) -> str:
    zeros = hfc.prune_global_l1(model, 0.2).zeros
    before = state_of(model)
    optimizer, keep = torch.optim.AdamW(model.parameters()), hfc.KeepSparsity()
    keep.read(model)
    for _ in range(2):
        model(**batch(8)).loss.backward()
        optimizer.step()
        keep.apply()
    _check(hfc.sparsity_report(model).zeros == zeros, "zeros came back")
    _check(not same_bits(before, state_of(model)), "nothing was trained")
    return "yes"


def _remove(kind: str, model: PreTrainedModel) -> str:
    amount: dict[str, Any] = {kind: 0.5}
    report = hfc.prune_structured(model, importance="l1", **amount)
    _check(report.to_dict()[f"{kind}_removed"] == 0.5, "another fraction")
    _loads_again(model)
    return "yes"


def _student(model: PreTrainedModel) -> str:
    student = hfc.student_from_teacher(model, 1)
    _check(student.config.num_hidden_layers == 1, "another number of layers")
    _loads_again(student)
    return "yes"


def _distill(model: PreTrainedModel) -> str:
    try:
        student = hfc.student_from_teacher(model, 1)
    except hfc.CompressionError:
        student = copy.deepcopy(model)
    before = state_of(student)
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(hfc.DistillationArguments, folder, max_steps=1)
        hfc.DistillationTrainer(
            model=student,
            teacher=model,
            args=args,
            train_dataset=rows(batch(8)),
        ).train()
    _check(not same_bits(before, state_of(student)), "nothing was trained")
    return "yes"


def _report(model: PreTrainedModel) -> str:
    result = hfc.measure(
        model,
        {key: value for key, value in batch(8).items() if key != "labels"},
        repeats=1,
    )
    _check(
        bool(result.parameters and result.bytes and result.flops),
        "something was not counted",
    )
    return "yes"


_VERBS = {
    "prune": _prune,
    "keep": _keep,
    "heads": functools.partial(_remove, "heads"),
    "neurons": functools.partial(_remove, "neurons"),
    "student": _student,
    "distill": _distill,
    "report": _report,
}


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    name: functools.partial(build, name) for name in LISTED
} | {"mixtral": _mixtral}


def row(name: str) -> tuple[str, list[str]]:
    """Apply every verb to one architecture.

    Args:
        name: Its name in `MODELS`.

    Returns:
        Its line of the table, and its notes.
    """
    original, cells, notes = MODELS[name](), [], []
    for verb, do in _VERBS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                cells.append(do(copy.deepcopy(original)))
        except hfc.CompressionError as error:
            cells.append(f"no [^{name}-{verb}]")
            notes.append(f"[^{name}-{verb}]: {error}")
    return f"| {name} | {' | '.join(cells)} |", notes


def page(rows: list[tuple[str, list[str]]]) -> str:
    """Make the page of the rows."""
    table = [
        f"| architecture | {' | '.join(_VERBS)} |",
        "|---" * (len(_VERBS) + 1) + "|",
        *(line for line, _ in rows),
    ]
    return (
        _HEAD
        + "\n".join(table)
        + "\n"
        + _TAIL
        + "\n".join(note for _, notes in rows for note in notes)
        + "\n"
    )


if __name__ == "__main__":
    gc.freeze()  # every Trainer collects garbage, and searches all that was imported each time
    PAGE.write_text(page([row(name) for name in MODELS]))
