"""The stacks of layers in a model, and what makes the queries, keys and values of a layer."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from hfcompress.errors import CompressionError
from hfcompress.models.architectures import LAYER_COUNTS, PROJECTION_NAMES
from hfcompress.models.classifier import get_config, unwrap


def layer_stacks(model: nn.Module) -> dict[str, int]:
    """Find the stacks of layers of a model, two in an encoder-decoder, by the number of layers in its config.

    Returns:
        By name of the ``nn.ModuleList`` below the wrappers, how many layers are in it; none where layers share weights.
    """
    config = get_config(model)
    counts = {getattr(config, name, None) for name in LAYER_COUNTS} - {None, 0}
    stacks = {n: len(m) for n, m in unwrap(model).named_modules() if isinstance(m, nn.ModuleList) and len(m) in counts}
    return {n: count for n, count in stacks.items() if not any(n.startswith(f"{other}.") for other in stacks)}


def layer_stack(model: nn.Module) -> tuple[str, int]:
    """Find the one stack of layers of a classifier: its name below the wrappers, and how many layers are in it.

    Raises:
        CompressionError: There is no such stack, or more than one.
    """
    stacks, config = layer_stacks(model), get_config(model)
    if len(stacks) != 1 or getattr(config, "is_encoder_decoder", False):
        count = getattr(config, "num_hidden_layers", None)
        raise CompressionError(
            f"{type(unwrap(model)).__name__} has {len(stacks)} stacks of num_hidden_layers={count} layers; exactly one "
            "is needed (encoder-decoders and models with shared layers have none)."
        )
    return next(iter(stacks.items()))


def attention_projections(model: nn.Module, layer: int) -> tuple[str, ...]:
    """Name the modules that make the queries, keys and values of a layer, by its index from 0 or from the end.

    Returns:
        Three names of modules below the wrappers, or one whose output is all three side by side.

    Raises:
        CompressionError: There is no such layer, or its attention has no known layout.
    """
    inner = unwrap(model)
    stack, count = layer_stack(inner)
    if not isinstance(layer, int) or not -count <= layer < count:
        raise CompressionError(f"{type(inner).__name__} has {count} layers, none with the index {layer!r}.")
    where = f"{stack}.{layer % count}"
    names = [name for name, _ in inner.get_submodule(where).named_modules()]
    for kinds in PROJECTION_NAMES:
        found = [[name for name in names if name.rpartition(".")[2] == kind] for kind in kinds]
        if all(len(hits) == 1 for hits in found):
            paths = tuple(f"{where}.{hits[0]}" for hits in found)
            if len(paths) == 3 or _is_three_parts(inner, paths[0]):
                return paths
    raise CompressionError(
        f"{where} of {type(inner).__name__} has no known attention layout (see ARCHITECTURES), so its queries, keys "
        "and values cannot be compared; leave out the attention relations (relation_weight=0)."
    )


def _is_three_parts(model: nn.Module, fused: str) -> bool:
    """Whether what a fused projection makes are queries, keys and values of one width, side by side."""
    module: Any = model.get_submodule(fused)
    around: Any = model.get_submodule(fused.rpartition(".")[0])
    if isinstance(module, Conv1D):
        return bool(getattr(around, "split_size", None) and module.nf == 3 * around.split_size)
    head = getattr(around, "head_dim", None)
    return bool(head and getattr(module, "out_features", 1) % (3 * head) == 0)
