"""What a call of `prune_structured` asks for, and what it refuses before it reads a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

import torch
from transformers import PreTrainedModel

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import check_model_kind
from hfcompress.models.heads_and_neurons import KINDS, Kind
from hfcompress.models.layers import layer_stack
from hfcompress.models.plain_weights import check_no_computed_weights, check_not_quantized
from hfcompress.models.shape_plan import check_builds_from_config, is_plan
from hfcompress.models.tensors import check_has_values
from hfcompress.models.weights import PRUNABLE_DTYPES, check_one_attention
from hfcompress.shrink.budget import MEASURES, Measure
from hfcompress.shrink.importance import IMPORTANCES, Importance
from hfcompress.shrink.layers import are_indices
from hfcompress.shrink.selection import Scope
from hfcompress.validation import check_choice, check_count, check_fraction, is_integer


@dataclass(frozen=True)
class Request:
    """The arguments of `prune_structured` that say what to remove and how to choose it.

    Attributes:
        asked: Those of heads, neurons, layers and budgets that were given, by name.
        importance: How to rank.
        scope: Whether the least important of all layers are removed, or the same fraction of each.
        reconstruct: Whether outputs are reconstructed.
        round_to: Neurons stay in multiples of this.
        plain: Whether only such shapes are made as a plain config can state.
    """

    asked: dict[str, Any]
    importance: Importance | Literal["auto"]
    scope: Scope
    reconstruct: bool | Literal["auto"]
    round_to: int
    plain: bool

    @property
    def measure(self) -> Measure | None:
        """What a budget is of; None where there is none."""
        return next((measure for measure in MEASURES if measure in self.asked), None)

    @property
    def kinds(self) -> list[Kind]:
        """What is removed beside layers: what fractions are given of, and for a budget both heads and neurons."""
        return [kind for kind in KINDS if kind in self.asked or self.measure is not None]


def is_asked(name: str, value: object) -> bool:
    """Whether an argument asks for something to be removed: a budget if it is not None, others if they are not 0."""
    if name in MEASURES:
        return value is not None
    if isinstance(value, Sequence):
        return len(value) > 0
    return value is not None and not (isinstance(value, Real) and value == 0)


def check_request(request: Request, model: object, dataset: object) -> None:
    """Refuse arguments out of range or at odds with each other, and models that cannot be shrunk."""
    asked, importance = request.asked, request.importance
    for kind in KINDS:
        check_fraction(kind, asked.get(kind, 0.0), f"the fraction of the {kind} to remove")
    for measure in MEASURES:
        check_fraction(measure, asked.get(measure, 0.5), f"the share of the model's {measure} to keep", zero=False)
    if not asked:
        raise CompressionError(
            "Nothing was asked: give heads=, neurons=, flops=, parameters=, latency= or drop_layers=."
        )
    if len(set(MEASURES) & set(asked)) + bool(set(KINDS) & set(asked)) > 1:
        raise CompressionError(
            f"{', '.join(f'{name}={value!r}' for name, value in asked.items())} exclude each other: give fractions of "
            "heads and neurons, or one budget."
        )
    if "latency" in asked and "drop_layers" in asked:
        raise CompressionError(
            f"latency={asked['latency']!r} is measured beside the full model; drop layers in a call before."
        )
    check_choice("importance", importance, ("auto", *IMPORTANCES))
    check_choice("scope", request.scope, get_args(Scope))
    check_count("round_to", request.round_to)
    if importance not in ("auto", "l1") and dataset is None:
        needed = "data" if importance == "obs" else "labelled data"
        raise CompressionError(f"importance={importance!r} needs {needed}: pass dataset=, or choose 'l1'.")
    check_choice("plain", request.plain, (True, False))
    check_choice("reconstruct", request.reconstruct, ("auto", True, False))
    if request.reconstruct is True and dataset is None:
        raise CompressionError("reconstruct=True needs texts: pass dataset=, or leave it out.")
    check_model(model)
    if "drop_layers" in asked:
        _check_layers(model, asked["drop_layers"])


def check_model(model: Any) -> None:
    """Refuse what cannot be shrunk: wrapped, quantized or sharded models, and weights without values."""
    check_model_kind(model)
    if not isinstance(model, PreTrainedModel):
        raise CompressionError(
            f"The model must be a transformers PreTrainedModel, not {type(model).__name__}; pass the model below "
            "wrappers, adapters merged (PEFT: merge_and_unload())."
        )
    if torch.is_inference_mode_enabled() or any(parameter.is_inference() for parameter in model.parameters()):
        where = "is called" if torch.is_inference_mode_enabled() else "was made"
        raise CompressionError(
            f"The {type(model).__name__} {where} inside torch.inference_mode(), where no gradients are computed and no "
            "weights are made that can be trained; leave it out, or use torch.no_grad()."
        )
    check_builds_from_config(model)
    plan = getattr(model.config, "quantization_config", None)
    if plan is not None and not is_plan(plan):
        raise CompressionError(
            f"The config has a quantization_config of its own ({type(plan).__name__}); shrink the model, then quantize."
        )
    check_one_attention(model)
    check_not_quantized(model, "shrunken")
    check_no_computed_weights(model, "shrunken")
    check_has_values(model.named_parameters())
    for key, parameter in model.named_parameters():
        if parameter.dtype not in PRUNABLE_DTYPES or type(parameter.data) is not torch.Tensor:
            raise CompressionError(
                f"{key} is quantized or sharded ({type(parameter.data).__name__}, {parameter.dtype}); shrink the "
                "model first, in a floating-point dtype and on one device."
            )


def _check_layers(model: Any, layers: Any) -> None:
    count = layer_stack(model)[1]
    if is_integer(layers):
        valid = 0 < layers < count
    else:
        valid = are_indices(layers, count) and len({index % count for index in layers}) < count
    if not valid:
        raise CompressionError(
            f"drop_layers={layers!r} must be a number from 1 to {count - 1}, or indices of the model's {count} layers, "
            "of which at least one must stay."
        )
