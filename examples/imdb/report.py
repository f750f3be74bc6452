"""Writes ``results.json`` and ``results.md`` of the systems, with the pictures."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import mean

from jinja2 import Template
from tabulate import tabulate

import hfcompress as hfc
from examples.imdb.environment import describe_machine
from examples.imdb.figures import draw_costs, draw_epochs
from examples.imdb.files import Result, read_json, write_json, write_text
from examples.imdb.intervals import format_accuracy, mcnemar, mean_accuracy, mean_difference
from examples.imdb.settings import SYSTEMS, System
from examples.imdb.systems import Run
from examples.imdb.timing import is_timed, time_systems

TEMPLATE = Path(__file__).with_name("results.md.j2")
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy")


def write_report(runs: list[Run], output: Path, trained: str | None = None, time: bool = False) -> str:
    """Write ``results.json`` and ``results.md`` of all systems that are trained, with the pictures; return the table.

    Args:
        runs: One a seed.
        output: Folder of the results.
        trained: Key of the system that was just trained, if one was: only its figure is drawn.
        time: Whether the systems are timed, if they were not yet.
    """
    entries = [entry for system in SYSTEMS if (entry := _read_entry(system, runs))["by_seed"]]
    epochs = [epoch for entry in entries for result in entry["by_seed"].values() for epoch in result["history"]]
    before = read_json(output / "results.json")
    content = {
        "settings": read_json(output / "settings.json"),
        "models": {name: start.description for name, start in runs[0].starts.items()},
        "seeds": [run.seed for run in runs],
        "machine": describe_machine(),
        "versions": {"python": platform.python_version(), "hfcompress": hfc.__version__}
        | {name: version(name) for name in PACKAGES},
        "seconds": sum(epoch["seconds"] for epoch in epochs),
        "systems": entries,
        "timing": before.get("timing"),
    }
    if time and not is_timed(content):
        content["timing"] = time_systems(content)
    write_json(output / "results.json", content)
    write_pages(output, content, trained)
    return tabulate_rows(_system_rows(content), "simple")


def write_pages(output: Path, content: Result, trained: str | None = None) -> None:
    """Write ``results.md`` and the pictures of what is in ``results.json``."""
    for entry in content["systems"]:
        if entry["paper"] and trained in (None, entry["key"]):
            draw_epochs(entry, output)
    if trained is None:
        draw_costs(content, output)
    pictures = sorted(file.name for file in output.glob("*.png"))
    write_text(output / "results.md", render_report(content, pictures))


def render_report(content: Result, pictures: list[str]) -> str:
    """Return the page ``results.md`` of what is in ``results.json``, with these pictures."""
    entries = content["systems"]
    titles = [entry["title"] for entry in entries]
    results = [result for entry in entries for result in entry["by_seed"].values()]
    template = Template(TEMPLATE.read_text(), trim_blocks=True, keep_trailing_newline=True)
    page: str = template.render(
        content,
        preset=content["settings"]["preset"],
        results=tabulate_rows(_system_rows(content), "github"),
        costs=tabulate_rows(_cost_rows(content), "github"),
        further=tabulate_rows(_further_rows(entries), "github"),
        missing=[system.title for system in SYSTEMS if system.title not in titles],
        tested=max(result.get("test_examples", 0) for result in results),
        machines=sorted({result["machine"] for result in results}),
        accuracy=_mean(entries[0], "validation_accuracy"),
        cross_entropy=_mean(entries[0], "validation_cross_entropy"),
        pictures=pictures,
    )
    return page


def _read_entry(system: System, runs: list[Run]) -> Result:
    by_seed = {str(run.seed): result for run in runs if (result := read_json(run.result_file(system.key)))}
    for result in list(by_seed.values())[1:]:
        del result["config"]  # that of the first is enough to build the model
    paper = asdict(system.paper) if system.paper else None
    return {"key": system.key, "title": system.title, "paper": paper, "by_seed": by_seed}


def _system_rows(content: Result) -> list[dict[str, str]]:
    rows = []
    bert = content["systems"][0]["by_seed"]
    for entry in content["systems"]:
        paper, results = entry["paper"], entry["by_seed"]
        tested = all("test_accuracy" in result for result in results.values())
        parts = ("train", "validation", *["test"] * tested)
        ends = [f"{paper[f'{part}_accuracy'][1]:.2f}" for part in ("train", "validation")] if paper else ["-"]
        row = {
            "system": entry["title"],
            "train accuracy": _accuracy(entry, "train"),
            "validation accuracy": _accuracy(entry, "validation"),
            "test accuracy": _accuracy(entry, "test") if tested else "-",
            "minus BERT's": "-",
            "McNemar's p": "-",
            "paper: train, validation": ", ".join(ends),
            "F1": f"{_mean(entry, 'f1'):.3f}",
            "cross-entropy: train, validation, test": ", ".join(
                f"{_mean(entry, f'{part}_cross_entropy'):.3f}" for part in parts
            ),
        }
        pairs = [(result, bert[seed]) for seed, result in results.items() if seed in bert]
        if tested and pairs and entry["key"] != "bert":
            difference, half = mean_difference(*zip(*pairs, strict=True))
            row["minus BERT's"] = f"{100 * difference:+.1f} ± {100 * half:.1f}"
            row["McNemar's p"] = ", ".join(format_p(mcnemar(*pair)) for pair in pairs)
        rows.append(row)
    return rows


def _cost_rows(content: Result) -> list[dict[str, str]]:
    timed = (content.get("timing") or {"systems": {}})["systems"]
    most = _first(content["systems"][0])["parameters"]
    return [
        {
            "system": entry["title"],
            "parameters (of BERT's)": f"{first['parameters'] / 1e6:.1f} M ({first['parameters'] / most:.0%})",
            "layers": str(first["layers"]),
            "sparsity": f"{_mean(entry, 'sparsity'):.2%}",
            "MB on disk": f"{first['bytes_on_disk'] / 1e6:.1f}",
            "ms a batch": f"{timed[entry['key']]['latency_ms']:.0f}" if entry["key"] in timed else "-",
            "minutes of training": f"{_mean_minutes(entry):.1f}" if first["history"] else "-",
        }
        for entry in content["systems"]
        for first in [_first(entry)]
    ]


def _first(entry: Result) -> Result:
    return dict(next(iter(entry["by_seed"].values())))


def _mean_minutes(entry: Result) -> float:
    return float(mean(sum(epoch["seconds"] for epoch in one["history"]) for one in entry["by_seed"].values()) / 60)


def format_p(value: float) -> str:
    """Write a p-value."""
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def _further_rows(entries: list[Result]) -> list[dict[str, str]]:
    """Return accuracy, cross-entropy and sparsity before and after the further training of the fine-tuned BERT."""
    further = [system.key for system in SYSTEMS if system.starts_from_bert and system.speedup is None]
    return [
        {
            "system": entry["title"],
            "validation accuracy before": f"{_mean(entry, 'start', 'validation_accuracy'):.3f}",
            "and after further epochs": f"{_mean(entry, 'validation_accuracy'):.3f}",
            "cross-entropy before": f"{_mean(entry, 'start', 'validation_cross_entropy'):.3f}",
            "and after": f"{_mean(entry, 'validation_cross_entropy'):.3f}",
            "sparsity before": f"{_mean(entry, 'sparsity_before_training'):.2%}",
            "sparsity after": f"{_mean(entry, 'sparsity'):.2%}",
        }
        for entry in entries
        if entry["key"] in further
    ]


def tabulate_rows(rows: list[dict[str, str]], style: str) -> str:
    """Return the rows as a table of text or of Markdown."""
    align = ("left", *["right"] * (len(rows[0]) - 1)) if rows else None
    return str(tabulate(rows, headers="keys", tablefmt=style, colalign=align, disable_numparse=True))


def _accuracy(entry: Result, part: str) -> str:
    return format_accuracy(*mean_accuracy(entry["by_seed"].values(), part))


def _mean(entry: Result, *path: str) -> float:
    """Return the mean over the seeds of the figure at this path of the results."""
    values = entry["by_seed"].values()
    for name in path:
        values = [value[name] for value in values]
    return float(mean(values))
