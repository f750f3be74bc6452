"""What a shrunken model may cost: FLOPs, parameters or latency, and how to come within it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfcompress.errors import CompressionError
from hfcompress.models.blocks import Block, find_blocks, grid, shaped
from hfcompress.models.heads_and_neurons import Group, HeadGroup
from hfcompress.models.inputs import dummy_inputs
from hfcompress.models.layers import layer_stacks
from hfcompress.models.profiling import (
    TimeTable,
    count_calls,
    count_flops,
    count_parameters,
    milliseconds,
    tabulate_times,
)
from hfcompress.shrink.selection import select_for_budget
from hfcompress.shrink.verified_removal import Removal, removed

Measure = Literal["flops", "parameters", "latency"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
_LOWER = 0.98  # of the corrected share is what the next try aims at, as times vary
_TRIES = 4  # to meet a latency, each with a corrected aim
_GRID = 4  # numbers of heads, and of neurons, that are timed


class BudgetError(CompressionError):
    """Even the fewest heads and neurons that must stay cost more than the budget."""


@dataclass(frozen=True)
class Budget:
    """What share of a model's cost to keep at most.

    Attributes:
        measure: ``"flops"`` and ``"latency"`` of a text of 128 tokens, or ``"parameters"`` of the full model.
        share: In (0, 1).
        full: The model that the share is of, which may have more layers.
        cost: Its FLOPs or parameters; its latency is measured beside that of what is left.
        plain: Whether the same number is left in each layer.
    """

    measure: Measure
    share: float
    full: PreTrainedModel
    cost: int
    plain: bool

    def select(
        self,
        model: PreTrainedModel,
        groups: Sequence[Group],
        score: Callable[[Sequence[Group]], Sequence[Tensor]],
        **options: Any,
    ) -> tuple[Removal, tuple[float, float] | None]:
        """Select what must be removed to come within the budget, by trying it.

        Args:
            model: As it is before heads and neurons are removed, to which it comes back.
            groups: Its heads and neurons.
            score: Tells how much each of them matters, shapes (count,). Called once it is known that they suffice.
            **options: As for `select_for_budget`.

        Returns:
            What to remove; and for latency the milliseconds before and after.

        Raises:
            BudgetError: It cannot be met.
        """
        costs = self._costs(model, groups)
        measure = partial(self._measure, model)
        unranked = [torch.zeros(group.count) for group in groups]
        pair = measure(select_for_budget(groups, unranked, costs, math.inf, **options))
        if not self._is_met(*pair):
            raise BudgetError(self._refusal(model, *pair))
        choose = partial(select_for_budget, groups, score(groups), costs, **options)
        if self.measure == "latency":
            most = sum(each * group.count for each, group in zip(costs, groups, strict=True))
            blocks = find_blocks(model, groups)
            return self._meet_latency(model, blocks, self._times(model, blocks), most, choose, measure)
        return self._meet_count(self._count(model) - self.share * self.cost, choose, measure), None

    def _count(self, model: PreTrainedModel) -> int:
        return count_parameters(model) if self.measure == "parameters" else count_flops(model, dummy_inputs(model))

    def _measure(self, model: PreTrainedModel, removal: Removal) -> tuple[float, float]:
        """Return what the full model costs, and what this one without some heads and neurons does."""
        latency = self.measure == "latency"
        before = milliseconds(self.full) if latency else self.cost
        with removed(model, removal):
            return before, milliseconds(model) if latency else self._count(model)

    def _is_met(self, before: float, after: float) -> bool:
        return after <= self.share * before

    def _refusal(self, model: PreTrainedModel, before: float, after: float) -> str:
        latency, layers = self.measure == "latency", list(layer_stacks(model).values())
        asked = f"latency={self.share}" if latency else f"A budget of {self.share * before:,.0f} {self.measure}"
        fewest = "the fewest that must stay in each layer"
        if layers == [1]:
            fewest = "one layer and the fewest that must stay in it"
        left = f", {after / before:.2f} of the time is left" if latency else f" {after:,} are left"
        drop = ""
        if len(layers) == 1 < layers[0]:
            drop = f", or drop layers {'before' if latency else 'too'} (drop_layers=)"
        other = ", or leave out plain=True, with which only some heads and neurons can be removed" if self.plain else ""
        return f"{asked} cannot be met by removing heads and neurons: with {fewest}{left}; ask for more{drop}{other}."

    def _costs(self, model: nn.Module, groups: Sequence[Group]) -> list[int]:
        """Return what removing one head or neuron of each group saves: parameters, or else FLOPs."""
        if self.measure == "parameters":
            return [parameters_per_unit(model, group) for group in groups]
        tokens = dummy_inputs(model)["input_ids"].shape[1]
        calls = count_calls(model, [group.consumers[0].module for group in groups])
        return [flops_per_unit(model, group, tokens, each) for group, each in zip(groups, calls, strict=True)]

    def _meet_count(
        self, surplus: float, choose: Callable[[float], Removal], measure: Callable[[Removal], tuple[float, float]]
    ) -> Removal:
        step, everything = 1, choose(math.inf)
        while True:
            removal = choose(surplus)
            before, after = measure(removal)
            if self._is_met(before, after) or removal == everything:
                return removal
            # What a unit costs is known but for what does not depend on the text (DeBERTa's positions).
            surplus, step = surplus + step * (after - self.share * before), 2 * step

    def _times(self, model: PreTrainedModel, blocks: Sequence[Block]) -> TimeTable:
        """Time layers by their heads and neurons, as shares of the full model's time, which is measured beside each."""
        heads, neurons = (max(counts) for counts in zip(*(block.shape for block in blocks), strict=True))

        def time_layers(shapes: Sequence[tuple[int, int]]) -> float:
            full = milliseconds(self.full)
            with shaped(model, blocks, shapes):
                return milliseconds(model) / full

        return tabulate_times(time_layers, len(blocks), grid(heads, 1, _GRID), grid(neurons, 1, _GRID))

    def _meet_latency(
        self,
        model: PreTrainedModel,
        blocks: Sequence[Block],
        times: TimeTable,
        most: float,
        choose: Callable[[float], Removal],
        measure: Callable[[Removal], tuple[float, float]],
    ) -> tuple[Removal, tuple[float, float]]:
        """Save as few FLOPs as bring the time within the share by the table, and then as it is measured."""
        aim, nothing = self.share, _shapes_left(blocks, choose(0.0))
        for _ in range(_TRIES):
            low, high = 0.0, 0.0 if times.model(nothing) <= aim else most  # 0: fewer layers were enough
            while high - low > most / 1000:
                surplus = (low + high) / 2
                predicted = times.model(_shapes_left(blocks, choose(surplus)))
                low, high = (low, surplus) if predicted <= aim else (surplus, high)
            removal = choose(high)
            pair = measure(removal)
            if self._is_met(*pair):
                return removal, pair
            aim *= _LOWER * self.share * pair[0] / pair[1]
        for _ in range(_TRIES):  # the table is far off: halfway to all that can be removed, and again
            high = (high + most) / 2
            removal = choose(high)
            pair = measure(removal)
            if self._is_met(*pair):
                return removal, pair
        removal = choose(most)
        pair = measure(removal)
        if not self._is_met(*pair):
            raise BudgetError(self._refusal(model, *pair))
        return removal, pair


