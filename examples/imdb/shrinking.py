"""What heads and neurons are worth: accuracy against FLOPs, before and after distillation; a study on real texts.

    python -m examples.imdb.shrinking

With each seed a BERT is fine-tuned, shrunk to several shares of its FLOPs with three rankings of its heads and neurons,
and tested without further training; the models of half the FLOPs are also distilled from the original for a few epochs
and tested again. Stopped, the program resumes after the last finished run. It writes its page, picture and figures to
docs/shrinking.
"""

from __future__ import annotations

from functools import partial
from statistics import mean
from typing import Any

from matplotlib.axes import Axes

import hfcompress as hfc
from examples.imdb import study
from examples.imdb.files import Result
from examples.imdb.models import Pair
from examples.imdb.study import BERT, SOFT_LABELS, Experiment, Plan, run_study
from examples.imdb.systems import RANKING_REVIEWS

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)
IMPORTANCES = ("l1", "taylor", "fisher")
DISTILLED = 0.5  # the share that is also distilled
CONTROL = "BERT, distilled from itself"


def plan(experiment: Experiment) -> Plan:
    """Return the runs of one seed."""
    further = partial(experiment.train_and_test, **SOFT_LABELS)
    runs: Plan = {CONTROL: partial(further, experiment.load_bert)}
    for importance in IMPORTANCES:
        shrink = partial(_shrink, experiment, importance)
        for share in SHARES:
            runs[f"{importance} {share}"] = partial(experiment.train_and_test, partial(shrink, share), epochs=0)
        runs[f"{importance} {DISTILLED}, distilled"] = partial(further, partial(shrink, DISTILLED))
    return runs


def _shrink(experiment: Experiment, importance: Any, share: float) -> Pair:
    model, tokenizer = experiment.load_bert_to_shrink()
    rows = experiment.encode("train", tokenizer)
    ranked = {"importance": importance, "dataset": None}
    if importance != "l1":
        ranked["dataset"] = rows.take(min(RANKING_REVIEWS, len(rows)))
    hfc.prune_structured(model, flops=share, reconstruct=False, **ranked)
    return model, tokenizer


def draw(axes: Axes, runs: Result) -> None:
    """Draw the accuracy against the share of the FLOPs."""
    for index, (importance, marker) in enumerate(zip(IMPORTANCES, "os^", strict=False)):
        shares = [share + 0.004 * (index - 1) for share in SHARES]  # or the bars would hide each other
        shrunken, label = [runs[f"{importance} {share}"] for share in SHARES], f"{importance}, not distilled"
        color = study.draw_runs(axes, shares, shrunken, marker=marker, label=label)
        distilled = mean(run["test_accuracy"] for run in runs[f"{importance} {DISTILLED}, distilled"])
        axes.plot(shares[-1], distilled, marker="*", markersize=14, color=color, linestyle="none")
    axes.plot([], [], "*", color="gray", markersize=12, label="distilled")
    study.draw_levels(axes, runs, BERT, CONTROL)
    axes.set(xlabel="share of the FLOPs that is left", ylabel="test accuracy, 95 % interval", xticks=SHARES)
    axes.invert_xaxis()
    axes.legend()


def describe(results: Result) -> tuple[str, list[dict[str, str]]]:
    """Return the text and the rows of the page."""
    runs = results["runs"]
    text = f"""# Which heads and neurons?

{study.describe_bert(results)}, then shrunk to a share of its FLOPs by
`prune_structured(model, flops=share, importance=..., reconstruct=False)`, taylor and fisher with {RANKING_REVIEWS} of
those texts, and tested without further training; the halves also after {study.FURTHER_EPOCHS} epochs of distillation
from the original model (KL at temperature 2 and cross-entropy), beside the original model trained further in the same
way, with itself as the teacher. {study.describe_protocol(results)}. The gain is over the fine-tuned BERT, seed by seed.
What reconstruction adds is in [another study](../reconstruction/index.md)."""
    return text, [{"model": name} | study.figures_of(of_seeds, runs[BERT]) for name, of_seeds in runs.items()]


def main() -> None:
    """Train what is not trained yet, and write the page."""
    run_study("shrinking", __doc__, plan, draw, describe)


if __name__ == "__main__":
    main()
