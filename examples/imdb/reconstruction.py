"""What reconstruction is worth: accuracy against FLOPs, without training and after it; a study on real texts.

    python -m examples.imdb.reconstruction

For each of two data sets and three seeds one BERT is fine-tuned, shrunk to several shares of its FLOPs by several
rankings, with and without the outputs of its layers reconstructed, and tested without further training. Some of the
shrunken models are also distilled from the original for one and for three epochs and tested again. Stopped, the program
resumes after the last finished run; several processes can share the work (``--texts``, ``--seeds``, ``--jobs``). It
writes its page, picture and figures to docs/reconstruction.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate
from transformers import set_seed

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
from examples.imdb.files import Result, read_json, read_or_compute, write_json
from examples.imdb.intervals import spread
from examples.imdb.models import Pair, load, starting_models
from examples.imdb.study import SOFT_LABELS
from examples.imdb.training import training_arguments
from hfcompress.compat import current_accelerator

SEEDS = (0, 1, 2)
SHARES = (0.7, 0.5, 0.35, 0.25, 0.15)
CALIBRATION_TEXTS = 512  # given to the call
METHODS: dict[str, dict[str, Any]] = {
    "l1": {"importance": "l1", "reconstruct": False},
    "l1, reconstructed": {"importance": "l1", "reconstruct": True},
    "fisher": {"importance": "fisher", "reconstruct": False},
    "fisher, reconstructed": {"importance": "fisher", "reconstruct": True},
    "obs, reconstructed": {"importance": "obs", "reconstruct": True},
}
LAST = [*METHODS][-1]  # which the page compares with the original
DISTILLED = ("fisher", LAST)
DISTILLED_SHARES = (0.5, 0.25)
EPOCHS = (1, 3)
RECIPES: dict[str, dict[str, Any]] = {
    "5e-5": {"learning_rate": 5e-5},
    "2e-5, warm-up": {"learning_rate": 2e-5, "warmup_steps": 100},
    "5e-5, hidden states": {"learning_rate": 5e-5, "hidden_weight": 1.0},
    "5e-5, in two steps": {"learning_rate": 5e-5},  # half of the removal and of the epochs, then the rest of both
}


Job = tuple[str, Callable[[], Result]]


@dataclass(frozen=True)
class Texts:
    """A data set of the study, and how its teachers are fine-tuned.

    Attributes:
        title: For the page.
        source: As for `load_reviews`.
        count: Texts drawn, of which a fifth is left for choices.
        test_count: Other texts, to test on.
        max_length: Tokens at most.
        epochs: Of the teacher.
        learning_rate: Of the teacher.
        recipes: Names of the RECIPES that shrunken models are distilled with.
        models: Where the BERT comes from, as for `starting_models`.
    """

    title: str
    source: str
    count: int
    test_count: int
    max_length: int
    epochs: int
    learning_rate: float
    recipes: Sequence[str]
    models: str = "packaged"


TEXTS = {
    "sentences": Texts("Rotten Tomatoes", "packaged-sentences", 6250, 2200, 64, 3, 5e-5, [*RECIPES][:-1]),
    "reviews": Texts("IMDB", "packaged", 2500, 2000, 128, 2, 1e-4, [*RECIPES]),
}


@dataclass(frozen=True)
class Case:
    """One data set and one seed; the fine-tuned BERT and all results are in the folder ``work``."""

    texts: Texts
    seed: int
    work: Path
    precision: str

    @cached_property
    def data(self) -> DatasetDict:
        """The texts and labels, tokenized."""
        drawn = load_reviews(self.texts.source, self.texts.count, self.texts.test_count, self.seed)
        _, tokenizer = self._start()
        return DatasetDict({name: encode(part, tokenizer, self.texts.max_length) for name, part in drawn.items()})

    @cached_property
    def train_with_logits(self) -> Dataset:
        """The training texts with the teacher's logits."""
        teacher, _ = self.load_teacher()
        return hfc.cache_teacher_logits(teacher, self.data["train"], cache_dir=self.work / "logits")

    def load_teacher(self) -> Pair:
        """Load the fine-tuned BERT and its tokenizer."""
        return load(str(self.work / "teacher"))

    def jobs(self) -> list[Job]:
        """List the models to train and test, the fine-tuned BERT first."""
        jobs: list[Job] = [("teacher", self._fine_tune)]
        jobs += [(f"{method} {share}", partial(self._shrink, method, share)) for share in SHARES for method in METHODS]
        for recipe in self.texts.recipes:
            for epochs in EPOCHS:
                for share in DISTILLED_SHARES:
                    for method in DISTILLED:
                        name = f"{method} {share}, {recipe}, {epochs}"
                        jobs.append((name, partial(self._distill, method, share, recipe, epochs)))
        return jobs

    def finish(self, job: Job) -> None:
        """Do a job and note its result, unless that was done before."""
        name, compute = job

        def announced() -> Result:
            print(f"{self.work.name}: {name}", file=sys.stderr, flush=True)
            return compute()

        read_or_compute(self.work / f"{name}.json", announced)

    def finished(self) -> dict[str, Result]:
        """Read the results that are there, each with its agreement with the teacher in place of its predictions."""
        found = {name: read_json(self.work / f"{name}.json") for name, _ in self.jobs()}
        runs = {name: run for name, run in found.items() if run}
        expected = runs["teacher"]["predictions"] if runs else []
        for run in runs.values():
            pairs = zip(run["predictions"], expected, strict=True)
            run |= {"seed": self.seed, "agreement": statistics.mean(one == other for one, other in pairs)}
        return {name: {key: run[key] for key in run if key != "predictions"} for name, run in runs.items()}

    def _fine_tune(self) -> Result:
        folder = self.work / "teacher"
        if not (folder / "tokenizer_config.json").exists():
            set_seed(self.seed)
            model, tokenizer = self._start()
            settings = {"num_train_epochs": self.texts.epochs, "learning_rate": self.texts.learning_rate}
            self._trainer((model, tokenizer), self.data["train"], alpha=0.0, **settings).train()
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return self._test(self._trainer(self.load_teacher(), None, alpha=0.0))

    def _shrink(self, method: str, share: float) -> Result:
        return self._test(self._trainer(self._shrunken(method, share), None, alpha=0.0))

    def _distill(self, method: str, share: float, recipe: str, epochs: int) -> Result:
        settings = SOFT_LABELS | RECIPES[recipe] | {"num_train_epochs": epochs}
        teacher = self.load_teacher()[0] if "hidden_weight" in settings else None  # of which the logits are not enough
        if recipe.endswith("in two steps"):
            settings["num_train_epochs"] = epochs / 2
            halfway = (1 + share) / 2
            pair = self._shrunken(method, halfway)
            self._trainer(pair, self.train_with_logits, **settings).train()
            self._shrink_pair(pair, method, share / halfway)
        else:
            pair = self._shrunken(method, share)
        trainer = self._trainer(pair, self.train_with_logits, teacher=teacher, **settings)
        trainer.train()
        return self._test(trainer)

    def _start(self) -> Pair:
        return starting_models(self.texts.models, {}, [], self.texts.max_length)["bert"].make()

    def _shrunken(self, method: str, share: float) -> Pair:
        """Load the fine-tuned BERT, shrunk to this share; made once, and kept in a folder."""
        folder = self.work / f"{method} {share}"
        if not (folder / "tokenizer_config.json").exists():
            pair = self.load_teacher()
            self._shrink_pair(pair, method, share)
            for part in pair:
                part.save_pretrained(folder)
        return load(str(folder))

    def _shrink_pair(self, pair: Pair, method: str, share: float) -> None:
        model = pair[0].to(current_accelerator() or "cpu")
        rows = self.data["train"].take(min(CALIBRATION_TEXTS, len(self.data["train"])))
        if not method.startswith("fisher"):  # the others need none
            rows = rows.remove_columns("labels")
        hfc.prune_structured(model, flops=share, dataset=rows, **METHODS[method])

    def _trainer(self, pair: Pair, train: Dataset | None, teacher: Any = None, **settings: Any) -> Any:
        model, tokenizer = pair
        arguments = training_arguments(
            self.work / "trainer",
            self.precision,
            per_device_train_batch_size=16,
            lr_scheduler_type="linear",
            save_strategy="no",
            seed=self.seed,
            **{"label_loss": "cross_entropy"} | settings,
        )
        arguments.train_sampling_strategy = "group_by_length"  # before transformers 5.2 an unknown name, without effect
        return hfc.DistillationTrainer(
            model=model, args=arguments, teacher=teacher, train_dataset=train, processing_class=tokenizer
        )

    def _test(self, trainer: Any) -> Result:
        tested = trainer.predict(self.data["test"])
        return {
            "accuracy": tested.metrics["test_accuracy"],
            "cross_entropy": tested.metrics["test_loss"],
            "predictions": tested.predictions.argmax(-1).tolist(),
            "precision": self.precision,
        }


