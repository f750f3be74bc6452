"""Which losses train a small student best? A study on real reviews, several seeds.

    python -m examples.imdb.losses

One BERT is fine-tuned. Students of two of its pretrained layers are distilled from it, each with another combination
of losses, and tested on reviews that were used for nothing else. Stopped, the program resumes after the last finished
run. It writes its page, picture and figures to docs/losses.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

from matplotlib.axes import Axes

from examples.imdb import study
from examples.imdb.files import Result
from examples.imdb.intervals import spread
from examples.imdb.study import SOFT_LABELS, Experiment, run_study

SEEDS = (0, 1, 2)
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


def _train(experiment: Experiment, bert: Result) -> Result:
    make = experiment.starts["student"].make
    runs = {"the teacher": [bert]}
    for number, (name, losses) in enumerate(COMBINATIONS.items()):
        runs[name] = [experiment.train_and_test(f"{number}-{seed}", make, seed=seed, **losses) for seed in SEEDS]
    return {"runs": runs}


def _draw(axes: Axes, runs: Result) -> None:
    names = list(COMBINATIONS)[::-1]
    for place, name in enumerate(names):
        values = [run["accuracy"] for run in runs[name]]
        axes.plot(values, [place] * len(values), "o", color="#1f5fa8", alpha=0.6)
        axes.plot([mean(values)], [place], "|", color="black", markersize=18)
    axes.axvline(runs["the teacher"][0]["accuracy"], color="black", linestyle=":", label="the teacher")
    axes.set(xlabel=f"test accuracy: each seed, and their mean ({study.TEST_REVIEWS} reviews)")
    axes.set_yticks(range(len(names)), names)
    axes.legend(loc="lower right")


def describe(results: Result) -> tuple[str, list[dict[str, str]]]:
    """Return the text and the rows of the page."""
    teacher, *students = results["runs"].items()
    base = [run["accuracy"] for run in students[0][1]]
    figures = study.test_figures(teacher[1][0])
    rows = [{"losses": teacher[0], "test accuracy": figures["test accuracy"], "gain": "", **figures}]
    for name, runs in students:
        values = [run["accuracy"] for run in runs]
        gains = [value - other for value, other in zip(values, base, strict=True)]
        rows.append(
            {
                "losses": name,
                "test accuracy": f"{mean(values):.3f} (± {spread(values):.3f})",
                "gain": f"{mean(gains):+.3f} (± {spread(gains):.3f})",
                "cross-entropy": f"{mean(run['cross_entropy'] for run in runs):.3f}",
            }
        )
    text = f"""# Which losses?

The teacher is {study.BERT}. Students of two of its pretrained layers (first and last) are trained for
{study.FURTHER_EPOCHS} epochs; alpha is 0 for the labels alone, 1 for the teacher alone and 0.5 otherwise.
{study.PROTOCOL}; {len(SEEDS)} seeds, mean and Student's 95 % interval over the seeds, which does not cover the choice
of the reviews. The gain is over the labels' cross-entropy alone, seed by seed. The teacher: one seed, Wilson's
interval."""
    return text, rows


def main() -> None:
    """Train what is not trained yet, and write the page."""
    run_study("losses", __doc__, _train, _draw, describe)


if __name__ == "__main__":
    main()
