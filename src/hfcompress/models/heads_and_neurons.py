"""Attention heads and feed-forward neurons: the groups of weights that can be removed together, found in a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from torch import nn
from transformers.pytorch_utils import Conv1D

from hfcompress.errors import CompressionError
from hfcompress.models.architectures import (
    ATTENTION,
    FEED_FORWARD,
    HEAD_COUNTS,
    HEAD_SIZES,
    SHARED_LAYERS,
    WIDTH_ATTRIBUTES,
    Attention,
)
from hfcompress.models.layers import layer_stacks

Kind = Literal["heads", "neurons"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_UP_TO_LAYER = re.compile(r"([^ ,]*\.\d+)(\.[^ ,]*)?")  # of a path, the part up to its last number
_STACK = re.compile(r"\.\d+(\.|$)")  # behind the name of a stack
Modules = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Slice:
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
class Counts:
    """An attribute of a module that counts heads or neurons, and what one of them counts for."""

    module: str
    attribute: str
    each: int


@dataclass(frozen=True)
class Group:
    """Heads or neurons of one block, each of which can be removed from all its slices.

    Attributes:
        name: The layer, or the block where a layer has several; with a comma where several can only be pruned together.
        count: How many heads or neurons there are.
        slices: Where they are.
        counters: What counts them.
    """

    kind: ClassVar[Kind]
    name: str
    count: int
    slices: tuple[Slice, ...]
    counters: tuple[Counts, ...] = ()

    @property
    def consumers(self) -> tuple[Slice, ...]:
        """The slices whose modules consume what the heads or neurons compute."""
        return tuple(part for part in self.slices if not part.outputs)


@dataclass(frozen=True)
class HeadGroup(Group):
    """Attention heads; under grouped queries a head is a key-value head with all its queries.

    Attributes:
        scores: Multiplications that one head adds for each pair of tokens.
    """

    kind = "heads"
    scores: int = 0


@dataclass(frozen=True)
class NeuronGroup(Group):
    """Neurons of a feed-forward block.

    Attributes:
        tokens_first: Whether the block computes in the shape (tokens, batch, width).
    """

    kind = "neurons"
    tokens_first: bool = False


def queries_per_head(group: Group) -> int:
    """Return how many heads of queries share one of keys and values."""
    made = [part for part in group.slices if part.outputs]
    return group.consumers[0].size // made[min(1, len(made) - 1)].size if len(made) > 1 else 1


@dataclass(frozen=True)
class LinearPath:
    """Outputs of a module that another one reads with nothing between but sums over tokens and factors of a gate.

    Attributes:
        kind: ``"values"`` of attention, or ``"neurons"`` behind a gate.
        count: Heads, or neurons.
        producer: Where they are made; of several repeats, the last is meant.
        consumer: Where they are read; under grouped queries, several times in a row for each head.
    """

    kind: Literal["values", "neurons"]
    count: int
    producer: Slice
    consumer: Slice


def find_linear_paths(model: nn.Module) -> list[LinearPath]:
    """Find the values and the neurons behind a gate of an unwrapped classifier, where a record describes its layers."""
    modules, found = dict(model.named_modules()), list[LinearPath]()
    for block in ATTENTION:
        for layer in _layers_with(modules, (*block.projections, block.output)):
            with suppress(CompressionError):
                group = _head_group(modules, layer, block)
                made = group.slices[len(block.projections) - 1]
                found.append(LinearPath("values", group.count, made, group.slices[-1]))
    with suppress(CompressionError):
        for neurons in _find_neurons(modules):
            made, read = neurons.slices[-2:]
            if len(neurons.slices) > 2 or made.repeats > 1:
                found.append(LinearPath("neurons", neurons.count, made, read))
    return found


def find_groups(model: nn.Module, kind: Kind) -> list[Group]:
    """Find the heads or the neurons of every layer of an unwrapped classifier, in model order.

    Returns:
        One group a block; fewer where layers share weights, or where the same heads must stay in all layers.

    Raises:
        CompressionError: The architecture has no record that fits.
    """
    modules = dict(model.named_modules())
    stacks = layer_stacks(model)
    found = _find_heads(modules) if kind == "heads" else _find_neurons(modules)
    if not found:
        raise CompressionError(
            f"The {kind} of {type(model).__name__} have no known layout (see ARCHITECTURES); leave them out ({kind}=0) "
            "or make the model smaller by layers (drop_layers=, student_from_teacher)."
        )
    layers = [f"{stack}.{index}." for stack, count in stacks.items() for index in range(count)]
    held = {layer for layer in layers if any(p.module.startswith(layer) for group in found for p in group.slices)}
    shared = any(name.rpartition(".")[2] in SHARED_LAYERS for name in modules)
    if len(held) < len(layers) and not shared:
        raise CompressionError(
            f"{type(model).__name__} has {len(layers)} layers, and the {kind} of only {len(held)} have a known layout "
            f"(see ARCHITECTURES); leave them out ({kind}=0)."
        )
    order = {name: index for index, name in enumerate(modules)}
    return name_by_layer(sorted(found, key=lambda group: order[group.slices[0].module]))


def has_layout(model: nn.Module, kind: Kind) -> bool:
    """Whether some record of ARCHITECTURES describes the heads or the neurons of a model, right or wrong."""
    modules = dict(model.named_modules())
    paths = (
        [(*b.projections, b.output) for b in ATTENTION] if kind == "heads" else [(*b.up, b.down) for b in FEED_FORWARD]
    )
    return any(True for block in paths for _ in _layers_with(modules, block))


def neuron_group(modules: Modules, up: Sequence[str], down: str, *, tokens_first: bool = False) -> NeuronGroup:
    """Describe the neurons between modules that make them and the one that consumes them.

    With a gate there are two modules in ``up``, or one twice as wide; ``tokens_first`` is as for `NeuronGroup`.

    Raises:
        CompressionError: The widths do not fit together, or a module is not a plain one.
    """
    count = _width(modules, down, outputs=False)
    repeats = 2 if len(up) == 1 and _width(modules, up[0], outputs=True) == 2 * count else 1  # with a gate beside
    slices = [Slice(path, True, 1, repeats) for path in up] + [Slice(down, False)]
    around = up[0].rpartition(".")[0]
    counters = tuple(Counts(around, n, 1) for n in WIDTH_ATTRIBUTES if getattr(modules[around], n, None) == count)
    return NeuronGroup(around, count, _checked(modules, slices, count), counters, tokens_first)


def _layers_with(modules: Modules, paths: Sequence[str]) -> Iterator[str]:
    """Prefixes of all layers with a module at each of these paths."""
    for name in modules:
        if name == paths[0] or name.endswith(f".{paths[0]}"):
            layer = name[: len(name) - len(paths[0])]  # with its last dot
            if all(f"{layer}{path}" in modules for path in paths):
                yield layer


def _find_neurons(modules: Modules) -> list[Group]:
    found: dict[str, Group] = {}
    for block in FEED_FORWARD:
        for layer in _layers_with(modules, (*block.up, block.down)):
            up = [f"{layer}{path}" for path in block.up]
            found[up[0]] = neuron_group(modules, up, f"{layer}{block.down}", tokens_first=block.tokens_first)
    return list(found.values())


def _find_heads(modules: Modules) -> list[Group]:
    together: dict[str, list[HeadGroup]] = {}  # by what they share: a module of their own, or the bias of a stack
    biases: dict[str, str] = {}
    for block in ATTENTION:
        for layer in _layers_with(modules, (*block.projections, block.output)):
            group = _head_group(modules, layer, block)
            key = group.slices[0].module
            if block.shared_bias:
                key = f"{_STACK.split(key)[0]} {block.projections[0]}"
                biases[key] = block.shared_bias
            together.setdefault(key, []).append(group)
    return [_joined(modules, groups, biases[key]) if key in biases else groups[0] for key, groups in together.items()]


def _head_group(modules: Modules, layer: str, block: Attention) -> HeadGroup:
    attention = f"{layer}{block.projections[0]}".rpartition(".")[0]
    around: Any = modules[attention]
    head = next((getattr(around, name) for name in HEAD_SIZES if hasattr(around, name)), 0)
    fused = len(block.projections) == 1
    widths = [_width(modules, f"{layer}{p}", outputs=True) // (3 if fused else 1) for p in block.projections]
    count = widths[-1] // head if head else 0
    if not count or any(width % (count * head) for width in widths):
        raise CompressionError(
            f"The heads of {attention} have no known layout (see ARCHITECTURES): widths {widths}, head size {head}."
        )
    more = [path for path in block.per_head if f"{layer}{path}" in modules]
    slices = [
        Slice(f"{layer}{path}", True, width // count, 3 if fused else 1)
        for path, width in zip([*block.projections, *more], widths + [widths[0]] * len(more), strict=True)
    ]
    slices.append(Slice(f"{layer}{block.output}", False, widths[0] // count))
    known = {part.module for part in slices}
    for name, module in around.named_children():
        if isinstance(module, nn.Linear) and f"{attention}.{name}" not in known and module.out_features == widths[0]:
            raise CompressionError(
                f"{attention}.{name} may belong to the heads, which have no known layout then (see ARCHITECTURES); "
                "leave them out (heads=0)."
            )
    counters = tuple(
        Counts(attention, name, getattr(around, name) // count)
        for name in HEAD_COUNTS
        if getattr(around, name, None) and getattr(around, name) % count == 0
    )
    scores = widths[0] // count * 2  # the products of queries and keys, and the sums of values
    return HeadGroup(attention, count, _checked(modules, slices, count), counters, scores)


def _joined(modules: Modules, groups: Sequence[HeadGroup], bias: str) -> HeadGroup:
    """The heads of all layers of a stack as one, because each adds the same number of a shared bias."""
    count = groups[0].count
    slices = [part for group in groups for part in group.slices]
    counters = [counter for group in groups for counter in group.counters]
    stack = _STACK.split(groups[0].name)[0].rpartition(".")[0]
    for holder in (stack, *(group.name for group in groups)):
        if isinstance(modules.get(f"{holder}.{bias}"), nn.Embedding):
            slices.append(Slice(f"{holder}.{bias}", True))
    counters += [Counts(stack, name, 1) for name in HEAD_COUNTS if getattr(modules[stack], name, None) == count]
    names, scores = ", ".join(group.name for group in groups), sum(group.scores for group in groups)
    return HeadGroup(names, count, _checked(modules, slices, count), tuple(counters), scores)


def name_by_layer(groups: Sequence[Group]) -> list[Group]:
    """Name each group by its layer, unless a layer has several."""
    names = [_UP_TO_LAYER.sub(r"\1", group.name) for group in groups]
    twice = {name for name, times in Counter(names).items() if times > 1}
    return [group if name in twice else replace(group, name=name) for group, name in zip(groups, names, strict=True)]


def _checked(modules: Modules, slices: Sequence[Slice], count: int) -> tuple[Slice, ...]:
    for part in slices:
        width = _width(modules, part.module, outputs=part.outputs)
        if width != count * part.size * part.repeats:
            raise CompressionError(
                f"{part.module} has {width} {'outputs' if part.outputs else 'inputs'}, not {count} times {part.size} "
                f"times {part.repeats}: no known layout (see ARCHITECTURES)."
            )
    return tuple(slices)


def _width(modules: Modules, name: str, *, outputs: bool) -> int:
    module: Any = modules[name]
    if not isinstance(module, nn.Linear | Conv1D | nn.Embedding) or module._modules:
        raise CompressionError(
            f"{name} is a {type(module).__name__}, not a plain nn.Linear or Conv1D; merge adapters and undo "
            "quantization before heads or neurons are removed."
        )
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    return int(module.weight.shape[weight_axis(module, outputs=outputs)])


def weight_axis(module: nn.Module, *, outputs: bool) -> int:
    """Return the axis of a weight that outputs or inputs run along: ``nn.Linear`` stores outputs first, others last."""
    return int(outputs) if isinstance(module, Conv1D | nn.Embedding) else int(not outputs)
