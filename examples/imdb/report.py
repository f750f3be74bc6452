"""Tables, pictures and ``results.json`` from the results of the systems."""

from __future__ import annotations

import itertools
import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
import scipy.stats
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from tabulate import tabulate

import hfcompress as hfc
from examples.imdb.settings import SYSTEMS, Ends, PaperFigure, System
from examples.imdb.systems import Run, load_system, write_json

mpl.use("Agg")
BLUE, ORANGE = "#1f5fa8", "#d9731a"  # train, validation

Result = dict[str, Any]


def describe(run: Run, data: str) -> str:
    """Say in a few lines what is compared on what."""
    starts = "\n".join(f"  {name}: {start.description}" for name, start in run.starts.items())
    reviews = run.reviews
    test = f", {len(reviews.test)} others to test" if reviews.test else ""
    sizes = f"{len(reviews.train)} train and {len(reviews.validation)} validation reviews{test} ({data})"
    return f"{sizes}, at most {run.preset.max_length} tokens\n{starts}"


def write(runs: list[Run], output: Path, new: System | None = None) -> str:
    """Write ``results.json`` and ``results.md`` of all that is finished.

    Args:
        runs: One a seed.
        output: The results folder.
        new: The system that was just trained: its figure is drawn. None when all are, each with its figure: then size
            and speed of the first seed's models are measured, and drawn.

    Returns:
        The table, for the terminal.
    """
    results = {system.key: _finished(system, runs) for system in SYSTEMS}
    done = [system for system in SYSTEMS if results[system.key]]
    measured_file = runs[0].folder / "measured.json"
    measured = json.loads(measured_file.read_text()) if measured_file.exists() else {}
    if new is None and list(measured) != [system.key for system in done]:
        measured = _measure(done, runs[0]).to_dict()
        write_json(measured_file, measured)

    content = {
        "settings": json.loads((output / "settings.json").read_text()),
        "models": {name: start.description for name, start in runs[0].starts.items()},
        "seeds": [run.seed for run in runs],
        "machine": machine(),
        "versions": {"python": platform.python_version()}
        | {p: version(p) for p in ("hfcompress", "torch", "transformers", "accelerate", "datasets", "numpy")},
        "seconds": sum(entry["seconds"] for found in results.values() for one in found for entry in one["history"]),
        "systems": [
            {
                "key": system.key,
                "title": system.title,
                "paper": asdict(system.paper) if system.paper else None,
                "measured": measured.get(system.key),
                "by_seed": {str(run.seed): one for run in runs for one in _finished(system, [run])},
            }
            for system in done
        ],
    }
    write_json(output / "results.json", content)
    figures = [f"figure-{number}.png" for number in sorted(system.paper.number for system in done if system.paper)]
    if new is None:
        on_disk = "MB on disk (model.safetensors), equal sizes side by side"
        sizes = [results[system.key][0]["bytes_on_disk"] / 1e6 for system in done]
        timed = [system for system in done if measured.get(system.key)]
        times = [measured[system.key]["latency_ms"] for system in timed]
        batch = f"milliseconds a batch of {runs[0].preset.batch_size}, on this machine's CPU"
        figures.append(_against(sizes, on_disk, "size-accuracy.png", done, results, output))
        figures.append(_against(times, batch, "speed-accuracy.png", timed, results, output))
    elif new.paper:
        _figure(new, new.paper, results[new.key], output)
    table = _table(done, results, measured)
    text = _markdown(content, table, results, figures)
    (output / "results.md").write_text(text)
    return _as_text(table, "simple")


def _finished(system: System, runs: list[Run]) -> list[Result]:
    found = []
    for folder in [run.folder / system.key for run in runs]:
        parts = [folder / "result.json", folder / "test.json"]
        if parts[0].exists():
            found.append({k: v for part in parts if part.exists() for k, v in json.loads(part.read_text()).items()})
    return found


def _measure(systems: list[System], run: Run) -> hfc.Comparison:
    """Size and speed of all trained models, each on the same reviews in its own ids, timed in turn."""
    models, inputs = {}, {}
    texts = run.reviews.validation["text"][: run.preset.batch_size]
    for system in systems:
        model, tokenizer = load_system(system, run)
        length = run.preset.max_length
        models[system.key] = model
        inputs[system.key] = dict(
            tokenizer(list(texts), truncation=True, max_length=length, padding="max_length", return_tensors="pt")
        )
    return hfc.compare(models, inputs, batch_size=run.preset.batch_size, repeats=10)


