"""What the studies share: a fine-tuned BERT a seed, trainings noted in files, a page with a table and a picture."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from datasets import Dataset, DatasetDict
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed

import hfcompress as hfc
from examples.imdb.data import encode, load_reviews
from examples.imdb.environment import (
    PRECISIONS,
    choose_precision,
    current_device,
    describe_machine,
    name_machine,
    share_processor,
    silence_libraries,
)
from examples.imdb.errors import UsageError
from examples.imdb.files import Result, read_json, write_json, write_text
from examples.imdb.intervals import format_accuracy, mean_accuracy, spread
from examples.imdb.jobs import Job, finish, start_others
from examples.imdb.models import Pair, Start, load, starting_models
from examples.imdb.settings import ALIASES
from examples.imdb.training import training_arguments

TEXTS, TEST_TEXTS, MAX_LENGTH, SEEDS = 4000, 4000, 128, (0, 1, 2)
EPOCHS, FURTHER_EPOCHS, LEARNING_RATE = 3, 3, 5e-5
SOFT_LABELS: dict[str, Any] = {"alpha": 0.5, "teacher_loss": "kl", "temperature": 2.0, "label_loss": "cross_entropy"}
BERT = "BERT, fine-tuned"  # title of the run that all others start from or learn from
NAMES = {"rotten_tomatoes": "Rotten Tomatoes sentences", "imdb": "IMDB reviews"}

Plan = dict[str, Callable[[], Result]]  # by title, what computes it


@dataclass(frozen=True)
class Experiment:
    """Trains and tests the models of a study with one seed: results and the fine-tuned BERT are in a folder."""

    folder: Path
    seed: int
    reviews: DatasetDict
    starts: dict[str, Start]
    precision: str
    encoded: dict[str, Dataset] = field(default_factory=dict)  # all models of a study have one tokenizer

    def load_bert(self) -> Pair:
        """Load the fine-tuned BERT and its tokenizer."""
        return load(str(self.folder / "bert"))

    def fine_tune(self) -> Result:
        """Fine-tune BERT, and save it."""
        return self.train_and_test(self.starts["bert"].make, epochs=EPOCHS, save=True)

    def train_and_test(
        self,
        make: Callable[[], Pair],
        *,
        epochs: int | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        save: bool = False,
        **losses: Any,
    ) -> Result:
        """Train and test a model.

        With ``epochs=0`` the model is tested as it is. ``losses`` are arguments of `hfcompress.DistillationArguments`,
        by default the labels' cross-entropy alone; with a ``teacher_loss``, the fine-tuned BERT is the teacher.
        """
        teacher = self.load_bert()[0] if "teacher_loss" in losses else None
        set_seed(self.seed)
        model, tokenizer = make()
        arguments = training_arguments(
            self.folder / "trainer",
            self.precision,
            num_train_epochs=FURTHER_EPOCHS if epochs is None else epochs,
            per_device_train_batch_size=16,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="linear",
            save_strategy="no",
            seed=self.seed,
            **{"alpha": 0.0, "label_loss": "cross_entropy"} | losses,
        )
        trainer = hfc.DistillationTrainer(
            model=model,
            args=arguments,
            teacher=teacher,
            train_dataset=self.encode("train", tokenizer),
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        if epochs != 0:
            trainer.train()
        tested = trainer.predict(self.encode("test", tokenizer)).metrics
        if save:
            model.save_pretrained(self.folder / "bert")
            tokenizer.save_pretrained(self.folder / "bert")
        return {
            "sparsity": hfc.sparsity_report(model).sparsity,
            "test_accuracy": tested["test_accuracy"],
            "test_cross_entropy": tested["test_loss"],
            "test_examples": len(self.reviews["test"]),
            "precision": self.precision,
            "machine": name_machine(describe_machine()),
        }

    def encode(self, part: str, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Return a part of the texts as ids."""
        if part not in self.encoded:
            self.encoded[part] = encode(self.reviews[part], tokenizer, MAX_LENGTH)
        return self.encoded[part]

    def load_bert_to_shrink(self) -> Pair:
        """Load the fine-tuned BERT to where its heads and neurons are ranked fastest."""
        model, tokenizer = self.load_bert()
        return model.to(current_device()), tokenizer


