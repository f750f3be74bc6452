"""Models with fewer layers: students made of their teacher's own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise, product
from typing import Any, TypeGuard, TypeVar

from transformers import PreTrainedModel

from hfcompress.errors import CompressionError
from hfcompress.models.architectures import DEPTH_SETTINGS, LAYER_INDICES, LAYER_PATTERNS, PER_LAYER_SETTINGS
from hfcompress.models.classifier import check_model_kind
from hfcompress.models.layers import layer_stack
from hfcompress.models.new_head import mark_new_head, new_head
from hfcompress.models.plain_weights import check_no_computed_weights, check_not_quantized
from hfcompress.models.shape_plan import check_builds_from_config
from hfcompress.models.shapes_in_config import get_configs, per_layer_overrides, restore_configs, write_plan
from hfcompress.validation import is_integer

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
    check_model_kind(teacher, "teacher")
    if not isinstance(teacher, PreTrainedModel):
        raise CompressionError(f"The teacher must be a transformers PreTrainedModel, not {type(teacher).__name__}.")
    check_builds_from_config(teacher)
    check_not_quantized(teacher, "shrunken")
    check_no_computed_weights(teacher, "shrunken")
    name, count = layer_stack(teacher)
    kept = _indices(layers, count)

    student: Model = copy.deepcopy(teacher)
    student.requires_grad_(True)
    keep_layers(student, name, kept, ExitStack())
    mark_new_head(student, new_head(teacher))
    return student


def keep_layers(model: PreTrainedModel, stack_name: str, kept: Sequence[int], undo: ExitStack) -> None:
    """Keep only the layers of a stack with these ascending indices, in place. Closing ``undo`` puts everything back.

    Raises:
        CompressionError: What the model then saves would not load again; it is as it was.
    """
    stack: Any = model.get_submodule(stack_name)
    layers = list(stack)
    try:
        with ExitStack() as own:
            configs = get_configs(model)
            moved = list(kept) != list(range(len(kept)))
            for config, key in product(configs, DEPTH_SETTINGS):
                if moved and getattr(config, key, False):  # whether the layer holds it, or looks it up when it runs
                    raise ValueError(f"{key}=True makes what a layer computes depend on its index.")
            restore_configs(configs, own)
            for config in configs:
                overrides = per_layer_overrides(config)
                if overrides:
                    config.per_layer_config = None
                config.num_hidden_layers = len(kept)
                if overrides:
                    config.per_layer_config = {n: overrides[k] for n, k in enumerate(kept) if k in overrides}
                for key in PER_LAYER_SETTINGS:
                    values = getattr(config, key, None)
                    if isinstance(values, list | tuple) and len(values) == len(layers):
                        setattr(config, key, [values[index] for index in kept])
                        if key in LAYER_PATTERNS:
                            setattr(config, LAYER_PATTERNS[key], [[getattr(config, key), 1]])
            own.callback(stack.extend, layers)
            own.callback(stack._modules.clear)
            stack._modules.clear()
            stack.extend(layers[index] for index in kept)
            for index, layer in enumerate(stack):
                for module, key in product(layer.modules(), LAYER_INDICES):
                    if getattr(module, key, None) is not None:  # as of HunYuan's feed-forward
                        own.callback(setattr, module, key, getattr(module, key))
                        setattr(module, key, index)
            write_plan(model)
            undo.push(own.pop_all())
    except Exception as error:  # also whatever a config or constructor raises for so many layers
        raise CompressionError(
            f"A {type(model).__name__} of the layers {list(kept)} would not load again: {error} Choose other layers "
            "(often layer 0 must stay, or the pattern of the layers must repeat)."
        ) from error


def are_indices(layers: object, count: int) -> TypeGuard[Sequence[int]]:
    """Whether these are indices of so many layers, negative ones counted from the end."""
    return isinstance(layers, Sequence) and all(is_integer(index) and -count <= index < count for index in layers)


def _indices(layers: object, count: int) -> list[int]:
    if is_integer(layers):
        wanted = int(layers)
        if not 1 <= wanted <= count:
            raise CompressionError(f"layers={wanted} must be between 1 and the teacher's {count}.")
        return [round(index * (count - 1) / max(1, wanted - 1)) for index in range(wanted)]
    if are_indices(layers, count) and layers:
        kept = [int(index) % count for index in layers]
        if all(one < other for one, other in pairwise(kept)):
            return kept
    raise CompressionError(
        f"layers={layers!r} must be a number from 1 to {count}, or ascending indices of the teacher's {count} layers."
    )
