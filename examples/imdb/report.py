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
from examples.imdb.environment import describe_machine, name_machine
from examples.imdb.figures import draw_costs, draw_epochs
from examples.imdb.files import Result, read_json, write_json
from examples.imdb.intervals import format_accuracy, mean_accuracy
from examples.imdb.settings import SYSTEMS, System
from examples.imdb.systems import Run, load_system

TEMPLATE = Path(__file__).with_name("results.md.j2")
PACKAGES = ("hfcompress", "torch", "transformers", "accelerate", "datasets", "numpy")


def write_report(runs: list[Run], output: Path, trained: System | None = None) -> str:
    """Write ``results.json`` and ``results.md`` of all systems that are trained, and return the table.

    The figure of the system that was just ``trained`` is drawn. When all are, it is None: then size and speed of the
    first seed's models are measured and drawn.
    """
    entries = [entry for system in SYSTEMS if (entry := _read_entry(system, runs))["by_seed"]]
    keys = [entry["key"] for entry in entries]
    measured = read_json(runs[0].folder / "measured.json")
    if trained is None and list(measured) != keys:
        measured = _measure(keys, runs[0]).to_dict()
        write_json(runs[0].folder / "measured.json", measured)
    for entry in entries:
        entry["measured"] = measured.get(entry["key"])
    epochs = [epoch for entry in entries for result in entry["by_seed"].values() for epoch in result["history"]]
    content = {
        "settings": read_json(output / "settings.json"),
        "models": {name: start.description for name, start in runs[0].starts.items()},
        "seeds": [run.seed for run in runs],
        "machine": describe_machine(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "seconds": sum(epoch["seconds"] for epoch in epochs),
        "systems": entries,
    }
    write_json(output / "results.json", content)
    if trained is None:
        draw_costs(entries, runs[0].preset.batch_size, output)
    elif trained.paper:
        draw_epochs(entries[keys.index(trained.key)], output)
    pictures = sorted(file.name for file in output.glob("*.png"))
    (output / "results.md").write_text(render_report(content, pictures))
    return _tabulate(_system_rows(entries), "simple")


def render_report(content: Result, pictures: list[str]) -> str:
    """Return the page ``results.md`` of what is in ``results.json``, with these pictures."""
    entries = content["systems"]
    titles = [entry["title"] for entry in entries]
    counts = [result.get("test_examples", 0) for entry in entries for result in entry["by_seed"].values()]
    template = Template(TEMPLATE.read_text(), trim_blocks=True, keep_trailing_newline=True)
    page: str = template.render(
        content,
        preset=content["settings"]["preset"],
        results=_tabulate(_system_rows(entries), "github"),
        further=_tabulate(_further_rows(entries), "github"),
        missing=[system.title for system in SYSTEMS if system.title not in titles],
        tested=max(counts),
        machine_name=name_machine(content["machine"]),
        untimed=any(entry["measured"] is None for entry in entries),
        accuracy=_mean(entries[0], "validation_accuracy"),
        cross_entropy=_mean(entries[0], "validation_cross_entropy"),
        pictures=pictures,
    )
    return page


def _read_entry(system: System, runs: list[Run]) -> Result:
    by_seed = {}
    for run in runs:
        folder = run.folder / system.key
        if result := read_json(folder / "result.json"):
            by_seed[str(run.seed)] = result | read_json(folder / "test.json")
    paper = asdict(system.paper) if system.paper else None
    return {"key": system.key, "title": system.title, "paper": paper, "measured": None, "by_seed": by_seed}


def _measure(keys: list[str], run: Run) -> hfc.Comparison:
    """Measure size and speed of all trained models, timed in turn on the same reviews, each in its own ids."""
    models, inputs = {}, {}
    texts = list(run.reviews["validation"]["text"][: run.preset.batch_size])
    padding = {"truncation": True, "max_length": run.preset.max_length, "padding": "max_length", "return_tensors": "pt"}
    for key in keys:
        models[key], tokenizer = load_system(key, run)
        inputs[key] = dict(tokenizer(texts, **padding))
    return hfc.compare(models, inputs, batch_size=run.preset.batch_size, repeats=10)


def _system_rows(entries: list[Result]) -> list[dict[str, str]]:
    rows = []
    for entry in entries:
        paper, size, first = entry["paper"], entry["measured"], next(iter(entry["by_seed"].values()))
        tested = all("test_accuracy" in result for result in entry["by_seed"].values())
        parts = ("train", "validation", *["test"] * tested)
        ends = [f"{paper[f'{part}_accuracy'][1]:.2f}" for part in ("train", "validation")] if paper else ["-"]
        of_bert = size["parameters"] / entries[0]["measured"]["parameters"] if size else None
        rows.append(
            {
                "system": entry["title"],
                "train accuracy": _accuracy(entry, "train"),
                "validation accuracy": _accuracy(entry, "validation"),
                "test accuracy": _accuracy(entry, "test") if tested else "-",
                "paper: train, validation": ", ".join(ends),
                "F1": f"{_mean(entry, 'f1'):.3f}",
                "cross-entropy: train, validation, test": ", ".join(
                    f"{_mean(entry, f'{part}_cross_entropy'):.3f}" for part in parts
                ),
                "parameters (of BERT's)": f"{size['parameters'] / 1e6:.1f} M ({of_bert:.0%})" if size else "-",
                "layers": str(first["layers"]),
                "sparsity": f"{_mean(entry, 'sparsity'):.2%}",
                "MB on disk": f"{first['bytes_on_disk'] / 1e6:.1f}",
                "ms a batch": f"{size['latency_ms']:.0f}" if size else "-",
            }
        )
    return rows


def _further_rows(entries: list[Result]) -> list[dict[str, str]]:
    """Return accuracy, cross-entropy and sparsity before and after the further training of the fine-tuned BERT."""
    further = [system.key for system in SYSTEMS if system.starts_from_bert]
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


def _tabulate(rows: list[dict[str, str]], style: str) -> str:
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
