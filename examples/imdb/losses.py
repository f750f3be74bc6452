"""Which losses train a small student best? A study on real texts, several seeds.

    python -m examples.imdb.losses

With each seed a BERT is fine-tuned. Students of two of its pretrained layers are distilled from it, each with another
combination of losses, and tested on texts that were used for nothing else. Stopped, the program resumes after the last
finished run. It writes its page, picture and figures to docs/losses.
"""

from __future__ import annotations

from functools import partial
from statistics import mean
from typing import Any

from matplotlib.axes import Axes

from examples.imdb import study
from examples.imdb.files import Result
from examples.imdb.study import BERT, SOFT_LABELS, Experiment, Plan, run_study

COMBINATIONS: dict[str, dict[str, Any]] = {
    "labels alone: cross_entropy": {"alpha": 0.0, "label_loss": "cross_entropy"},
    "labels alone: mse": {"alpha": 0.0, "label_loss": "mse"},
    "mse + mse (the paper's)": {"alpha": 0.5, "teacher_loss": "mse", "label_loss": "mse"},
    "mse_logits + cross_entropy": {"alpha": 0.5, "teacher_loss": "mse_logits", "label_loss": "cross_entropy"},
    "kl + cross_entropy": {"alpha": 0.5, "teacher_loss": "kl", "label_loss": "cross_entropy"},
    "kl (T=2) + cross_entropy": SOFT_LABELS,
    "teacher alone: kl (T=2)": SOFT_LABELS | {"alpha": 1.0},
    "kl (T=2) + cross_entropy + hidden states": SOFT_LABELS | {"hidden_weight": 1.0},
    "kl (T=2) + cross_entropy + attention relations": SOFT_LABELS | {"relation_weight": 1.0},
}


def plan(experiment: Experiment) -> Plan:
    """Return the runs of one seed."""
    make = experiment.starts["student"].make
    return {name: partial(experiment.train_and_test, make, **losses) for name, losses in COMBINATIONS.items()}


def draw(axes: Axes, runs: Result) -> None:
    """Draw each seed, and the means."""
    names = list(COMBINATIONS)[::-1]
    for place, name in enumerate(names):
        values = [run["test_accuracy"] for run in runs[name]]
        axes.plot(values, [place] * len(values), "o", color="#1f5fa8", alpha=0.6)
        axes.plot([mean(values)], [place], "|", color="black", markersize=18)
    axes.axvline(mean(run["test_accuracy"] for run in runs[BERT]), color="black", linestyle=":", label="the teacher")
    axes.set(xlabel="test accuracy: each seed, and their mean")
    axes.set_yticks(range(len(names)), names)
    axes.legend(loc="lower right")


def describe(results: Result) -> tuple[str, list[dict[str, str]]]:
    """Return the text and the rows of the page."""
    runs = results["runs"]
    base = runs[next(iter(COMBINATIONS))]
    rows = [{"losses": name} | study.figures_of(runs[name], base) for name in (BERT, *COMBINATIONS)]
    text = f"""# Which losses?

The teacher is {study.describe_bert(results)}. Students of two of its pretrained layers (first and last) are trained
for {study.FURTHER_EPOCHS} epochs; alpha is 0 for the labels alone, 1 for the teacher alone and 0.5 otherwise.
{study.describe_protocol(results)}. The gain is over the labels' cross-entropy alone, seed by seed."""
    return text, rows


def main() -> None:
    """Train what is not trained yet, and write the page."""
    run_study("losses", __doc__, plan, draw, describe)


if __name__ == "__main__":
    main()