def write_page(folder: Path, results: Result) -> None:
    """Write the results, the picture and the page of the study."""
    write_json(folder / "results.json", results)
    figure = Figure(figsize=(11, 5), layout="constrained")
    for axes, (name, texts) in zip(figure.subplots(1, len(TEXTS), squeeze=False).flat, TEXTS.items(), strict=True):
        draw(axes, texts, results["runs"][name])
    figure.savefig(folder / "accuracy.png", dpi=120)
    (folder / "index.md").write_text(render_page(results))


def draw(axes: Axes, texts: Texts, runs: dict[str, list[Result]]) -> None:
    """Draw the accuracies of one data set."""
    axes.grid(alpha=0.3)
    for method, marker in zip(METHODS, "sv^oD", strict=True):
        shares = [share for share in SHARES if f"{method} {share}" in runs]
        values = [[run["accuracy"] for run in runs[f"{method} {share}"]] for share in shares]
        bars = [spread(one) for one in values]
        style = "-" if "reconstructed" in method else ":"
        axes.errorbar(shares, [*map(statistics.mean, values)], bars, marker=marker, ls=style, capsize=3, label=method)
    if "teacher" in runs:
        level = statistics.mean(run["accuracy"] for run in runs["teacher"])
        axes.axhline(level, color="black", linestyle="--", linewidth=1, label="the original")
    axes.set(title=texts.title, xlabel="share of the FLOPs that is left", ylabel="test accuracy, 95 % interval")
    axes.set_xticks(SHARES)
    axes.invert_xaxis()
    axes.legend()


