"""What heads and neurons are worth: accuracy against FLOPs, before and after distillation; a study on real reviews.

    python -m examples.imdb.shrinking

One BERT is fine-tuned, shrunk to several shares of its FLOPs with three rankings of its heads and neurons, and tested
without further training; the models of half the FLOPs are also distilled from the original for a few epochs and tested
again. Stopped, the program resumes after the last finished run. It writes its page, picture and figures to
docs/shrinking.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from matplotlib.axes import Axes

import hfcompress as hfc
from examples.imdb import study
from examples.imdb.data import encode
from examples.imdb.files import Result
from examples.imdb.models import Pair
from examples.imdb.study import SOFT_LABELS, Experiment, run_study
from examples.imdb.systems import RANKING_REVIEWS

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)
IMPORTANCES = ("l1", "taylor", "fisher")
DISTILLED = 0.5  # the share that is also distilled
CONTROL = "BERT, distilled from itself"


def _train(experiment: Experiment, bert: Result) -> Result:
    further: Callable[..., Result] = partial(experiment.train_and_test, **SOFT_LABELS)
    runs = {"BERT": bert, CONTROL: further("control", experiment.load_bert)}
    for importance in IMPORTANCES:
        shrink = partial(_shrink, experiment, importance)
        for share in SHARES:
            run = experiment.train_and_test(f"{importance}-{share}", partial(shrink, share), epochs=0)
            runs[f"{importance} {share}"] = run
        runs[f"{importance} {DISTILLED}, distilled"] = further(f"{importance}-healed", partial(shrink, DISTILLED))
    start = time.perf_counter()
    _shrink(experiment, "fisher", SHARES[2])
    return {"seconds": time.perf_counter() - start, "runs": runs}


def _shrink(experiment: Experiment, importance: Any, share: float) -> Pair:
    model, tokenizer = experiment.load_bert()
    reviews = experiment.reviews["train"]
    rows = encode(reviews.take(min(RANKING_REVIEWS, len(reviews))), tokenizer, study.MAX_LENGTH)
    ranked = {"importance": importance, "dataset": None if importance == "l1" else rows}
    hfc.prune_structured(model, flops=share, reconstruct=False, **ranked)
    return model, tokenizer


def _draw(axes: Axes, runs: Result) -> None:
    for index, (importance, marker) in enumerate(zip(IMPORTANCES, "os^", strict=False)):
        shares = [share + 0.004 * (index - 1) for share in SHARES]  # or the bars would hide each other
        shrunken, label = [runs[f"{importance} {share}"] for share in SHARES], f"{importance}, not distilled"
        color = study.draw_runs(axes, shares, shrunken, marker=marker, label=label).lines[0].get_color()
        distilled = runs[f"{importance} {DISTILLED}, distilled"]["accuracy"]
        axes.plot(shares[-1], distilled, marker="*", markersize=14, color=color, linestyle="none")
    axes.plot([], [], "*", color="gray", markersize=12, label="distilled")
    study.draw_levels(axes, runs, "BERT", CONTROL)
    axes.set(xlabel="share of the FLOPs that is left", ylabel="test accuracy, 95 % interval", xticks=SHARES)
    axes.invert_xaxis()
    axes.legend()


def describe(results: Result) -> tuple[str, list[dict[str, str]]]:
    """Return the text and the rows of the page."""
    text = f"""# Which heads and neurons?

{study.BERT}, then shrunk to a share of its FLOPs by `prune_structured(model, flops=share, importance=...)`, taylor and
fisher with {RANKING_REVIEWS} of those reviews, and tested without further training; the halves also after
{study.FURTHER_EPOCHS} epochs of distillation from the original model (KL at temperature 2 and cross-entropy), beside
the original model trained further in the same way, with itself as the teacher. {study.PROTOCOL}; Wilson's 95 %
interval; one seed. Shrinking to {SHARES[2]:.0%} by fisher took {results["seconds"]:.1f} s, including the time to load
the model and to tokenize the reviews."""
    return text, [{"model": name} | study.test_figures(run) for name, run in results["runs"].items()]


def main() -> None:
    """Train what is not trained yet, and write the page."""
    run_study("shrinking", __doc__, _train, _draw, describe)


if __name__ == "__main__":
    main()
