"""What the studies share: one fine-tuned BERT, trainings noted in files, a page with a table and a picture."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from tabulate import tabulate
from transformers import TrainerCallback, set_seed

import hfcompress as hfc
from examples.imdb.data import encode, load_reviews
from examples.imdb.environment import (
    PRECISIONS,
    choose_precision,
    describe_machine,
    name_machine,
    silence_libraries,
)
from examples.imdb.errors import UsageError
from examples.imdb.files import Result, read_or_compute, write_json
from examples.imdb.intervals import format_accuracy, wilson_interval
from examples.imdb.models import Pair, Start, load, starting_models
from examples.imdb.training import training_arguments

REVIEWS, TEST_REVIEWS, MAX_LENGTH, SEED = 1000, 2000, 64, 0
EPOCHS, FURTHER_EPOCHS, LEARNING_RATE = 2, 3, 5e-5
SOFT_LABELS: dict[str, Any] = {"alpha": 0.5, "teacher_loss": "kl", "temperature": 2.0, "label_loss": "cross_entropy"}

# For the pages.
BERT = (
    f"all-MiniLM-L6-v2 fine-tuned on {REVIEWS * 4 // 5} IMDB reviews of at most {MAX_LENGTH} tokens for {EPOCHS} epochs"
)
PROTOCOL = f"AdamW, learning rate {LEARNING_RATE:g}, falling linearly. Tested on {TEST_REVIEWS} other reviews"


@dataclass(frozen=True)
class Experiment:
    """Trains and tests the models of a study, each once: results and the fine-tuned BERT are in the folder ``work``."""

    work: Path
    reviews: DatasetDict
    starts: dict[str, Start]
    precision: str

    def load_bert(self) -> Pair:
        """Load the fine-tuned BERT and its tokenizer."""
        return load(str(self.work / "bert"))

    def train_and_test(
        self,
        name: str,
        make: Callable[[], Pair],
        *,
        epochs: int | None = None,
        seed: int = SEED,
        callbacks: Sequence[TrainerCallback] = (),
        **losses: Any,
    ) -> Result:
        """Train and test a model and note the result, or read what was noted before.

        With ``epochs=0`` the model is tested as it is. ``losses`` are arguments of `hfcompress.DistillationArguments`,
        by default the labels' cross-entropy alone; with a ``teacher_loss``, the fine-tuned BERT is the teacher.
        """

        def compute() -> Result:
            print(name, file=sys.stderr)
            teacher = self.load_bert()[0] if "teacher_loss" in losses else None
            set_seed(seed)
            model, tokenizer = make()
            arguments = training_arguments(
                self.work / name,
                self.precision,
                num_train_epochs=FURTHER_EPOCHS if epochs is None else epochs,
                per_device_train_batch_size=16,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="linear",
                save_strategy="no",
                seed=seed,
                **{"alpha": 0.0, "label_loss": "cross_entropy"} | losses,
            )
            trainer = hfc.DistillationTrainer(
                model=model,
                args=arguments,
                teacher=teacher,
                train_dataset=encode(self.reviews["train"], tokenizer, MAX_LENGTH),
                processing_class=tokenizer,
                callbacks=list(callbacks),
            )
            if epochs != 0:
                trainer.train()
            tested = trainer.predict(encode(self.reviews["test"], tokenizer, MAX_LENGTH)).metrics
            if name == "bert":
                model.save_pretrained(self.work / name)
                tokenizer.save_pretrained(self.work / name)
            return {
                "sparsity": hfc.sparsity_report(model).sparsity,
                "accuracy": tested["test_accuracy"],
                "cross_entropy": tested["test_loss"],
                "reviews": len(self.reviews["test"]),
                "precision": self.precision,
            }

        return read_or_compute(self.work / f"{name}.json", compute)


def run_study(
    name: str,
    about: str | None,
    train: Callable[[Experiment, Result], Result],
    draw: Callable[[Axes, Result], None],
    describe: Callable[[Result], tuple[str, list[dict[str, str]]]],
) -> None:
    """Run the command line of a study: train what is not trained yet, and write results, picture and page."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs", name), help="folder of page and picture")
    parser.add_argument("--work", type=Path, default=Path("results", name), help="folder of the finished runs")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the training (default: auto)")
    arguments = parser.parse_args()
    silence_libraries()
    try:
        precision = choose_precision(arguments.precision)
    except UsageError as error:
        parser.error(str(error))
    reviews = load_reviews("packaged", REVIEWS, TEST_REVIEWS, SEED)
    experiment = Experiment(arguments.work, reviews, starting_models("packaged", {}, [], MAX_LENGTH), precision)
    bert = experiment.train_and_test("bert", experiment.starts["bert"].make, epochs=EPOCHS)
    results = {"machine": describe_machine()} | train(experiment, bert)
    write_json(arguments.output / "results.json", results)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    draw(axes, results["runs"])
    figure.savefig(arguments.output / "accuracy.png", dpi=120)
    (arguments.output / "index.md").write_text(render_page(name, results, *describe(results)))


def render_page(name: str, results: Result, text: str, rows: list[dict[str, str]]) -> str:
    """Return the page of a study."""
    machine = results["machine"]
    text = "\n\n".join(textwrap.fill(one, 120, break_on_hyphens=False) for one in text.split("\n\n"))
    return f"""{text}

{tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)}

![Test accuracy of the runs](accuracy.png)

{name_machine(machine)}; trained in {_precisions(results["runs"])}. Program: `python -m examples.imdb.{name}`.
"""


def _precisions(runs: dict[str, Any]) -> str:
    """Name the precision that the runs of a study were trained in; several, where it was resumed in another."""
    each = [run for one in runs.values() for run in (one if isinstance(one, list) else [one])]
    return " and ".join(sorted({run["precision"] for run in each}))


def test_figures(run: Result) -> dict[str, str]:
    """Return the cells of a run's accuracy, with its Wilson interval, and cross-entropy."""
    accuracy = format_accuracy(run["accuracy"], *wilson_interval(run["accuracy"], run["reviews"]))
    return {"test accuracy": accuracy, "cross-entropy": f"{run['cross_entropy']:.3f}"}


def draw_runs(axes: Axes, places: Sequence[float], runs: Sequence[Result], **style: Any) -> ErrorbarContainer:
    """Draw the accuracies of runs and their Wilson intervals."""
    values = [run["accuracy"] for run in runs]
    intervals = [wilson_interval(run["accuracy"], run["reviews"]) for run in runs]
    bars = [[value - low, high - value] for value, (low, high) in zip(values, intervals, strict=True)]
    return axes.errorbar(places, values, yerr=[*zip(*bars, strict=True)], capsize=3, **style)


def draw_levels(axes: Axes, runs: Result, *names: str) -> None:
    """Draw the accuracies that others are compared with as lines across."""
    for name, style in zip(names, (":", "--"), strict=True):
        axes.axhline(runs[name]["accuracy"], color="black", linestyle=style, linewidth=1, label=name)
