"""Write docs/works-with.md: what each verb does to a tiny model of each architecture, by running it.

Run from the repository's root, ``python -m docs.works_with``; a test runs it too and compares the page.
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
    BartConfig,
    MixtralConfig,
    PreTrainedModel,
    T5Config,
    XLNetConfig,
)

import hfcompress as hfc

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from architectures import (
    SHRINKABLE,
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
| shrink | `prune_structured` removed half of heads and neurons; the saved folder loads with the same logits |
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
[Contributing](contributing.md#add-an-architecture) describes how to add one to this table.

"""


def _small(kind: type[Any], **more: Any) -> PreTrainedModel:
    tokens = {
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    config = kind(**({"vocab_size": 100, "num_labels": 2} | tokens | more))
    config.initializer_range = 0.2
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
        config
    ).train()
    return model


# Not among the tests' architectures: here for the messages with which they are refused.
_OTHERS: dict[str, Callable[[], PreTrainedModel]] = {
    "xlnet": lambda: _small(
        XLNetConfig, d_model=32, n_layer=2, n_head=4, d_inner=64
    ),
    "mixtral": lambda: _small(
        MixtralConfig,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        num_local_experts=4,
    ),
    "bart": lambda: _small(
        BartConfig,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_labels=3,  # BART's own default: its config is saved without any other number of labels than that
    ),
    "t5": lambda: _small(
        T5Config, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    ),
}


def _inputs(seed: int = 0) -> dict[str, torch.Tensor]:
    inputs: dict[str, torch.Tensor] = batch(8, seed=seed)
    inputs["input_ids"] = inputs["input_ids"].clone()
    inputs["input_ids"][:, -1] = (
        2  # encoder-decoders need exactly one end token in each text
    )
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    return inputs


def _check(claim: bool, message: str) -> None:
    if not claim:
        raise AssertionError(message)


@torch.no_grad()
def _loads_again(model: PreTrainedModel) -> None:
    inputs = {key: value for key, value in _inputs().items() if key != "labels"}
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
        model(**_inputs()).loss.backward()
        optimizer.step()
        keep.apply()
    _check(hfc.sparsity_report(model).zeros == zeros, "zeros came back")
    _check(not same_bits(before, state_of(model)), "nothing was trained")
    return "yes"


def _shrink(model: PreTrainedModel) -> str:
    report = hfc.prune_structured(model, heads=0.5, neurons=0.5)
    _check(
        report.removed("heads") == report.removed("neurons") == 0.5,
        "another fraction removed",
    )
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
            train_dataset=rows(_inputs()),
        ).train()
    _check(not same_bits(before, state_of(student)), "nothing was trained")
    return "yes"


def _report(model: PreTrainedModel) -> str:
    result = hfc.measure(
        model,
        {key: value for key, value in _inputs().items() if key != "labels"},
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
    "shrink": _shrink,
    "student": _student,
    "distill": _distill,
    "report": _report,
}


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    n: functools.partial(build, n) for n in SHRINKABLE
} | _OTHERS


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
