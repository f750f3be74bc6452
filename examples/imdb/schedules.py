"""How to come to a sparsity: all at once, in equal steps, or by the cubic schedule; a study on real reviews.

    python -m examples.imdb.schedules

One BERT is fine-tuned; from there each run trains on for the same number of steps, pruning as its schedule says, with
the zeros kept, and is tested on reviews that were used for nothing else. Stopped, it goes on after the last finished
run. Its page, picture and figures are written to docs/schedules.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from tabulate import tabulate
from transformers import TrainerCallback, set_seed

import hfcompress as hfc
from examples.imdb.__main__ import quiet
from examples.imdb.data import Reviews, encode, load_reviews
from examples.imdb.models import load, starting_models
from examples.imdb.report import interval, machine
from examples.imdb.systems import machine_arguments, write_json

AMOUNTS = (0.2, 0.5, 0.7, 0.9)
SCHEDULES: dict[str, dict[str, Any]] = {
    "one-shot": {"schedule": "one-shot"},
    "iterative": {"schedule": "linear", "end": 0.6, "every": 0.2},
    "cubic": {"schedule": "cubic", "end": 0.6},
}
REVIEWS, TEST_REVIEWS, MAX_LENGTH = 1000, 2000, 64
EPOCHS, FURTHER_EPOCHS, LEARNING_RATE, SEED = 2, 3, 5e-5, 0


def main() -> None:
    """Train what is not trained yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/schedules"), help="folder of page and picture")
    parser.add_argument("--work", type=Path, default=Path("results/schedules"), help="folder of what can go on")
    arguments = parser.parse_args()
    quiet()
    reviews = load_reviews("packaged", REVIEWS, TEST_REVIEWS, SEED)
    start = arguments.work / "bert"
    found = {"BERT": _run(arguments.work / "bert.json", None, reviews, EPOCHS, [], save=start)}
    found["trained on, nothing pruned"] = _run(arguments.work / "control.json", start, reviews, FURTHER_EPOCHS, [])
    for amount in AMOUNTS:
        for name, chosen in SCHEDULES.items():
            callbacks = [hfc.GradualPruning(amount, **chosen)]
            file = arguments.work / f"{name}-{amount}.json"
            found[f"{name} {amount}"] = _run(file, start, reviews, FURTHER_EPOCHS, callbacks)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output / "results.json", {"machine": machine(), "runs": found})
    _draw(found, arguments.output / "accuracy.png")
    (arguments.output / "index.md").write_text(_page(found))


def _run(
    file: Path,
    start: Path | None,
    reviews: Reviews,
    epochs: int,
    callbacks: list[TrainerCallback],
    save: Path | None = None,
) -> dict[str, Any]:
    """Train, test and note the result, or read what was noted before."""
    if file.exists():
        return dict(json.loads(file.read_text()))
    print(file.stem, file=sys.stderr)
    set_seed(SEED)
    model, tokenizer = load(str(start)) if start else starting_models("packaged", {}, [], MAX_LENGTH)["bert"].make()
    arguments = hfc.DistillationArguments(
        output_dir=str(file.with_suffix("")),
        alpha=0.0,
        label_loss="cross_entropy",
        num_train_epochs=epochs,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=32,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="linear",
        bf16=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        seed=SEED,
        **machine_arguments(),
    )
    trainer = hfc.DistillationTrainer(
        model=model,
        args=arguments,
        train_dataset=encode(reviews.train, tokenizer, MAX_LENGTH),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.train()
    assert reviews.test is not None
    tested = trainer.predict(encode(reviews.test, tokenizer, MAX_LENGTH)).metrics
    if save:
        model.save_pretrained(save)
        tokenizer.save_pretrained(save)
    result = {
        "sparsity": hfc.sparsity_report(model).sparsity,
        "accuracy": tested["test_accuracy"],
        "cross_entropy": tested["test_loss"],
        "reviews": len(reviews.test),
    }
    write_json(file, result)
    return result


def _interval(run: dict[str, Any]) -> tuple[float, float]:
    return interval(run["accuracy"], run["reviews"])


def _draw(found: dict[str, dict[str, Any]], file: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for index, (name, marker) in enumerate(zip(SCHEDULES, "os^", strict=True)):
        runs = [found[f"{name} {amount}"] for amount in AMOUNTS]
        values = [run["accuracy"] for run in runs]
        bars = [[value - _interval(run)[0] for value, run in zip(values, runs, strict=True)]]
        bars.append([_interval(run)[1] - value for value, run in zip(values, runs, strict=True)])
        aside = [run["sparsity"] + 0.008 * (index - 1) for run in runs]  # or the bars would hide each other
        axes.errorbar(aside, values, yerr=bars, marker=marker, capsize=3, label=name)
    for name, style in (("BERT", ":"), ("trained on, nothing pruned", "--")):
        axes.axhline(found[name]["accuracy"], color="black", linestyle=style, linewidth=1, label=name)
    axes.set(xlabel="sparsity of the prunable weights", ylabel="test accuracy, 95 % interval", xticks=AMOUNTS)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _page(found: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, run in found.items():
        low, high = _interval(run)
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

{tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)}

![Test accuracy by sparsity and schedule](accuracy.png)

{machine()["cpu"]}, {machine()["cores"]} cores. Program: `python -m examples.imdb.schedules`.
"""


if __name__ == "__main__":
    main()
