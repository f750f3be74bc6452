"""What a call of `compress` asks for, and what it refuses before it reads rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hfcompress.distill.arguments import DistillationArguments
from hfcompress.errors import CompressionError
from hfcompress.models.classifier import check_model_kind
from hfcompress.models.new_head import check_trained
from hfcompress.models.tokenizers import check_tokenizer
from hfcompress.search.clock import RUNTIMES, Runtime
from hfcompress.shrink.importance import Importance
from hfcompress.shrink.request import check_model
from hfcompress.validation import check_choice, check_count, check_fraction, check_number, is_integer, is_number

LEAST_FOR_INT8 = 10  # rows to judge it by
SPEEDUPS = (2.0, 4.0, 10.0)
_STEPS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 24.0, 32.0)  # tried in turn where only max_drop is given


@dataclass(frozen=True)
class Request:
    """The arguments of `compress` that say which models to make; those in which it is made are not among them.

    Attributes:
        targets: The speed-ups, ascending.
        refine: Whether one between the last that loses little and the first that loses more is tried.
        max_drop: The loss that is allowed.
        runtime: What serves the models.
        importance: How heads and neurons are ranked.
        reconstruct: Whether outputs are reconstructed.
        batch_size: Texts in the batch that is timed.
        length: Tokens of each of its texts; the median if None.
        max_length: Tokens of a text at most; as many as the model reads if None.
        vocabulary: Whether models keep only the tokens of the texts to learn from.
        round_to: Neurons stay in multiples of this.
        evaluations: Plans that are evaluated at most for each model.
        seed: Of all that is drawn.
    """

    targets: list[float]
    refine: bool
    max_drop: float | None
    runtime: Runtime
    importance: Importance
    reconstruct: bool
    batch_size: int
    length: int | None
    max_length: int | None
    vocabulary: bool
    round_to: int
    evaluations: int
    seed: int


def read_request(
    *,
    speedup: Any,
    max_drop: Any,
    runtime: Any,
    importance: Any,
    reconstruct: Any,
    batch_size: Any,
    length: Any,
    max_length: Any,
    vocabulary: Any,
    round_to: Any,
    evaluations: Any,
    seed: Any,
) -> Request:
    """Check these arguments of `compress`, and return them in Python's numbers: NumPy's are not JSON."""
    targets = _read_speedups(speedup, max_drop)
    check_choice("runtime", runtime, RUNTIMES)
    if runtime != "torch":
        from hfcompress.deploy.runtime import import_exporter

        import_exporter()
    check_choice("importance", importance, ("auto", "obs", "fisher", "taylor"))
    check_choice("reconstruct", reconstruct, ("auto", True, False))
    check_choice("vocabulary", vocabulary, (True, False))
    counts = {"batch_size": batch_size, "round_to": round_to, "evaluations": evaluations}
    counts |= {name: value for name, value in (("length", length), ("max_length", max_length)) if value is not None}
    for name, value in counts.items():
        check_count(name, value)
    if not is_integer(seed) or not 0 <= seed < 2**32:
        raise CompressionError(f"seed={seed!r} must be a whole number from 0 to {2**32 - 1}.")
    reconstructs = reconstruct is not False
    if importance == "auto":
        importance = "obs" if reconstructs else "fisher"
    return Request(
        targets=targets,
        refine=speedup is None and max_drop is not None,
        max_drop=None if max_drop is None else float(max_drop),
        runtime=runtime,
        importance=importance,
        reconstruct=reconstructs,
        batch_size=int(batch_size),
        length=None if length is None else int(length),
        max_length=None if max_length is None else int(max_length),
        vocabulary=bool(vocabulary),
        round_to=int(round_to),
        evaluations=int(evaluations),
        seed=int(seed),
    )


def check_models(model: Any, tokenizer: Any, teacher: Any, teacher_tokenizer: Any) -> None:
    """Refuse a model that is not trained or cannot be shrunk, such a teacher, and tokenizers that are none."""
    check_model(model)
    check_trained(model, "model")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise CompressionError(
            f"processing_class={tokenizer!r:.60} is not a tokenizer; pass the model's, which is saved beside it."
        )
    if tokenizer.pad_token is None:
        raise CompressionError(
            "processing_class has no padding token, and models are trained on padded batches; set it, such as "
            "tokenizer.pad_token = tokenizer.eos_token."
        )
    if teacher is None and teacher_tokenizer is not None:
        raise CompressionError("teacher_processing_class= is the tokenizer of teacher=; pass that too, or leave both.")
    if teacher is not None:
        check_model_kind(teacher, "teacher")
        check_trained(teacher, "teacher")
        check_tokenizer(teacher_tokenizer, "teacher_processing_class")


def check_training_and_place(args: Any, columns: Sequence[Any], output_dir: Any, time_limit: Any) -> None:
    """Refuse sharded training, columns named beside ``args``, an output_dir that is not a path, and time_limit <= 0."""
    if args is not None and not isinstance(args, DistillationArguments):
        raise CompressionError(f"args must be DistillationArguments, not {type(args).__name__}.")
    named = {
        name: one for name, one in zip(("text_column", "text_pair_column"), columns, strict=True) if one is not None
    }
    for name, one in named.items():
        if args is not None:
            raise CompressionError(f"{name}={one!r} beside args=: name it there, DistillationArguments({name}=...).")
        if not isinstance(one, str):
            raise CompressionError(f"{name}={one!r} must be the name of a column.")
    kinds = {"FSDP": args and args.fsdp, "DeepSpeed": args and args.deepspeed}
    asked = [one for one, value in kinds.items() if value or parse_flag_from_env(f"ACCELERATE_USE_{one.upper()}")]
    if asked:
        raise CompressionError(
            f"compress trains full models, in one process or several; args or the launcher ask for {asked[0]}, which "
            "shards the model. Leave it out."
        )
    if not isinstance(output_dir, str | os.PathLike | None):
        raise CompressionError(f"output_dir={output_dir!r} is not a path; name a directory.")
    if output_dir is not None and not str(output_dir):
        raise CompressionError("output_dir is empty; name a directory, '.' for the working directory.")
    if time_limit is not None:
        check_number("time_limit", time_limit, zero=False)


def read_device(device: Any, runtime: Runtime, trained_on: torch.device) -> torch.device:
    """Return where models are timed and measured."""
    if device is None:
        return trained_on if runtime == "torch" else torch.device("cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise CompressionError(f"device={device!r} is none that torch has here ({reason}); pass 'cpu'.") from error
    if found.type == "meta" or (runtime != "torch" and found.type != "cpu"):
        with_what = "the meta device runs nothing" if found.type == "meta" else f"runtime={runtime!r} runs on the CPU"
        raise CompressionError(f"device={device!r}, but {with_what}; leave device=None.")
    return found


def _read_speedups(speedup: Any, max_drop: Any) -> list[float]:
    if max_drop is not None:
        check_fraction("max_drop", max_drop, "the loss of accuracy that is allowed")
    if speedup is None:
        return list(SPEEDUPS if max_drop is None else _STEPS)
    several = isinstance(speedup, Iterable) and not isinstance(speedup, str | Mapping | Tensor)
    given = list(speedup) if several else [speedup]
    if not given or not all(is_number(one) and 1 < one < 1000 for one in given):
        raise CompressionError(
            f"speedup={speedup!r} must be a number above 1, how many times as fast, or several, such as (2, 4)."
        )
    return sorted({float(one) for one in given})
