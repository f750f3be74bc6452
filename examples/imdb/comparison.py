"""Writes the page that compares the paper's figures with ours, from the committed results.

    python -m examples.imdb.comparison

The text is in ``comparison.md.j2``; every figure in it is computed here from the ``results.json`` of a run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean

from jinja2 import Environment, StrictUndefined

from examples.imdb.files import Result, write_text
from examples.imdb.intervals import format_accuracy, mcnemar, mean_accuracy, mean_difference
from examples.imdb.report import format_p, tabulate_rows

RESULTS = Path(__file__).with_name("results")
TEMPLATE = Path(__file__).with_name("comparison.md.j2")
PAGE = Path("docs", "comparison", "index.md")
RUNS = {"paper": "IMDB, MiniLM", "base-sentences": "sentences, base scale"}  # folders of the results
LADDER, OF = "base-compress", "base-sentences"  # the rows of `compress`, with a BERT of their own; what they belong to


class Figures:
    """The figures of the committed runs, as the template asks for them."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self._content = {name: json.loads((folder / name / "results.json").read_text()) for name in (*RUNS, LADDER)}

    def results(self, run: str, key: str) -> list[Result]:
        """Return a system's results, one a seed."""
        entries = {entry["key"]: entry for entry in self._content[run]["systems"]}
        return list(entries[key]["by_seed"].values())

    def accuracy(self, run: str, key: str, part: str = "test") -> str:
        """Return the mean accuracy with its interval."""
        return format_accuracy(*mean_accuracy(self.results(run, key), part))

    def value(self, run: str, key: str, *path: str) -> float:
        """Return the mean over the seeds of a figure."""
        values: Sequence[Result] = self.results(run, key)
        for name in path:
            values = [value[name] for value in values]
        return float(mean(float(value) for value in values))  # type: ignore[arg-type]

    def difference(self, run: str, key: str, other: str) -> str:
        """Return by how many points the test accuracy differs, with the 95 % interval."""
        difference, half = mean_difference(self.results(run, key), self.results(run, other))
        return f"{100 * difference:+.1f} ± {100 * half:.1f}"

    def p_values(self, run: str, key: str, other: str) -> str:
        """Return the p-value of McNemar's test in each seed."""
        pairs = zip(self.results(run, key), self.results(run, other), strict=True)
        return ", ".join(format_p(mcnemar(*pair)) for pair in pairs)

    def epoch(self, run: str, key: str, name: str, number: int = -1) -> float:
        """Return the mean over the seeds of a figure of an epoch, by default the last."""
        return float(mean(result["history"][number][name] for result in self.results(run, key)))

    def cost(self, run: str, key: str) -> str:
        """Return the size on disk and, where the run was timed, the time of a batch."""
        timing, size = self._content[run]["timing"], f"{self.value(run, key, 'bytes_on_disk') / 1e6:.0f} MB"
        return f"{size} and {timing['systems'][key]['latency_ms']:.0f} ms a batch" if timing else size

    def all_results(self, run: str) -> list[Result]:
        """Return the results of all systems."""
        return [result for entry in self._content[run]["systems"] for result in entry["by_seed"].values()]

    def timed_on(self) -> str:
        """Return the machines that the runs were timed on."""
        machines = {content["timing"]["machine"] for content in self._content.values() if content["timing"]}
        return "; ".join(sorted(machines))

    def table(self) -> str:
        """Return the paper's validation accuracy beside our test accuracies, by system."""
        rows = []
        ladder = [entry for entry in self._content[LADDER]["systems"] if entry["key"] != "bert"]
        for entry in [*self._content["paper"]["systems"], *ladder]:
            paper, key = entry["paper"], entry["key"]
            row = {"system": entry["title"], "paper": f"{paper['validation_accuracy'][1]:.2f}" if paper else "-"}
            for of, title in RUNS.items():
                run = of if entry not in ladder else LADDER if of == OF else None
                row[title] = "-" if run is None else self.accuracy(run, key)
                alone = run is None or key == "bert"
                row[f"minus BERT's, {title}"] = "-" if alone else self.difference(str(run), key, "bert")
            rows.append(row)
        return tabulate_rows(rows, "github")


def render(figures: Figures) -> str:
    """Return the page."""

    def cross_entropy(run: str, key: str, part: str = "validation") -> str:
        return f"{figures.value(run, key, f'{part}_cross_entropy'):.2f}"

    short = {
        "f": figures,
        "diff": figures.difference,
        "p": figures.p_values,
        "ce": cross_entropy,
        "tce": partial(cross_entropy, part="test"),
        "epoch": lambda *given: f"{figures.epoch(*given):.2f}",
        "value": lambda *given: f"{figures.value(*given):.3f}",
        "percent": lambda *given: f"{figures.value(*given):.1%}",
        "cost": figures.cost,
        "machines": sorted({result["machine"] for run in (*RUNS, LADDER) for result in figures.all_results(run)}),
        "timed": figures.timed_on(),
    }
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string(TEMPLATE.read_text()).render(short)


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write_text(PAGE, render(Figures()))
    print(f"Written: {PAGE}")


if __name__ == "__main__":
    main()
