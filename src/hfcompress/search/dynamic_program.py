"""The least loss within a time, one option a layer: an exact dynamic program over layers, pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hfcompress.models.blocks import Shape

_STATES = 2048  # kept after each layer; more are thinned by their time


@dataclass(frozen=True)
class Option:
    """What may be left of a layer.

    Attributes:
        shape: How many heads and neurons; None if the layer is left out.
        loss: What is lost.
        time: What it takes.
    """

    shape: Shape | None
    loss: float
    time: float


def least_loss(layers: Sequence[Sequence[Option]], limit: float) -> list[Option] | None:
    """Choose an option for each layer, so that the least is lost within a time.

    It is the knapsack with one choice a layer that SPDY and ZipLM solve (Frantar and Alistarh 2022,
    https://arxiv.org/abs/2201.13096, section 3.1; Kurtic et al. 2023, https://arxiv.org/abs/2302.04089), but over the
    times themselves instead of steps of time: after each layer only those sums stay that no other one beats in both
    loss and time. Of more than 2,048 of them some are left out, evenly over the time.

    Args:
        layers: The options of each layer.
        limit: The sum of the times at most.

    Returns:
        One option a layer; None if even the fastest take longer.

    Example:
        >>> both = [Option((1, 8), loss=5.0, time=1.0), Option((2, 8), loss=0.0, time=3.0)]
        >>> [one.shape for one in least_loss([both, [Option((1, 8), 1.0, 1.0), Option((2, 8), 0.0, 3.0)]], 4.0)]
        [(2, 8), (1, 8)]
    """
    fastest = [min(option.time for option in options) for options in layers]
    later = [sum(fastest[index + 1 :]) for index in range(len(layers))]
    slack = 1e-9 * max(limit, 1e-300)
    times, losses = np.zeros(1), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []  # by layer, of each sum: which sum it continues, by which option
    for options, rest in zip(layers, later, strict=True):
        time = (times[:, None] + np.array([option.time for option in options])).ravel()
        loss = (losses[:, None] + np.array([option.loss for option in options])).ravel()
        within = np.flatnonzero(time + rest <= limit + slack)
        if not len(within):
            return None
        order = within[np.lexsort((loss[within], time[within]))]
        before = np.concatenate([[np.inf], np.minimum.accumulate(loss[order])[:-1]])
        order = _thin(order[loss[order] < before], time)
        trail.append((order // len(options), order % len(options)))
        times, losses = time[order], loss[order]
    index, chosen = len(losses) - 1, []  # the slowest one loses the least
    for options, (parents, picks) in zip(reversed(layers), reversed(trail), strict=True):
        chosen.append(options[picks[index]])
        index = parents[index]
    return chosen[::-1]


def undominated(options: Iterable[Option]) -> list[Option]:
    """Leave out the options that lose no less than a faster one."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda one: (one.time, one.loss)):
        if not kept or option.loss < kept[-1].loss:
            kept.append(option)
    return kept


def _thin(order: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Keep the last of the sums in each step of time, and the fastest of all."""
    if len(order) <= _STATES:
        return order
    steps = np.linspace(time[order[0]], time[order[-1]], _STATES)
    last = np.searchsorted(time[order], steps, side="right") - 1
    return order[np.unique(last)]