def render_page(results: Result) -> str:
    """Return the page of the study."""
    runs = results["runs"]
    drawn = " and on ".join(
        f"{texts.count * 4 // 5:,} texts of {texts.title} of at most {texts.max_length} tokens ({texts.epochs} epochs, "
        f"learning rate {texts.learning_rate:g}; tested on {texts.test_count:,} others)"
        for texts in TEXTS.values()
    )
    parts = [
        "# What is reconstruction worth?",
        f"""all-MiniLM-L6-v2 fine-tuned on {drawn}, then shrunk to a share of its FLOPs by `prune_structured(model,
flops=share, importance=..., reconstruct=..., dataset=...)` with {CALIBRATION_TEXTS} of the training texts (their labels
for `"fisher"` alone; the call holds a fourth of the texts out) and tested without further training. {len(SEEDS)} seeds,
each with texts and a teacher of its own: mean and Student's 95 % interval. The last columns are about `{LAST}`;
differences are taken seed by seed.""",
    ]
    for name, texts in TEXTS.items():
        parts += [f"## {texts.title}, without training", _table(_untrained_rows(runs[name]))]
    parts.append("![Test accuracy against the share of the FLOPs](accuracy.png)")
    distilled = {name: [*_distilled_rows(texts, runs[name])] for name, texts in TEXTS.items()}
    if any(distilled.values()):
        parts += [
            "## After distillation",
            f"""The same models after distillation from the original on all its training texts (KL at temperature
{SOFT_LABELS["temperature"]:g} and cross-entropy, alpha {SOFT_LABELS["alpha"]}; AdamW, learning rate falling linearly,
16 texts a step). The gain is that over `fisher`, seed by seed. In two steps: half of the FLOPs that go are removed
first, and the rest, reconstructed again, after half of the epochs.""",
        ]
    for name, texts in TEXTS.items():
        if distilled[name]:
            parts += [f"### {texts.title}", _table(distilled[name])]
    precisions = sorted({run["precision"] for one in runs.values() for many in one.values() for run in many})
    parts.append(
        f"{name_machine(results['machine'])}; trained in {' and '.join(precisions)}. Program: `python -m "
        "examples.imdb.reconstruction`."
    )
    return "\n\n".join(_wrapped(part) for part in parts) + "\n"


