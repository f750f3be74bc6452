"""How to come to a sparsity: all at once, in equal steps, or by the cubic schedule; a study on real texts.

    python -m examples.imdb.schedules

With each seed a BERT is fine-tuned. From there each run trains for the same number of steps, prunes by its schedule and
keeps the zeros, and is tested on texts that were used for nothing else. Stopped, the program resumes after the last
finished run. It writes its page, picture and figures to docs/schedules.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from typing import Any

from matplotlib.axes import Axes

import hfcompress as hfc
from examples.imdb import study
from examples.imdb.files import Result
from examples.imdb.study import BERT, Experiment, Plan, run_study

AMOUNTS = (0.2, 0.5, 0.7, 0.9)
SCHEDULES: dict[str, dict[str, Any]] = {
    "one-shot": {"schedule": "one-shot"},
    "iterative": {"schedule": "linear", "end": 0.6, "every": 0.2},
    "cubic": {"schedule": "cubic", "end": 0.6},
}
POOLER = "*pooler*"
WITHOUT_POOLER = (0.7,)  # an amount that leaves none of its weights
CONTROL, EXCLUDED = "trained on, nothing pruned", ", pooler not pruned"
COUNTS = "weights of the pooler"


def plan(experiment: Experiment) -> Plan:
    """Return the runs of one seed."""
    runs: Plan = {CONTROL: partial(experiment.train_and_test, experiment.load_bert)}
    for amounts, exclude, title in ((AMOUNTS, None, ""), (WITHOUT_POOLER, POOLER, EXCLUDED)):
        for amount in amounts:
            for name, schedule in SCHEDULES.items():
                pruning = partial(hfc.GradualPruning, amount, exclude=exclude, **schedule)
                runs[f"{name} {amount}{title}"] = partial(_prune, experiment, pruning)
    return runs | {COUNTS: partial(_count_pooler, experiment)}


def _prune(experiment: Experiment, pruning: Callable[[], hfc.GradualPruning]) -> Result:
    return experiment.train_and_test(experiment.load_bert, callbacks=[pruning()])


def _count_pooler(experiment: Experiment) -> Result:
    """Count the weights of the pooler, and those left after pruning at once."""
    left = {}
    for amount in AMOUNTS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that there are none
            report = hfc.prune_global_l1(experiment.load_bert()[0], amount)
        layer = next(layer for layer in report.layers if fnmatch(layer.name, POOLER))
        left[str(amount)] = layer.weights - layer.zeros
    return {"weights": layer.weights, "left": left}


def draw(axes: Axes, runs: Result) -> None:
    """Draw the accuracy against the amount."""
    for index, (name, marker) in enumerate(zip(SCHEDULES, "os^", strict=True)):
        color = f"C{index}"
        for amounts, title, inside in ((AMOUNTS, "", color), (WITHOUT_POOLER, EXCLUDED, "white")):
            drawn = {amount: found for amount in amounts if (found := runs[f"{name} {amount}{title}"])}
            places = [amount + 0.008 * (index - 1) for amount in drawn]  # or the bars would hide each other
            style = {"marker": marker, "color": color, "markerfacecolor": inside, "label": name + title}
            if drawn:
                study.draw_runs(axes, places, [*drawn.values()], **style)
    study.draw_levels(axes, runs, BERT, CONTROL)
    axes.set(xlabel="amount: sparsity of the matrices in scope", ylabel="test accuracy, 95 % interval", xticks=AMOUNTS)
    axes.legend()


def describe(results: Result) -> tuple[str, list[dict[str, str]]]:
    """Return the text and the rows of the page."""
    runs = results["runs"]
    counts = runs[COUNTS]
    left = [" to ".join(f"{n:,}" for n in sorted({min(x), max(x)})) for x in _by_amount(counts)]
    text = f"""# Which schedule?

{study.describe_bert(results)}, then {study.FURTHER_EPOCHS} epochs in which it is pruned: at once before the first step
(one-shot), in four equal steps until three fifths of the training (iterative), or by the cubic schedule until then.
{study.describe_protocol(results)}. The gain is over the same training with nothing pruned, seed by seed.

This model's pooler has small weights: of its {counts[0]["weights"]:,}, pruning at once to
{", ".join(counts[0]["left"])} leaves {", ".join(left)}. With none left, all texts get the same prediction, so the
model was also pruned with `exclude="{POOLER}"`; the sparsity is that of all prunable weights, the pooler's included."""
    rows = [
        {"run": name, "sparsity": f"{of_seeds[0]['sparsity']:.2%}"} | study.figures_of(of_seeds, runs[CONTROL])
        for name, of_seeds in runs.items()
        if name != COUNTS and of_seeds
    ]
    return text, rows


def _by_amount(counts: list[Result]) -> list[list[int]]:
    """Return by amount the numbers of weights left, one a seed."""
    return [[one["left"][amount] for one in counts] for amount in counts[0]["left"]]


def main() -> None:
    """Train what is not trained yet, and write the page."""
    run_study("schedules", __doc__, plan, draw, describe)


if __name__ == "__main__":
    main()
