"""Which losses teach a small student best? A study on real reviews, several seeds.

    python -m examples.imdb.losses

One BERT is fine-tuned and then teaches students of two of its pretrained layers, each with another combination of
losses. They are tested on reviews that were used for nothing else. Stopped, it goes on after the last finished run. Its
page, picture and figures are written to docs/losses.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import scipy.stats
from matplotlib import pyplot as plt
from tabulate import tabulate

from examples.imdb.__main__ import quiet
from examples.imdb.data import load_reviews
from examples.imdb.models import load, starting_models
from examples.imdb.report import machine
from examples.imdb.study import LEARNING_RATE, MAX_LENGTH, SEED, test_interval, train_and_test
from examples.imdb.systems import write_json

REVIEWS, TEST_REVIEWS = 1000, 2000
EPOCHS, STUDENT_EPOCHS, SEEDS = 2, 3, (0, 1, 2)
_SOFT = {"alpha": 0.5, "teacher_loss": "kl", "temperature": 2.0, "label_loss": "cross_entropy"}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "labels alone: cross_entropy": {"alpha": 0.0, "label_loss": "cross_entropy"},
    "labels alone: mse": {"alpha": 0.0, "label_loss": "mse"},
    "mse + mse (the paper's)": {"alpha": 0.5, "teacher_loss": "mse", "label_loss": "mse"},
    "mse_logits + cross_entropy": {"alpha": 0.5, "teacher_loss": "mse_logits", "label_loss": "cross_entropy"},
    "kl + cross_entropy": {"alpha": 0.5, "teacher_loss": "kl", "label_loss": "cross_entropy"},
    "kl (T=2) + cross_entropy": _SOFT,
    "teacher alone: kl (T=2)": _SOFT | {"alpha": 1.0},
    "kl (T=2) + cross_entropy + hidden states": _SOFT | {"hidden_weight": 1.0},
    "kl (T=2) + cross_entropy + attention relations": _SOFT | {"relation_weight": 1.0},
}


def main() -> None:
    """Train what is not trained yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/losses"), help="folder of page and picture")
    parser.add_argument("--work", type=Path, default=Path("results/losses"), help="folder of what can go on")
    arguments = parser.parse_args()
    quiet()
    reviews = load_reviews("packaged", REVIEWS, TEST_REVIEWS, SEED)
    starts, work = starting_models("packaged", {}, [], MAX_LENGTH), arguments.work
    bert = train_and_test(work / "bert.json", starts["bert"].make, reviews, EPOCHS, save=work / "bert")
    found: dict[str, list[dict[str, Any]]] = {"the teacher": [bert]}
    for name, losses in COMBINATIONS.items():
        found[name] = []
        for seed in SEEDS:
            file = work / f"{list(COMBINATIONS).index(name)}-{seed}.json"
            teacher = load(str(work / "bert"))[0] if set(losses) != {"alpha", "label_loss"} else None
            make = starts["student"].make
            run = train_and_test(file, make, reviews, STUDENT_EPOCHS, seed=seed, teacher=teacher, **losses)
            found[name].append(run)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output / "results.json", {"machine": machine(), "runs": found})
    _draw(found, arguments.output / "accuracy.png")
    (arguments.output / "index.md").write_text(_page(found))


def spread(values: list[float]) -> float:
    """Half of Student's 95 % interval of the mean."""
    return float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)) if len(values) > 1 else 0.0


def _draw(found: dict[str, list[dict[str, Any]]], file: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    names = list(COMBINATIONS)[::-1]
    for place, name in enumerate(names):
        values = [run["accuracy"] for run in found[name]]
        axes.plot(values, [place] * len(values), "o", color="#1f5fa8", alpha=0.6)
        axes.plot([mean(values)], [place], "|", color="black", markersize=18)
    axes.axvline(found["the teacher"][0]["accuracy"], color="black", linestyle=":", label="the teacher")
    axes.set(xlabel=f"test accuracy: each seed, and their mean ({TEST_REVIEWS} reviews)")
    axes.set_yticks(range(len(names)), names)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _page(found: dict[str, list[dict[str, Any]]]) -> str:
    base = [run["accuracy"] for run in found["labels alone: cross_entropy"]]
    rows = []
    for name, runs in found.items():
        values = [run["accuracy"] for run in runs]
        if len(values) == len(base):
            gains = [value - other for value, other in zip(values, base, strict=True)]
            gain = "" if values is base else f"{mean(gains):+.3f} (± {spread(gains):.3f})"
            accuracy = f"{mean(values):.3f} (± {spread(values):.3f})"
        else:
            low, high = test_interval(runs[0])
            gain, accuracy = "", f"{values[0]:.3f} ({low:.3f} to {high:.3f})"
        entropy = mean(run["cross_entropy"] for run in runs)
        rows.append({"losses": name, "test accuracy": accuracy, "gain": gain, "cross-entropy": f"{entropy:.3f}"})
    return f"""# Which losses?

A teacher, all-MiniLM-L6-v2 fine-tuned on {REVIEWS * 4 // 5} IMDB reviews of at most {MAX_LENGTH} tokens for {EPOCHS}
epochs, teaches students of two of its pretrained layers (first and last) for {STUDENT_EPOCHS} epochs, alpha 0.5 where
nothing else is said. AdamW, learning rate {LEARNING_RATE:g}, falling linearly. Tested on {TEST_REVIEWS} other reviews;
{len(SEEDS)} seeds, mean and Student's 95 % interval over the seeds, which says nothing of how other reviews would have
come out; the gain is that over the labels' cross-entropy alone, seed by seed. The teacher: one seed, Wilson's interval.

{tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)}

![Test accuracy by losses](accuracy.png)

{machine()["cpu"]}, {machine()["cores"]} cores. Program: `python -m examples.imdb.losses`.
"""


if __name__ == "__main__":
    main()