def machine() -> dict[str, Any]:
    """Name the processor, its cores, the GPU and the system."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next((x.partition(":")[2].strip() for x in info.read_text().splitlines() if "model name" in x), name)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": name, "cores": os.cpu_count(), "gpu": gpu, "system": platform.platform()}


def _table(done: list[System], results: dict[str, list[Result]], measured: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for system in done:
        found, size = results[system.key], measured.get(system.key)
        paper = system.paper
        of_bert = size["parameters"] / measured["bert"]["parameters"] if size else None
        rows.append(
            {
                "system": system.title,
                "train accuracy": _accuracy(found, "train"),
                "validation accuracy": _accuracy(found, "validation"),
                "test accuracy": _accuracy(found, "test") if _tested(found) else "-",
                "paper: train, validation": f"{paper.train_accuracy[1]:.2f}, {paper.validation_accuracy[1]:.2f}"
                if paper
                else "-",
                "F1": f"{mean(one['f1'] for one in found):.3f}",
                "cross-entropy: train, validation, test": ", ".join(
                    f"{mean(one[f'{part}_cross_entropy'] for one in found):.3f}"
                    for part in ("train", "validation", *["test"] * _tested(found))
                ),
                "parameters (of BERT's)": f"{size['parameters'] / 1e6:.1f} M ({of_bert:.0%})" if size else "-",
                "layers": str(found[0]["layers"]),
                "sparsity": f"{mean(one['sparsity'] for one in found):.2%}",
                "MB on disk": f"{found[0]['bytes_on_disk'] / 1e6:.1f}",
                "ms a batch": f"{size['latency_ms']:.0f}" if size else "-",
            }
        )
    return rows


def _as_text(rows: list[dict[str, str]], style: str) -> str:
    align = ("left", *["right"] * (len(rows[0]) - 1)) if rows else None
    return str(tabulate(rows, headers="keys", tablefmt=style, colalign=align, disable_numparse=True))


def _accuracy(found: list[Result], part: str) -> str:
    """One seed: the accuracy and its Wilson interval. Several: their mean and its t interval."""
    values = [one[f"{part}_accuracy"] for one in found]
    low, high = _interval(found, part)
    return f"{mean(values):.3f} ({low:.3f} to {high:.3f})"


def _tested(found: list[Result]) -> bool:
    return all("test_accuracy" in one for one in found)


def _interval(found: list[Result], part: str) -> tuple[float, float]:
    values, count = [one[f"{part}_accuracy"] for one in found], found[0][f"{part}_examples"]
    if len(values) == 1:
        return interval(values[0], count)
    if len(set(values)) == 1:
        return values[0], values[0]
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, loc=mean(values), scale=scipy.stats.sem(values))
    return float(low), float(high)


def interval(accuracy: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of an accuracy on so many examples."""
    low, high = scipy.stats.binomtest(round(accuracy * count), count).proportion_ci(method="wilson")
    return float(low), float(high)


def _figure(system: System, paper: PaperFigure, found: list[Result], output: Path) -> None:
    """A figure as the paper drew it: accuracy and loss of both sets over the epochs."""
    histories = [one["history"] for one in found]
    accuracy = {"train_accuracy": paper.train_accuracy, "eval_accuracy": paper.validation_accuracy}
    loss = {"train_loss": paper.train_loss, "eval_distillation_loss": paper.validation_loss}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
    _panel(left, "accuracy", histories, accuracy)
    _panel(right, "loss", histories, loss)
    figure.suptitle(f"Figure {paper.number}: {system.title}, accuracy and loss over the epochs")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(output / f"figure-{paper.number}.png", dpi=120)
    plt.close(figure)


def _panel(axes: Axes, name: str, histories: list[list[dict[str, float]]], paper: dict[str, Ends]) -> None:
    """Draw one quantity of both sets over the epochs, with the paper's values at the ends."""
    epochs = len(histories[0])
    for (key, ends), colour, label in zip(paper.items(), (BLUE, ORANGE), ("train", "validation"), strict=True):
        _curve(axes, [[epoch[key] for epoch in history] for history in histories], colour, label)
        # With a single epoch, the paper's first value would stand above its last one.
        known = [(x, y) for x, y in [(1, ends[0]), (epochs, ends[1])][-epochs:] if y is not None]
        when = "first and last epoch" if epochs > 1 else "last epoch"
        axes.plot(*zip(*known, strict=True), "x", color=colour, markersize=8, label=f"{label}, the paper's {when}")
    axes.set(xlabel="epoch", ylabel=name, xlim=(0.5, epochs + 0.5), xticks=range(1, epochs + 1))
    axes.grid(alpha=0.3)


def _curve(axes: Axes, by_seed: list[list[float]], colour: str, label: str) -> None:
    epochs = range(1, len(by_seed[0]) + 1)
    if len(by_seed) > 1:
        for values in by_seed:
            axes.plot(epochs, values, color=colour, alpha=0.25, linewidth=1)
    axes.plot(epochs, [mean(values) for values in zip(*by_seed, strict=True)], "o-", color=colour, label=label)


