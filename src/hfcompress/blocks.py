"""Attention heads and intermediate neurons: where their weights are in a classifier, and cutting them out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hfcompress.errors import CompressionError
from hfcompress.layers import layer_stack

Kind = Literal["heads", "neurons"]
# Paths within a layer: what makes the queries, keys and values (or all three side by side), what else is made for each
# head, and what reads the heads' answers.
_ATTENTION: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (("attention.self.query", "attention.self.key", "attention.self.value"), (), "attention.output.dense"),
    (("attention.query", "attention.key", "attention.value"), (), "attention.dense"),
    (("attention.q_lin", "attention.k_lin", "attention.v_lin"), (), "attention.out_lin"),
    (("attention.attn.q", "attention.attn.k", "attention.attn.v"), (), "attention.attn.o"),
    (
        ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
        ("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
        "attention.output.dense",
    ),
    (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), (), "self_attn.o_proj"),
    (("attn.c_attn",), (), "attn.c_proj"),
    (("attn.Wqkv",), (), "attn.Wo"),
)
# What makes the intermediate neurons (two side by side: with a gate), and what reads them.
_FEED_FORWARD: tuple[tuple[tuple[str, ...], str], ...] = (
    (("intermediate.dense",), "output.dense"),
    (("ffn",), "ffn_output"),
    (("ffn.lin1",), "ffn.lin2"),
    (("mlp.c_fc",), "mlp.c_proj"),
    (("mlp.Wi",), "mlp.Wo"),
    (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
)
_HEAD_SIZES = ("attention_head_size", "head_dim")
_COUNTS = ("num_attention_heads", "num_heads", "n_heads", "num_key_value_heads", "all_head_size", "split_size")
_WIDTHS = ("intermediate_size",)
_SHARED_BIAS = "relative_attention_bias"  # MPNet's: one number a head, the same in all layers
Undo = Callable[[], None]


@dataclass(frozen=True)
class Part:
    """A dimension of one weight that heads or neurons run along.

    Attributes:
        module: Name of the ``nn.Linear``, ``Conv1D`` or ``nn.Embedding``.
        outputs: Whether it is the dimension of its outputs (with the bias), or that of its inputs.
        size: How many consecutive numbers belong to one head or neuron.
        repeats: How many times all of them follow each other (fused queries, keys and values: 3).
    """

    module: str
    outputs: bool
    size: int = 1
    repeats: int = 1


@dataclass(frozen=True)
class Units:
    """The heads or the neurons of one block, each of which can be cut out of all their parts.

    Attributes:
        kind: ``"heads"`` or ``"neurons"``.
        name: Name of the layer; of several with a comma where they can only be cut together.
        count: How many there are; under grouped queries a head is a key-value head with all its queries.
        parts: Where they are.
        counters: Names of modules and their attributes that count them, and what one of them counts for.
        scores: Numbers that one of them adds to the attention's scores for each pair of tokens: 0 for neurons.
    """

    kind: Kind
    name: str
    count: int
    parts: tuple[Part, ...]
    counters: tuple[tuple[str, str, int], ...] = ()
    scores: int = 0

    @property
    def readers(self) -> tuple[Part, ...]:
        """The parts that read what the heads or neurons say."""
        return tuple(part for part in self.parts if not part.outputs)


def find_units(model: nn.Module, kind: Kind) -> list[Units]:
    """Find the heads or the neurons of every layer, in model order.

    Args:
        model: A classifier, not wrapped.
        kind: ``"heads"`` or ``"neurons"``.

    Returns:
        One entry a layer; fewer where layers share weights.

    Raises:
        CompressionError: The architecture is not understood.
    """
    modules = dict(model.named_modules())
    found = []
    for name in modules:
        for pattern in _ATTENTION if kind == "heads" else _FEED_FORWARD:
            first = pattern[0][0]
            if name != first and not name.endswith(f".{first}"):
                continue
            layer = name[: len(name) - len(first)]  # with its last dot
            if all(f"{layer}{path}" in modules for path in (*pattern[0], pattern[-1])):
                found.append(
                    _heads(modules, layer, *pattern) if len(pattern) == 3 else _neurons(modules, layer, *pattern)
                )
    if not found or Counter(units.name for units in found).most_common(1)[0][1] > 1:
        raise CompressionError(
            f"The {kind} of {type(model).__name__} are built in a way that is not known; leave them out ({kind}=0), or "
            "make the model smaller by layers (drop_layers=, student_from_teacher)."
        )
    if "AlbertLayer" not in {type(module).__name__ for module in modules.values()}:  # which it calls many times
        layers = layer_stack(model)[1]
        if len(found) != layers:
            raise CompressionError(
                f"{type(model).__name__} has {layers} layers, and the {kind} of only {len(found)} are built in a known "
                f"way; leave them out ({kind}=0)."
            )
    bias = [name for name in modules if name.rpartition(".")[2] == _SHARED_BIAS]
    return [_together(found, bias[0], modules)] if bias and kind == "heads" else found


def cut(model: nn.Module, units: Units, kept: Sequence[int]) -> Undo:
    """Keep only these heads or neurons, in place.

    Args:
        model: In which the units were found; its weights may be on the meta device.
        units: The heads or neurons of a block.
        kept: Indices of those that stay, ascending.

    Returns:
        A function that puts everything back.
    """
    before: list[tuple[Any, str, Any]] = []

    def put(holder: Any, name: str, value: Any) -> None:
        before.append((holder, name, getattr(holder, name)))
        setattr(holder, name, value)

    for part in units.parts:
        module: Any = model.get_submodule(part.module)
        index = _positions(part, units.count, kept)
        # nn.Linear stores outputs first, Conv1D inputs first; an embedding's outputs are its columns.
        dim = int(part.outputs) if isinstance(module, Conv1D | nn.Embedding) else int(not part.outputs)
        put(module, "weight", _select(module.weight, dim, index))
        if part.outputs and getattr(module, "bias", None) is not None:
            put(module, "bias", _select(module.bias, 0, index))
        size = {Conv1D: ("nf", "nx"), nn.Embedding: ("embedding_dim", "")}.get(
            type(module), ("out_features", "in_features")
        )
        put(module, size[0] if part.outputs else size[1], len(index))
    for name, attribute, each in units.counters:
        put(model.get_submodule(name), attribute, each * len(kept))

    def undo() -> None:
        for holder, name, value in reversed(before):
            setattr(holder, name, value)

    return undo


@contextmanager
def masked(model: nn.Module, masks: Sequence[tuple[Units, Tensor]]) -> Iterator[None]:
    """Multiply what heads or neurons say with masks, while the context lasts.

    Args:
        model: In which the units were found.
        masks: For each units a tensor of shape (count,), or (batch, 1, count) for each example its own.
    """
    hooks = []
    for units, mask in masks:
        for part in units.readers:
            spread = mask.repeat_interleave(part.size, dim=-1)

            def multiply(module: nn.Module, inputs: tuple[Any, ...], spread: Tensor = spread) -> tuple[Any, ...]:
                return inputs[0] * spread.to(inputs[0].dtype), *inputs[1:]

            hooks.append(model.get_submodule(part.module).register_forward_pre_hook(multiply))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def parameters_of(model: nn.Module, units: Units) -> int:
    """Parameters that one head or neuron takes."""
    total = 0
    for part in units.parts:
        module: Any = model.get_submodule(part.module)
        length = units.count * part.size * part.repeats
        numbers = module.weight.numel() + (part.outputs and getattr(module, "bias", None) is not None) * length
        total += numbers // units.count
    return total


def flops_of(model: nn.Module, units: Units, tokens: int, calls: int) -> int:
    """Floating-point operations of one head or neuron for a text of so many tokens, called so many times."""
    modules: list[Any] = [model.get_submodule(part.module) for part in units.parts]
    matrices = sum(m.weight.numel() // units.count for m in modules if not isinstance(m, nn.Embedding))
    flops: int = calls * (2 * tokens * matrices + 2 * tokens * tokens * units.scores)
    return flops


def _heads(
    modules: dict[str, nn.Module], layer: str, made: tuple[str, ...], others: tuple[str, ...], reader: str
) -> Units:
    attention = f"{layer}{made[0]}".rpartition(".")[0]
    around: Any = modules[attention]
    head = next((getattr(around, name) for name in _HEAD_SIZES if hasattr(around, name)), 0)
    fused = len(made) == 1
    widths = [_width(modules, f"{layer}{path}", outputs=True) // (3 if fused else 1) for path in made]
    count = widths[-1] // head if head else 0
    if not count or any(width % (count * head) for width in widths):
        raise CompressionError(f"The attention heads of {layer.rstrip('.')} are not understood: widths {widths}.")
    more = [path for path in others if f"{layer}{path}" in modules]
    parts = [
        Part(f"{layer}{path}", True, width // count, 3 if fused else 1)
        for path, width in zip([*made, *more], widths + [widths[0]] * len(more), strict=True)
    ]
    parts.append(Part(f"{layer}{reader}", False, widths[0] // count))
    known = {part.module for part in parts}
    for name, module in around.named_children():
        if isinstance(module, nn.Linear) and f"{attention}.{name}" not in known and module.out_features == widths[0]:
            raise CompressionError(
                f"{attention}.{name} may belong to the heads in a way that is not known; leave them out (heads=0)."
            )
    counters = tuple(
        (attention, name, getattr(around, name) // count)
        for name in _COUNTS
        if getattr(around, name, None) and getattr(around, name) % count == 0
    )
    scores = widths[0] // count * 2  # the products of queries and keys, and the sums of values
    return Units("heads", layer.rstrip("."), count, _checked(modules, parts, count), counters, scores)


def _neurons(modules: dict[str, nn.Module], layer: str, made: tuple[str, ...], reader: str) -> Units:
    count = _width(modules, f"{layer}{reader}", outputs=False)
    repeats = max(1, _width(modules, f"{layer}{made[0]}", outputs=True) // max(1, count))  # 2: with a gate beside
    parts = [Part(f"{layer}{path}", True, 1, repeats) for path in made] + [Part(f"{layer}{reader}", False)]
    around = f"{layer}{made[0]}".rpartition(".")[0]
    counters = tuple((around, name, 1) for name in _WIDTHS if getattr(modules[around], name, None) == count)
    return Units("neurons", layer.rstrip("."), count, _checked(modules, parts, count), counters)


def _together(found: list[Units], bias: str, modules: dict[str, nn.Module]) -> Units:
    """The heads of all layers as one, because each adds the same number of the shared bias."""
    count = found[0].count
    parts = [part for units in found for part in units.parts] + [Part(bias, True)]
    counters = [counter for units in found for counter in units.counters]
    holder = bias.rpartition(".")[0]
    if getattr(modules[holder], "n_heads", None) == count:
        counters.append((holder, "n_heads", 1))
    names, scores = ", ".join(units.name for units in found), sum(units.scores for units in found)
    return Units("heads", names, count, _checked(modules, parts, count), tuple(counters), scores)


def _checked(modules: dict[str, nn.Module], parts: list[Part], count: int) -> tuple[Part, ...]:
    for part in parts:
        width = _width(modules, part.module, outputs=part.outputs)
        if width != count * part.size * part.repeats:
            raise CompressionError(
                f"{part.module} has {width} {'outputs' if part.outputs else 'inputs'}, not {count} times {part.size} "
                f"times {part.repeats}: it is built in a way that is not known."
            )
    return tuple(parts)


def _width(modules: dict[str, nn.Module], name: str, *, outputs: bool) -> int:
    module: Any = modules[name]
    if type(module) not in (nn.Linear, Conv1D, nn.Embedding):
        raise CompressionError(
            f"{name} is a {type(module).__name__}, not a plain nn.Linear or Conv1D; merge adapters and undo "
            "quantization before heads or neurons are removed."
        )
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    dim = int(outputs) if isinstance(module, Conv1D) else int(not outputs)
    return int(module.weight.shape[dim])


def _positions(part: Part, count: int, kept: Sequence[int]) -> Tensor:
    one = (torch.tensor(list(kept), dtype=torch.long)[:, None] * part.size + torch.arange(part.size)).flatten()
    return (torch.arange(part.repeats)[:, None] * count * part.size + one).flatten()


def _select(parameter: nn.Parameter, dim: int, index: Tensor) -> nn.Parameter:
    if parameter.is_meta:
        shape = [len(index) if axis == dim else size for axis, size in enumerate(parameter.shape)]
        chosen = parameter.new_empty(shape)
    else:
        chosen = parameter.detach().index_select(dim, index.to(parameter.device))
    return nn.Parameter(chosen, requires_grad=parameter.requires_grad)
