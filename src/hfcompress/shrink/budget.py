"""What a shrunken model may cost: FLOPs, parameters or latency, and how to come within it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor, nn
from transformers import PreTrainedModel

from hfcompress.errors import CompressionError
from hfcompress.models.heads_and_neurons import Group, HeadGroup
from hfcompress.models.inputs import dummy_inputs
from hfcompress.models.profiling import count_calls, count_flops, count_parameters, milliseconds
from hfcompress.shrink.selection import select_for_budget
from hfcompress.shrink.verified_removal import Removal, removed

Measure = Literal["flops", "parameters", "latency"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
_TRIES = 8


@dataclass(frozen=True)
class Budget:
    """What share of a model's cost to keep at most.

    Attributes:
        measure: ``"flops"`` and ``"latency"`` of a text of 128 tokens, or ``"parameters"`` of the full model.
        share: In (0, 1).
        plain: Whether the same number is left in each layer.
    """

    measure: Measure
    share: float
    plain: bool = False

    def select(
        self, model: PreTrainedModel, groups: Sequence[Group], scores: Sequence[Tensor], cost: int, **options: Any
    ) -> tuple[Removal, tuple[float, float] | None]:
        """Select what must be removed to come within the budget, by trying it.

        Args:
            model: As it is before heads and neurons are removed, to which it comes back.
            groups: Its heads and neurons.
            scores: How much each of them matters, shape (count,).
            cost: FLOPs or parameters of the model that the share is of, which may have had more layers.
            **options: As for `select_for_budget`.

        Returns:
            What to remove; and for latency the milliseconds before and after.

        Raises:
            CompressionError: It cannot be met.
        """
        costs = self._costs(model, groups)
        choose = partial(select_for_budget, groups, scores, costs, **options)
        if self.measure == "latency":
            most = sum(each * group.count for each, group in zip(costs, groups, strict=True))
            return self._meet_latency(model, most, choose)
        return self._meet_count(model, self.share * cost, choose), None

    @property
    def _or_not_plain(self) -> str:
        return ", or leave out plain=True, with which only some heads and neurons can be removed" if self.plain else ""

    def _costs(self, model: nn.Module, groups: Sequence[Group]) -> list[int]:
        """Return what removing one head or neuron of each group saves: parameters, or else FLOPs."""
        if self.measure == "parameters":
            return [parameters_per_unit(model, group) for group in groups]
        tokens = dummy_inputs(model)["input_ids"].shape[1]
        calls = count_calls(model, [group.consumers[0].module for group in groups])
        return [flops_per_unit(model, group, tokens, each) for group, each in zip(groups, calls, strict=True)]

    def _meet_count(self, model: PreTrainedModel, allowed: float, choose: Callable[[float], Removal]) -> Removal:
        def count() -> int:
            return count_parameters(model) if self.measure == "parameters" else count_flops(model, dummy_inputs(model))

        surplus, step, everything = count() - allowed, 1, choose(math.inf)
        while True:
            removal = choose(surplus)
            with removed(model, removal):
                left = count()
            if left <= allowed:
                return removal
            if removal == everything:
                raise CompressionError(
                    f"A budget of {allowed:,.0f} {self.measure} cannot be met by removing heads and neurons: with the "
                    f"fewest that must stay in each layer {left:,} are left; ask for more, or drop layers too "
                    f"(drop_layers=){self._or_not_plain}."
                )
            # What a unit costs is known but for what does not depend on the text (DeBERTa's positions).
            surplus, step = surplus + step * (left - allowed), 2 * step

    def _meet_latency(
        self, model: PreTrainedModel, most: float, choose: Callable[[float], Removal]
    ) -> tuple[Removal, tuple[float, float]]:
        """Save as few FLOPs as bring the time within the share, by bisection; each is timed beside the full model."""
        low, high = 0.0, most
        best: tuple[Removal, tuple[float, float]] | None = None
        surplus = high  # first whether it can be met at all
        for _ in range(_TRIES):
            removal = choose(surplus)
            full = milliseconds(model)
            with removed(model, removal):
                small = milliseconds(model)
            if small <= self.share * full:
                best, high = (removal, (full, small)), surplus
            elif best is None:
                raise CompressionError(
                    f"latency={self.share} cannot be met by removing heads and neurons: with the fewest that must stay "
                    f"in each layer, {small / full:.2f} of the time is left; ask for more, or drop layers before "
                    f"(drop_layers=){self._or_not_plain}."
                )
            else:
                low = surplus
            surplus = (low + high) / 2
        assert best is not None
        return best


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
