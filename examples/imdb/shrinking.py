"""What heads and neurons are worth: accuracy against FLOPs, before and after distillation; a study on real reviews.

    python -m examples.imdb.shrinking

One BERT is fine-tuned and shrunk to several shares of its FLOPs, its heads and neurons ranked in three ways, and tested
as it is; then the half-sized ones learn from the whole one for a few epochs and are tested again. Stopped, it goes on
after the last finished run. Its page, picture and figures are written to docs/shrinking.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from tabulate import tabulate

import hfcompress as hfc
from examples.imdb.__main__ import quiet
from examples.imdb.data import Reviews, encode, load_reviews
from examples.imdb.models import Pair, load, starting_models
from examples.imdb.report import machine
from examples.imdb.study import LEARNING_RATE, MAX_LENGTH, SEED, test_interval, train_and_test
from examples.imdb.systems import write_json

REVIEWS, TEST_REVIEWS, RANKED = 1000, 2000, 256
EPOCHS, FURTHER_EPOCHS = 2, 3
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)
IMPORTANCES = ("l1", "taylor", "fisher")
HEALED = 0.5
LOSSES: dict[str, Any] = {"alpha": 0.5, "teacher_loss": "kl", "temperature": 2.0, "label_loss": "cross_entropy"}


def main() -> None:
    """Shrink, train and test what is not done yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/shrinking"), help="folder of page and picture")
    parser.add_argument("--work", type=Path, default=Path("results/shrinking"), help="folder of what can go on")
    arguments = parser.parse_args()
    quiet()
    work, bert = arguments.work, arguments.work / "bert"
    reviews = load_reviews("packaged", REVIEWS, TEST_REVIEWS, SEED)
    pretrained = starting_models("packaged", {}, [], MAX_LENGTH)["bert"]
    found: dict[str, Any] = {"BERT": train_and_test(work / "bert.json", pretrained.make, reviews, EPOCHS, save=bert)}

    def taught(file: Path, make: Callable[[], Pair]) -> dict[str, Any]:
        teacher = None if file.exists() else load(str(bert))[0]
        return train_and_test(file, make, reviews, FURTHER_EPOCHS, teacher=teacher, **LOSSES)

    found["BERT, taught by itself"] = taught(work / "control.json", partial(load, str(bert)))
    for importance in IMPORTANCES:
        for share in SHARES:
            made = partial(_shrunken, bert, reviews, importance, share)
            file = work / f"{importance}-{share}.json"
            found[f"{importance} {share}"] = train_and_test(file, made, reviews, 0)
        made = partial(_shrunken, bert, reviews, importance, HEALED)
        found[f"{importance} {HEALED}, distilled"] = taught(work / f"{importance}-healed.json", made)
    start = time.perf_counter()
    _shrunken(bert, reviews, "fisher", SHARES[2])
    seconds = time.perf_counter() - start
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output / "results.json", {"machine": machine(), "seconds": seconds, "runs": found})
    _draw(found, arguments.output / "accuracy.png")
    (arguments.output / "index.md").write_text(_page(found, seconds))


def _shrunken(bert: Path, reviews: Reviews, importance: Any, share: float) -> Pair:
    model, tokenizer = load(str(bert))
    rows = encode(reviews.train.select(range(min(RANKED, len(reviews.train)))), tokenizer, MAX_LENGTH)
    hfc.prune_structured(model, flops=share, importance=importance, dataset=None if importance == "l1" else rows)
    return model, tokenizer


def _draw(found: dict[str, Any], file: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for index, (importance, marker) in enumerate(zip(IMPORTANCES, "os^", strict=False)):
        runs = [found[f"{importance} {share}"] for share in SHARES]
        shares = [share + 0.004 * (index - 1) for share in SHARES]  # or the bars would hide each other
        bars = [[run["accuracy"] - test_interval(run)[0] for run in runs]]
        bars.append([test_interval(run)[1] - run["accuracy"] for run in runs])
        values = [run["accuracy"] for run in runs]
        drawn = axes.errorbar(shares, values, yerr=bars, marker=marker, capsize=3, label=f"{importance}, as it is")
        healed, color = found[f"{importance} {HEALED}, distilled"], drawn.lines[0].get_color()
        axes.plot(shares[-1], healed["accuracy"], marker="*", markersize=14, color=color, linestyle="none")
    axes.plot([], [], "*", color="gray", markersize=12, label="distilled")
    for name, style in (("BERT", ":"), ("BERT, taught by itself", "--")):
        axes.axhline(found[name]["accuracy"], color="black", linestyle=style, linewidth=1, label=name)
    axes.set(xlabel="share of the FLOPs that is left", ylabel="test accuracy, 95 % interval", xticks=SHARES)
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _page(found: dict[str, Any], seconds: float) -> str:
    rows = []
    for name, run in found.items():
        low, high = test_interval(run)
        accuracy = f"{run['accuracy']:.3f} ({low:.3f} to {high:.3f})"
        rows.append({"model": name, "test accuracy": accuracy, "cross-entropy": f"{run['cross_entropy']:.3f}"})
    return f"""# Which heads and neurons?

all-MiniLM-L6-v2 fine-tuned on {REVIEWS * 4 // 5} IMDB reviews of at most {MAX_LENGTH} tokens for {EPOCHS} epochs, then
shrunk to a share of its FLOPs by `prune_structured(model, flops=share, importance=...)`, taylor and fisher with
{RANKED} of those reviews, and tested as it is; the halves also after {FURTHER_EPOCHS} epochs of distillation from the
whole one (KL at temperature 2 and cross-entropy; AdamW, learning rate {LEARNING_RATE:g}, falling linearly), beside the
whole one trained on in the same way. Tested on {TEST_REVIEWS} other reviews; Wilson's 95 % interval; one seed.
Shrinking to {SHARES[2]:.0%} by fisher took {seconds:.1f} s, the loading of model and reviews included.

{tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)}

![Test accuracy by FLOPs](accuracy.png)

{machine()["cpu"]}, {machine()["cores"]} cores. Program: `python -m examples.imdb.shrinking`.
"""


if __name__ == "__main__":
    main()
