"""How to come to a sparsity: all at once, in equal steps, or by the cubic schedule; a study on real reviews.

    python -m examples.imdb.schedules

One BERT is fine-tuned; from there each run trains on for the same number of steps, pruning as its schedule says, with
the zeros kept, and is tested on reviews that were used for nothing else. Stopped, it goes on after the last finished
run. Its page, picture and figures are written to docs/schedules.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from tabulate import tabulate

import hfcompress as hfc
from examples.imdb.__main__ import quiet
from examples.imdb.data import load_reviews
from examples.imdb.models import Pair, load, starting_models
from examples.imdb.report import machine
from examples.imdb.study import LEARNING_RATE, MAX_LENGTH, SEED, test_interval, train_and_test
from examples.imdb.systems import write_json

AMOUNTS = (0.2, 0.5, 0.7, 0.9)
SCHEDULES: dict[str, dict[str, Any]] = {
    "one-shot": {"schedule": "one-shot"},
    "iterative": {"schedule": "linear", "end": 0.6, "every": 0.2},
    "cubic": {"schedule": "cubic", "end": 0.6},
}
POOLER = "*pooler*"
WITHOUT_POOLER = (0.7,)  # an amount that leaves nothing of it
REVIEWS, TEST_REVIEWS = 1000, 2000
EPOCHS, FURTHER_EPOCHS = 2, 3
_SPARED = ", pooler not pruned"


def main() -> None:
    """Train what is not trained yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/schedules"), help="folder of page and picture")
    parser.add_argument("--work", type=Path, default=Path("results/schedules"), help="folder of what can go on")
    arguments = parser.parse_args()
    quiet()
    reviews = load_reviews("packaged", REVIEWS, TEST_REVIEWS, SEED)
    pretrained, bert = starting_models("packaged", {}, [], MAX_LENGTH)["bert"], arguments.work / "bert"
    fine_tuned = partial(load, str(bert))
    found = {"BERT": train_and_test(arguments.work / "bert.json", pretrained.make, reviews, EPOCHS, save=bert)}
    further = partial(train_and_test, make=fine_tuned, reviews=reviews, epochs=FURTHER_EPOCHS)
    found["trained on, nothing pruned"] = further(arguments.work / "control.json")
    for amount in AMOUNTS:
        for name, chosen in SCHEDULES.items():
            file = arguments.work / f"{name}-{amount}.json"
            found[f"{name} {amount}"] = further(file, callbacks=[hfc.GradualPruning(amount, **chosen)])
    for amount in WITHOUT_POOLER:
        for name, chosen in SCHEDULES.items():
            file = arguments.work / f"{name}-{amount}-without-pooler.json"
            pruning = hfc.GradualPruning(amount, exclude=POOLER, **chosen)
            found[f"{name} {amount}{_SPARED}"] = further(file, callbacks=[pruning])
    arguments.output.mkdir(parents=True, exist_ok=True)
    pooler = _pooler(fine_tuned)
    write_json(arguments.output / "results.json", {"machine": machine(), "pooler": pooler, "runs": found})
    _draw(found, arguments.output / "accuracy.png")
    (arguments.output / "index.md").write_text(_page(found, pooler))


def _pooler(make: Callable[[], Pair]) -> dict[str, Any]:
    """How many weights the pooler has, and how many are left of them after pruning at once."""
    left = {}
    for amount in AMOUNTS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that there are none
            report = hfc.prune_global_l1(make()[0], amount)
        layer = next(layer for layer in report.layers if fnmatch(layer.name, POOLER))
        left[str(amount)] = layer.weights - layer.zeros
    return {"weights": layer.weights, "left": left}


def _draw(found: dict[str, dict[str, Any]], file: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for index, (name, marker) in enumerate(zip(SCHEDULES, "os^", strict=True)):
        color = f"C{index}"
        for amounts, spared, inside in ((AMOUNTS, "", color), (WITHOUT_POOLER, _SPARED, "white")):
            runs = [found[f"{name} {amount}{spared}"] for amount in amounts]
            values = [run["accuracy"] for run in runs]
            bars = [[value - test_interval(run)[0] for value, run in zip(values, runs, strict=True)]]
            bars.append([test_interval(run)[1] - value for value, run in zip(values, runs, strict=True)])
            aside = [amount + 0.008 * (index - 1) for amount in amounts]  # or the bars would hide each other
            look: dict[str, Any] = {"marker": marker, "color": color, "markerfacecolor": inside, "capsize": 3}
            axes.errorbar(aside, values, yerr=bars, label=name + spared, **look)
    for name, style in (("BERT", ":"), ("trained on, nothing pruned", "--")):
        axes.axhline(found[name]["accuracy"], color="black", linestyle=style, linewidth=1, label=name)
    axes.set(xlabel="amount: sparsity of the matrices in scope", ylabel="test accuracy, 95 % interval", xticks=AMOUNTS)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _page(found: dict[str, dict[str, Any]], pooler: dict[str, Any]) -> str:
    left, rows = ", ".join(f"{number:,}" for number in pooler["left"].values()), []
    for name, run in found.items():
        low, high = test_interval(run)
        rows.append(
            {
                "run": name,
                "sparsity": f"{run['sparsity']:.2%}",
                "test accuracy": f"{run['accuracy']:.3f} ({low:.3f} to {high:.3f})",
                "cross-entropy": f"{run['cross_entropy']:.3f}",
            }
        )
    return f"""# Which schedule?

all-MiniLM-L6-v2 fine-tuned on {REVIEWS * 4 // 5} IMDB reviews of at most {MAX_LENGTH} tokens for {EPOCHS} epochs, then
{FURTHER_EPOCHS} epochs in which it is pruned: at once before the first step (one-shot), in four equal steps until three
fifths of the training (iterative), or by the cubic schedule until then. AdamW, learning rate {LEARNING_RATE:g}, falling
linearly. Tested on {TEST_REVIEWS} other reviews; Wilson's 95 % interval; one seed.

This model's pooler has small weights: when pruned at once to {", ".join(pooler["left"])}, there are {left} left of its
{pooler["weights"]:,}. Without any, every text gets the same answer, so there it was also pruned with
`exclude="{POOLER}"`; the sparsity is that of all prunable weights, the pooler's included.

{tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)}

![Test accuracy by sparsity and schedule](accuracy.png)

{machine()["cpu"]}, {machine()["cores"]} cores. Program: `python -m examples.imdb.schedules`.
"""


if __name__ == "__main__":
    main()
