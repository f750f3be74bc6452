"""Models that are really smaller: fewer layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from typing import TypeGuard, TypeVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hfcompress.errors import CompressionError
from hfcompress.layers import layer_stack

_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers", "attention_window")  # one config value a layer

Model = TypeVar("Model", bound=PreTrainedModel)


def student_from_teacher(teacher: Model, layers: int | Sequence[int]) -> Model:
    """Make a smaller model of a teacher's own layers.

    The student has the teacher's class, embeddings, head, dtype, device and mode, and copies of the chosen layers
    (the initialisation of DistilBERT, Sanh et al. 2019, https://arxiv.org/abs/1910.01108, section 2). The teacher is
    not changed, nothing is shared, and every parameter of the student can be trained. What it saves, plain
    ``from_pretrained`` loads.

    Args:
        teacher: A model with one stack of ``config.num_hidden_layers`` layers, such as any of the BERT family or GPT-2.
        layers: How many layers, evenly spaced from the first to the last (2 of 6: 0 and 5; 6 of 12: 0, 2, 4, 7, 9, 11;
            1 is the first); or the indices of the layers in ascending order, negative ones counted from the end.

    Returns:
        The student.

    Raises:
        CompressionError: ``layers`` is out of range, or the architecture has no such stack, or cannot do without a
            layer left out.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=6, num_attention_heads=4, intermediate_size=64)
        >>> student = student_from_teacher(BertForSequenceClassification(config), 2)
        >>> student.config.num_hidden_layers
        2
    """
    if not isinstance(teacher, PreTrainedModel):
        raise CompressionError(f"The teacher must be a transformers PreTrainedModel, not {type(teacher).__name__}.")
    name, count = layer_stack(teacher)
    kept = _indices(layers, count)

    student: Model = copy.deepcopy(teacher)
    student.requires_grad_(True)
    stack = student.get_submodule(name)
    assert isinstance(stack, nn.ModuleList)
    for index in sorted(set(range(count)) - set(kept), reverse=True):
        del stack[index]
    for index, layer in enumerate(stack):
        for module in layer.modules():
            for attribute in ("layer_idx", "layer_id"):  # where a layer finds its part of the cache, or of the config
                if hasattr(module, attribute):
                    setattr(module, attribute, index)
    try:
        for config in {id(m.config): m.config for m in student.modules() if isinstance(m, PreTrainedModel)}.values():
            config.num_hidden_layers = len(kept)
            for key in _PER_LAYER:
                values = getattr(config, key, None)
                if isinstance(values, list | tuple) and len(values) == count:
                    setattr(config, key, [values[index] for index in kept])
        built = _built_from(student.config, type(student))
    except Exception as error:  # whatever an architecture's config or constructor says to this number of layers
        reason = f"its config refuses them ({error})"
    else:
        difference = _difference(student, built, name)
        if difference is None:
            return student
        reason = f"{difference} differs from what its config builds"
    raise CompressionError(
        f"A {type(teacher).__name__} of the layers {kept} would not load again: {reason}; choose other layers (often "
        "layer 0 must stay, or the pattern of the layers must repeat)."
    )


def _indices(layers: object, count: int) -> list[int]:
    if _is_int(layers):
        wanted = int(layers)
        if not 1 <= wanted <= count:
            raise CompressionError(f"layers={wanted} must be between 1 and the teacher's {count}.")
        return [round(index * (count - 1) / max(1, wanted - 1)) for index in range(wanted)]
    if isinstance(layers, Sequence) and layers and all(_is_int(index) and -count <= index < count for index in layers):
        kept = [int(index) % count for index in layers]
        if all(one < other for one, other in pairwise(kept)):
            return kept
    raise CompressionError(
        f"layers={layers!r} must be a number from 1 to {count}, or ascending indices of the teacher's {count} layers."
    )


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _built_from(config: PreTrainedConfig, kind: type[PreTrainedModel]) -> PreTrainedModel:
    """What ``from_pretrained`` would build of this config once it was saved and read again, without weights."""
    with torch.device("meta"):
        return kind(type(config).from_dict(config.to_dict()))


def _difference(student: PreTrainedModel, built: PreTrainedModel, stack: str) -> str | None:
    """Name the first weight whose shape differs, or the first layer whose settings do (GPT-2 may scale by depth)."""
    expected, found = built.state_dict(), student.state_dict()
    key: str
    for key in {**expected, **found}:
        if _shape(expected, key) != _shape(found, key):
            return key
    for name, module in student.get_submodule(stack).named_modules():
        if _settings(module) != _settings(built.get_submodule(f"{stack}.{name}" if name else stack)):
            return f"{stack}.{name}"
    return None


def _settings(module: nn.Module) -> dict[str, object]:
    plain = bool | int | float | str | None
    return {k: v for k, v in vars(module).items() if isinstance(v, plain) and k != "training" and not k.startswith("_")}


def _shape(state: dict[str, torch.Tensor], key: str) -> torch.Size | None:
    return state[key].shape if key in state else None