def run_study(
    name: str,
    about: str | None,
    plan: Callable[[Experiment], Plan],
    draw: Callable[[Axes, Result], None],
    describe: Callable[[Result], tuple[str, list[dict[str, str]]]],
    argv: Sequence[str] | None = None,
) -> None:
    """Run the command line of a study: train what is not trained yet, and write results, picture and page.

    Args:
        name: Of the study, its module and its folders.
        about: Its help.
        plan: Returns the runs of one seed, which start from the fine-tuned BERT or learn from it.
        draw: Draws the results.
        describe: Returns the text and the rows of the page.
        argv: Arguments; those of the command line if None.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--output", type=Path, default=Path("docs", name), help="folder of page and picture")
    option("--work", type=Path, default=Path("results", name), help="folder of the finished runs")
    data = "rotten_tomatoes or imdb, a .csv or .jsonl file, or a data set name (default: rotten_tomatoes)"
    option("--data", default="rotten_tomatoes", metavar="SOURCE", help=data)
    option("--seeds", type=int, nargs="+", default=list(SEEDS), metavar="SEED", help="of all that is drawn")
    option("--precision", choices=PRECISIONS, default="auto", help="of the training (default: auto)")
    option("--jobs", type=int, default=1, metavar="N", help="processes that share the work (default: 1)")
    option("--helper", action="store_true", help=argparse.SUPPRESS)  # one of the processes of --jobs
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(argv)
    if arguments.jobs > 1:
        share_processor(arguments.jobs)
    silence_libraries()
    try:
        precision = choose_precision(arguments.precision)
        source = ALIASES.get(arguments.data, arguments.data)
        work = arguments.work / re.sub(r"\W+", "-", source)
        drawn = {seed: load_reviews(source, TEXTS, TEST_TEXTS, seed) for seed in arguments.seeds}
    except UsageError as error:
        parser.error(str(error))
    jobs: dict[str, list[Job]] = {}
    for seed, reviews in drawn.items():
        starts = starting_models("packaged", {}, [], MAX_LENGTH)
        experiment = Experiment(work / f"seed-{seed}", seed, reviews, starts, precision)
        bert = experiment.folder / "bert.json"
        jobs.setdefault(BERT, []).append(Job(f"[seed {seed}] {BERT}", bert, experiment.fine_tune))
        for title, compute in plan(experiment).items():
            file = experiment.folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', title)}.json"
            jobs.setdefault(title, []).append(Job(f"[seed {seed}] {title}", file, compute, [bert]))
    others = start_others(f"examples.imdb.{name}", argv, 0 if arguments.helper else arguments.jobs - 1, work / "logs")
    try:
        left = finish([job for of_seeds in jobs.values() for job in of_seeds])
        for other in others:
            other.wait()
    finally:
        for other in others:
            other.terminate()
    left = [job for job in left if not job.is_done]
    if not arguments.helper and not any(job.file.name == "bert.json" for job in left):
        test_count = len(next(iter(drawn.values()))["test"])
        settings = {"data": source, "seeds": arguments.seeds, "train": TEXTS * 4 // 5, "test": test_count}
        runs = {title: read_runs(dict(zip(drawn, of_seeds, strict=True))) for title, of_seeds in jobs.items()}
        write_study(name, arguments.output, {"settings": settings, "runs": runs}, draw, describe)
    if left:
        sys.exit(f"error: {', '.join(job.title for job in left)} failed; see above and {work / 'logs'}.")


def read_runs(jobs: Mapping[int, Job]) -> list[Result]:
    """Return the results of the seeds whose job is done."""
    return [{"seed": seed} | read_json(job.file) for seed, job in jobs.items() if job.is_done]


def write_study(
    name: str,
    output: Path,
    results: Result,
    draw: Callable[[Axes, Result], None],
    describe: Callable[[Result], tuple[str, list[dict[str, str]]]],
) -> None:
    """Write results, picture and page of a study."""
    write_json(output / "results.json", results)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    draw(axes, results["runs"])
    figure.savefig(output / "accuracy.png", dpi=120)
    write_text(output / "index.md", render_page(name, results, *describe(results)))


def render_page(name: str, results: Result, text: str, rows: list[dict[str, str]]) -> str:
    """Return the page of a study."""
    missing = [title for title, of_seeds in results["runs"].items() if not of_seeds]
    if missing:
        text += f" Not run: {', '.join(missing)}."
    if elsewhere := _trained_elsewhere(results["runs"]):
        text += (
            f" From a BERT that was trained again on another machine, in one seed or more: {'; '.join(elsewhere)}. "
            "There the gain is over the training of the first one with nothing pruned."
        )
    text = "\n\n".join(textwrap.fill(one, 120, break_on_hyphens=False) for one in text.split("\n\n"))
    runs = [run for of_seeds in results["runs"].values() for run in of_seeds if "machine" in run]
    machines, precisions = ({run[name] for run in runs} for name in ("machine", "precision"))
    return f"""{text}

{tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)}

![Test accuracy of the runs](accuracy.png)

{"; ".join(sorted(machines))}; trained in {" and ".join(sorted(precisions))}. Program: `python -m examples.imdb.{name}`.
"""


def _trained_elsewhere(runs: Mapping[str, Sequence[Result]]) -> list[str]:
    """Return the titles of runs on another machine than that of the BERT whose figures are shown."""
    first = {run["seed"]: run.get("machine") for run in runs[BERT]}
    return [
        title
        for title, of_seeds in runs.items()
        if any("machine" in run and run["machine"] != first[run["seed"]] for run in of_seeds)
    ]


def describe_bert(results: Result) -> str:
    """Say what BERT is, and how it was fine-tuned."""
    settings = results["settings"]
    texts = f"{settings['train']:,} {NAMES.get(settings['data'], settings['data'])}"
    return f"all-MiniLM-L6-v2 fine-tuned on {texts} for {EPOCHS} epochs"


def describe_protocol(results: Result) -> str:
    """Say what all runs share, and how they are tested."""
    settings, count = results["settings"], len(results["settings"]["seeds"])
    interval = "mean and Student's 95 % interval over the seeds" if count > 1 else "Wilson's 95 % interval"
    return (
        f"AdamW, batches of 16, learning rate {LEARNING_RATE:g}, falling linearly. Tested on {settings['test']:,} "
        f"other texts; {count} seed{'s' * (count > 1)}, each with texts, new weights, order and a BERT of its own; "
        f"{interval}"
    )


def figures_of(runs: Sequence[Result], base: Sequence[Result]) -> dict[str, str]:
    """Return the cells of a run: accuracy, the gain over another run, seed by seed, and cross-entropy."""
    others = {other["seed"]: other for other in base}
    gains = [run["test_accuracy"] - others[run["seed"]]["test_accuracy"] for run in runs]
    interval = "; Wilson's" if len(runs) == 1 else ""
    seeds = "" if len(runs) == len(base) else f", {len(runs)} of {len(base)} seeds{interval}"
    return {
        "test accuracy": format_accuracy(*mean_accuracy(runs, "test")) + seeds,
        "gain": f"{mean(gains):+.3f} (± {spread(gains):.3f})" if len(gains) > 1 else f"{mean(gains):+.3f}",
        "cross-entropy": f"{mean(run['test_cross_entropy'] for run in runs):.3f}",
    }


def draw_runs(axes: Axes, places: Sequence[float], runs: Sequence[Sequence[Result]], **style: Any) -> Any:
    """Draw the accuracies of runs with their intervals, and return the color."""
    values = [mean_accuracy(of_seeds, "test") for of_seeds in runs]
    bars = [[value - low, high - value] for value, low, high in values]
    drawn = axes.errorbar(places, [value for value, *_ in values], yerr=[*zip(*bars, strict=True)], capsize=3, **style)
    return drawn.lines[0].get_color()


def draw_levels(axes: Axes, runs: Mapping[str, Sequence[Result]], *names: str) -> None:
    """Draw the accuracies that others are compared with as lines across."""
    for name, style in zip(names, (":", "--"), strict=True):
        level = mean(run["test_accuracy"] for run in runs[name])
        axes.axhline(level, color="black", linestyle=style, linewidth=1, label=name)
