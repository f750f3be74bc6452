"""Models with fewer layers: students made of their teacher's own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, TypeGuard, TypeVar

from transformers import PreTrainedModel

from hfcompress.blocks import Undo
from hfcompress.errors import CompressionError
from hfcompress.layers import layer_stack
from hfcompress.plan import write_plan

_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers", "attention_window")  # one config value a layer
_NUMBERS = ("layer_idx", "layer_id")  # where a layer finds its part of the cache, or of the config

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
    keep_layers(student, name, kept)
    return student


def keep_layers(model: PreTrainedModel, stack_name: str, kept: Sequence[int]) -> Undo:
    """Keep only these layers of a model, in place; nothing is changed if it would not load again.

    Args:
        model: The model.
        stack_name: Name of its stack of layers.
        kept: Indices of those that stay, ascending.

    Returns:
        A function that puts everything back.

    Raises:
        CompressionError: What the model then saves would not load again.
    """
    stack: Any = model.get_submodule(stack_name)
    layers = list(stack)
    configs = list({id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values())
    before = [dict(vars(config)) for config in configs]
    numbered = [
        (module, key, getattr(module, key)) for module in stack.modules() for key in _NUMBERS if hasattr(module, key)
    ]

    def undo() -> None:
        stack._modules.clear()
        stack.extend(layers)
        for module, key, value in numbered:
            setattr(module, key, value)
        for config, values in zip(configs, before, strict=True):
            vars(config).clear()
            vars(config).update(values)

    stack._modules.clear()
    stack.extend(layers[index] for index in kept)
    for index, layer in enumerate(stack):
        for module in layer.modules():
            for key in _NUMBERS:
                if hasattr(module, key):
                    setattr(module, key, index)
    try:
        for config in configs:
            config.num_hidden_layers = len(kept)
            for key in _PER_LAYER:
                values = getattr(config, key, None)
                if isinstance(values, list | tuple) and len(values) == len(layers):
                    setattr(config, key, [values[index] for index in kept])
        write_plan(model)
    except Exception as error:  # also whatever an architecture's config or constructor says to this number of layers
        undo()
        raise CompressionError(
            f"A {type(model).__name__} of the layers {list(kept)} would not load again: {error} Choose other layers "
            "(often layer 0 must stay, or the pattern of the layers must repeat)."
        ) from error
    return undo


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