def _against(
    values: list[float], name: str, file: str, done: list[System], results: dict[str, list[Result]], output: Path
) -> str:
    """Draw accuracy against a cost of each system."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    part = "test" if all(_tested(results[system.key]) for system in done) else "validation"
    for index, (system, marker) in enumerate(zip(done, itertools.cycle("osD^v*PX<>hd"), strict=False)):
        found = results[system.key]
        # Pruned models are exactly as large as BERT; side by side they can be told apart.
        aside = values[:index].count(values[index]) * 0.02 * max(values)
        accuracy, (low, high) = mean(one[f"{part}_accuracy"] for one in found), _interval(found, part)
        axes.errorbar(
            values[index] + aside,
            accuracy,
            yerr=[[accuracy - low], [high - accuracy]],
            fmt=marker,
            capsize=3,
            markersize=8,
            alpha=0.8,
            label=system.title,
        )
    axes.set(xlabel=name, ylabel=f"{part} accuracy, 95 % interval")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=9)
    figure.savefig(output / file, dpi=120)
    plt.close(figure)
    return file


def _markdown(content: dict[str, Any], table: list[dict[str, str]], results: dict[str, Any], figures: list[str]) -> str:
    settings, machine = content["settings"], content["machine"]
    preset = settings["preset"]
    models = "\n".join(f"- {name}: {description}" for name, description in content["models"].items())
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    seeds = ", ".join(map(str, content["seeds"]))
    pictures = "\n\n".join(f"![{name}]({name})" for name in figures)
    missing = [system.title for system in SYSTEMS if not results[system.key]]
    untimed = any(entry["measured"] is None for entry in content["systems"])
    later = "\nRows without milliseconds were not timed beside the others." * untimed
    test_counts = {one["test_examples"] for found in results.values() for one in found if "test_examples" in one}
    tested = f", {max(test_counts)} others to test" if test_counts else ""
    return f"""# Results

{preset["reviews"]} reviews (80/20){tested}, at most {preset["max_length"]} tokens, AdamW with learning rate \
{preset["learning_rate"]:g}, loss {settings["loss"]}, {settings["precision"]}, seeds {seeds}.

{models}

{_as_text(table, "github")}
{f"{chr(10)}Still to be trained: {', '.join(missing)}.{chr(10)}" if missing else ""}
The accuracies are of the trained model, without dropout; the interval is Wilson's 95 % of one seed, or Student's t of
several. Nothing was trained or chosen on the test reviews; the paper had none. "paper" is what the paper's figures show
after the last epoch. Cross-entropy is one scale for all systems, whatever they were trained with. Sparsity is of the
prunable weights, after fine-tuning. Milliseconds are of a batch of {preset["batch_size"]} in float32 on the CPU, the
models timed in turn.{later}

## What the paper lacks

{_controls(results)}

## Figures

The curves show each epoch as the paper did: the training set while it trains (with dropout), the validation set after
it. Loss is what was trained: {settings["loss"]} for the classifiers, the distillation objective for the student.

{pictures}

## Machine

{machine["cpu"]}, {machine["cores"]} cores{f", {machine['gpu']}" if machine["gpu"] else ""}; {versions};
{content["seconds"] / 60:.0f} minutes of training.
"""


def _controls(results: dict[str, list[Result]]) -> str:
    """Points 2 and 3: more training or pruning, and whether the zeros survive."""

    def show(key: str, name: str) -> str:
        found = results.get(key)
        return f"{mean(one[name] for one in found):.3f}" if found else "(still to be trained)"

    rows = []
    for system in SYSTEMS:
        found = results[system.key]
        if found and (system.amount is not None or system.flops is not None or system.key == "control"):
            rows.append(
                {
                    "system": system.title,
                    "validation accuracy before": f"{mean(one['start']['validation_accuracy'] for one in found):.3f}",
                    "and after further epochs": show(system.key, "validation_accuracy"),
                    "cross-entropy before": f"{mean(one['start']['validation_cross_entropy'] for one in found):.3f}",
                    "and after": show(system.key, "validation_cross_entropy"),
                    "sparsity before": f"{mean(one['sparsity_before_training'] for one in found):.2%}",
                    "sparsity after": f"{mean(one['sparsity'] for one in found):.2%}",
                }
            )
    bert = f"BERT ended at {show('bert', 'validation_accuracy')}, cross-entropy "
    return (
        f"{bert}{show('bert', 'validation_cross_entropy')}. Each row below goes on from there for the same number of\n"
        "epochs. What the pruned rows share with the row where nothing was pruned is due to further training, not to\n"
        f"pruning.\n\n{_as_text(rows, 'github')}"
    )