def _shapes_left(blocks: Sequence[Block], removal: Removal) -> list[tuple[float, float]]:
    """Return how many heads and neurons are left in each block, of several groups the mean."""
    left = {group: group.count - len(removal.get(group, ())) for block in blocks for group in block.heads}
    left |= {group: group.count - len(removal.get(group, ())) for block in blocks for group in block.neurons}

    def mean(groups: Sequence[Group]) -> float:
        return sum(left[group] for group in groups) / max(1, len(groups))

    return [(mean(block.heads), mean(block.neurons)) for block in blocks]


def parameters_per_unit(model: nn.Module, group: Group) -> int:
    """Return the parameters that one head or neuron takes."""
    total = 0
    for part in group.slices:
        module: Any = model.get_submodule(part.module)
        total += (count_parameters(module) if part.outputs else module.weight.numel()) // group.count
    return total


def flops_per_unit(model: nn.Module, group: Group, tokens: int, calls: int) -> int:
    """Return the floating-point operations of one head or neuron for a text of so many tokens, called so many times."""
    modules: list[Any] = [model.get_submodule(part.module) for part in group.slices]
    matrices = sum(m.weight.numel() // group.count for m in modules if not isinstance(m, nn.Embedding))
    scores = group.scores if isinstance(group, HeadGroup) else 0
    flops: int = calls * (2 * tokens * matrices + 2 * tokens * tokens * scores)
    return flops