def _untrained_rows(runs: dict[str, list[Result]]) -> Iterable[dict[str, str]]:
    if "teacher" in runs:
        yield {"FLOPs left": "1", **dict.fromkeys(METHODS, ""), LAST: _accuracy(runs["teacher"])}
    for share in SHARES:
        found = {method: runs[f"{method} {share}"] for method in METHODS if f"{method} {share}" in runs}
        cells = {method: _accuracy(found[method]) if method in found else "" for method in METHODS}
        if LAST in found:
            last = found[LAST]
            cells |= {
                "to the original, points": _difference(last, runs["teacher"]),
                "agreement": f"{statistics.mean(run['agreement'] for run in last):.3f}",
            }
        if found:
            yield {"FLOPs left": f"{share}", **cells}


def _distilled_rows(texts: Texts, runs: dict[str, list[Result]]) -> Iterable[dict[str, str]]:
    for share in DISTILLED_SHARES:
        for recipe in texts.recipes:
            for epochs in EPOCHS:
                names = [f"{method} {share}, {recipe}, {epochs}" for method in DISTILLED]
                if all(name in runs for name in names):
                    plain, solved = (runs[name] for name in names)
                    yield {
                        "FLOPs left": f"{share}",
                        "learning rate": recipe,
                        "epochs": f"{epochs}",
                        **{method: _accuracy(runs[name]) for method, name in zip(DISTILLED, names, strict=True)},
                        "gain, points": _difference(solved, plain),
                        "to the original, points": _difference(solved, runs["teacher"]),
                    }


def _accuracy(runs: Sequence[Result]) -> str:
    return _mean([run["accuracy"] for run in runs])


def _difference(runs: Sequence[Result], others: Sequence[Result]) -> str:
    """The mean difference of accuracies in points, of the seeds that both have."""
    before = {run["seed"]: run["accuracy"] for run in others}
    values = [100 * (run["accuracy"] - before[run["seed"]]) for run in runs if run["seed"] in before]
    return _mean(values, "+.1f")


def _mean(values: Sequence[float], form: str = ".3f") -> str:
    parts = [f"± {spread(values):{form.lstrip('+')}}"] if len(values) > 1 else []
    parts += [f"{len(values)} of {len(SEEDS)} seeds"] if len(values) < len(SEEDS) else []
    return f"{statistics.mean(values):{form}} ({', '.join(parts)})"


def _table(rows: Iterable[dict[str, str]]) -> str:
    return str(tabulate([*rows], headers="keys", tablefmt="github", disable_numparse=True))


def _wrapped(part: str) -> str:
    return part if part.startswith(("|", "#", "!")) else textwrap.fill(part, 120, break_on_hyphens=False)


def main() -> None:
    """Train and test what is not yet, and write the page of what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--output", type=Path, default=Path("docs", "reconstruction"), help="folder of page and picture")
    option("--work", type=Path, default=Path("results", "reconstruction"), help="folder of the finished runs")
    option("--precision", choices=PRECISIONS, default="auto", help="of the training (default: auto)")
    option("--texts", choices=TEXTS, nargs="+", default=[*TEXTS], help="which to train on (default: all)")
    option("--seeds", type=int, nargs="+", default=[*SEEDS], help="which to train with (default: all)")
    option("--jobs", default="", metavar="PATTERN", help="a regular expression of names (default: all)")
    arguments = parser.parse_args()
    silence_libraries()
    try:
        precision = choose_precision(arguments.precision)
    except UsageError as error:
        parser.error(str(error))
    cases = {
        (name, seed): Case(texts, seed, arguments.work / f"{name}-{seed}", precision)
        for name, texts in TEXTS.items()
        for seed in SEEDS
    }
    for (name, seed), case in cases.items():
        if name in arguments.texts and seed in arguments.seeds:
            for job in case.jobs():
                if job[0] == "teacher" or re.search(arguments.jobs, job[0]):
                    case.finish(job)
    runs: dict[str, dict[str, list[Result]]] = {name: {} for name in TEXTS}
    for (name, _), case in cases.items():
        for run, result in case.finished().items():
            runs[name].setdefault(run, []).append(result)
    write_page(arguments.output, {"machine": describe_machine(), "runs": runs})


if __name__ == "__main__":
    main()
