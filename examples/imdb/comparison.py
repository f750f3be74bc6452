"""Writes the page that compares the paper's figures with ours, from the committed results.

    python -m examples.imdb.comparison

The text is in ``comparison.md.j2``; every figure in it is computed here from the ``results.json`` of a run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from jinja2 import Environment, StrictUndefined

from examples.imdb.files import Result, write_text
from examples.imdb.intervals import format_accuracy, mcnemar, mean_accuracy, mean_difference
from examples.imdb.report import format_p, tabulate_rows

RESULTS = Path(__file__).with_name("results")
TEMPLATE = Path(__file__).with_name("comparison.md.j2")
PAGE = Path("docs", "comparison", "index.md")
RUNS = {  # by folder of the results, for the table
    "base-imdb": "base scale, IMDB",
    "base-sentences": "base scale, sentences",
    "paper": "MiniLM, IMDB",
}


class Figures:
    """The figures of the committed runs, as the template asks for them."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self._content = {name: json.loads((folder / name / "results.json").read_text()) for name in RUNS}

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
        """Return by how many points the test accuracy differs, with the 95 % interval over the seeds."""
        difference, half = mean_difference(self.results(run, key), self.results(run, other))
        return f"{100 * difference:+.1f} ± {100 * half:.1f} points"

    def p_values(self, run: str, key: str, other: str) -> str:
        """Return the p-value of McNemar's test in each seed."""
        pairs = zip(self.results(run, key), self.results(run, other), strict=True)
        return ", ".join(format_p(mcnemar(*pair)) for pair in pairs)

    def last_epoch(self, run: str, key: str, name: str, epoch: int = -1) -> float:
        """Return the mean over the seeds of a figure of an epoch, by default the last."""
        return mean(result["history"][epoch][name] for result in self.results(run, key))

    def milliseconds(self, run: str, key: str) -> str:
        """Return the time of a batch, where the run was timed."""
        timing = self._content[run]["timing"]
        return f"{timing['systems'][key]['latency_ms']:.0f}" if timing else "-"

    def content(self, run: str) -> Result:
        """Return all that is in ``results.json``."""
        return dict(self._content[run])

    def table(self) -> str:
        """Return the paper's validation accuracy beside our test accuracies, by system."""
        rows = []
        for entry in self._content["base-imdb"]["systems"]:
            paper = entry["paper"]
            row = {"system": entry["title"], "paper (validation)": "-"}
            if paper:
                row["paper (validation)"] = f"{paper['validation_accuracy'][1]:.2f}"
            for run, title in RUNS.items():
                row[title] = self.accuracy(run, entry["key"])
            rows.append(row)
        return tabulate_rows(rows, "github")


def render(figures: Figures) -> str:
    """Return the page."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string(TEMPLATE.read_text()).render(figures=figures)


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write_text(PAGE, render(Figures()))
    print(f"Written: {PAGE}")


if __name__ == "__main__":
    main()
