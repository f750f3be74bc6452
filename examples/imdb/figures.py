"""Draws the paper's figures again, and accuracy against size and speed."""

from __future__ import annotations

import itertools
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.imdb.files import Result
from examples.imdb.intervals import mean_accuracy

BLUE, ORANGE = "#1f5fa8", "#d9731a"  # train, validation


def draw_epochs(entry: Result, output: Path) -> None:
    """Draw a system as the paper did: accuracy and loss of both sets over the epochs."""
    number = entry["paper"]["number"]
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_panel(left, entry, "accuracy", {"train": "train_accuracy", "validation": "eval_accuracy"})
    _draw_panel(right, entry, "loss", {"train": "train_loss", "validation": "eval_distillation_loss"})
    figure.suptitle(f"Figure {number}: {_plain(entry['title'])}, accuracy and loss over the epochs")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(output / f"figure-{number}.png", dpi=120)


def draw_costs(content: Result, output: Path) -> None:
    """Draw accuracy against size on disk, and against time of the systems that were timed."""
    entries, timing = content["systems"], content.get("timing")
    sizes = {entry["key"]: next(iter(entry["by_seed"].values()))["bytes_on_disk"] / 1e6 for entry in entries}
    _draw_accuracy_against(sizes, "MB on disk (model.safetensors)", entries, output / "size-accuracy.png")
    if timing:
        times = {key: measured["latency_ms"] for key, measured in timing["systems"].items()}
        batch = f"milliseconds a batch of {timing['batch_size']} x {timing['tokens']} tokens, on a CPU"
        timed = [entry for entry in entries if entry["key"] in times]
        _draw_accuracy_against(times, batch, timed, output / "speed-accuracy.png")


def _draw_panel(axes: Axes, entry: Result, quantity: str, keys: dict[str, str]) -> None:
    """Draw one quantity of both sets over the epochs, with the paper's values at the ends."""
    histories = [result["history"] for result in entry["by_seed"].values()]
    epochs = range(1, len(histories[0]) + 1)
    when = "first and last epoch" if len(epochs) > 1 else "last epoch"
    for (part, key), color in zip(keys.items(), (BLUE, ORANGE), strict=True):
        by_seed = [[epoch[key] for epoch in history] for history in histories]
        if len(by_seed) > 1:
            for values in by_seed:
                axes.plot(epochs, values, color=color, alpha=0.25, linewidth=1)
        axes.plot(epochs, [mean(values) for values in zip(*by_seed, strict=True)], "o-", color=color, label=part)
        # With a single epoch, the paper's first value would stand above its last one.
        ends = [*zip((1, len(epochs)), entry["paper"][f"{part}_{quantity}"], strict=True)][-len(epochs) :]
        known = [(x, y) for x, y in ends if y is not None]
        axes.plot(*zip(*known, strict=True), "x", color=color, markersize=8, label=f"{part}, the paper's {when}")
    axes.set(xlabel="epoch", ylabel=quantity, xlim=(0.5, len(epochs) + 0.5), xticks=epochs)
    axes.grid(alpha=0.3)


def _draw_accuracy_against(costs: dict[str, float], label: str, entries: list[Result], file: Path) -> None:
    """Draw each system where it is; those of one size are told apart by their markers, and listed by accuracy."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    tested = all("test_accuracy" in result for entry in entries for result in entry["by_seed"].values())
    part = "test" if tested else "validation"
    accuracies = {entry["key"]: mean_accuracy(entry["by_seed"].values(), part) for entry in entries}
    markers = dict(zip(accuracies, itertools.cycle("osD^v*PX<>hd"), strict=False))
    for entry in sorted(entries, key=lambda entry: -accuracies[entry["key"]][0]):
        accuracy, low, high = accuracies[entry["key"]]
        style: dict[str, Any] = {"fmt": markers[entry["key"]], "capsize": 3, "markersize": 8, "alpha": 0.7}
        style |= {"markerfacecolor": "none", "label": f"{accuracy:.3f} {_plain(entry['title'])}"}
        axes.errorbar(costs[entry["key"]], accuracy, yerr=[[accuracy - low], [high - accuracy]], **style)
    axes.set(xlabel=label, ylabel=f"{part} accuracy, 95 % interval")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=9)
    figure.savefig(file, dpi=120)


def _plain(title: str) -> str:
    """Return a title without its Markdown."""
    return title.replace("`", "")
