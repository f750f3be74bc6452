"""`hfcompress.compress` against its rivals at equal measured time, and predicted against measured times.

For each data set and seed a BERT is fine-tuned (MiniLM of 6 layers, as in the study of reconstruction) and compressed:
twice, four and ten times as fast. Beside each rung stand, made as fast by the same clock and trained for as many epochs
in all as the rung and those above it: some of the original's layers (`student_from_teacher`), heads and neurons removed
by one ranking (`prune_structured`, fisher, nothing reconstructed); the original trained on for as long; and the
original in int8. All are tested on rows that nothing else has read, with McNemar's test against the original.

    python -m benchmarks.ladder --work ladders > benchmarks/results/ladder.md

Stopped, it goes on behind the last result in the folder. With ``--plans N`` it predicts and measures the times of N
random plans, and of the original against itself.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import sys
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tabulate import tabulate

import hfcompress as hfc
from benchmarks.prune_global import machine
from examples.imdb.environment import silence_libraries
from examples.imdb.files import Result, read_json, read_or_compute
from examples.imdb.reconstruction import TEXTS, Case
from hfcompress.models.blocks import shaped
from hfcompress.search.clock import Clock, typical_length
from hfcompress.search.loss_table import Plan, head_counts, neuron_counts, predicted_time
from hfcompress.search.rows import Parts, read_parts, readable, with_logits
from hfcompress.search.structure import find_structure, leave_out, share_weights
from hfcompress.search.training import default_arguments, train_rung

SPEEDUPS = (2.0, 4.0, 10.0)
RIVALS = ("ladder", "layers", "fisher", "control", "int8")
_TRIES = 6  # of a bisection to the time of a rung


class Run:
    """One data set and one seed.

    Args:
        texts: The name of the data set.
        seed: Of texts, teacher and training.
        work: Folder for results.
        teachers: Folder with fine-tuned models, as the study of reconstruction keeps them; fine-tuned here if None.
        epochs: Of each rung at most.
        rows: To learn from at most; all if None.
    """

    def __init__(
        self, texts: str, seed: int, work: Path, teachers: Path | None, epochs: float, rows: int | None
    ) -> None:
        self._name, self._epochs, self._count = f"{texts}-{seed}", epochs, rows
        self._work, self._seed, self._texts = work / self._name, seed, TEXTS[texts]
        self._case = Case(self._texts, seed, (teachers or work) / self._name, "no")
        if teachers is None:
            self._case.finish(("teacher", self._case._fine_tune))

    @cached_property
    def pair(self) -> tuple[Any, Any]:
        """The original and its tokenizer."""
        return self._case.load_teacher()

    @cached_property
    def train(self) -> Any:
        """The rows to learn from."""
        data = self._case.data["train"]
        return data if self._count is None else data.select(range(min(self._count, len(data))))

    @cached_property
    def parts(self) -> Parts:
        """The rows of the rivals: those of the ladder."""
        model, tokenizer = self.pair
        args = self._arguments(1.0)
        found = read_parts(model, tokenizer, self.train, self._case.data["validation"], args, None, self._seed)
        found = with_logits(model, copy.deepcopy(model), found, None, args, self._work)
        return readable(found, model, args)

    @cached_property
    def clock(self) -> Clock:
        """The clock of the ladder."""
        model, tokenizer = self.pair
        length = typical_length(model, [len(ids) for ids in self.parts.train["input_ids"]])
        return Clock(model, tokenizer, "torch", 16, length)

    @cached_property
    def ladder(self) -> hfc.Ladder:
        """The ladder."""
        model, tokenizer = self.pair
        return hfc.compress(
            model,
            self.train,
            processing_class=tokenizer,
            eval_dataset=self._case.data["validation"],
            speedup=SPEEDUPS,
            output_dir=self._work / "ladder",
            args=self._arguments(self._epochs),
            seed=self._seed,
        )

    def results(self) -> Result:
        """Test the ladder and its rivals; what was tested before is read."""
        found: Result = {}
        for number, rung in enumerate(self.ladder.rungs):
            epochs = self._epochs * (number + 1)
            for rival in RIVALS:
                if rival != "int8" or not number:
                    file = self._work / f"{rung.name} {rival}.json"
                    found[f"{rung.name} {rival}"] = read_or_compute(file, partial(self._compute, rival, rung, epochs))
        return found

    def plans(self, count: int) -> Result:
        """Predict and measure the times of random plans, and the original's against itself."""

        def compute() -> Result:
            model = self.pair[0]
            structure = find_structure(model)
            self.clock.share(model)
            times = self.clock.tabulate(structure, 8, lambda: None)
            choose, pairs = random.Random(self._seed), []
            for _ in range(count):
                plan: Plan = tuple(
                    None
                    if can_go and choose.random() < 0.2
                    else (choose.choice(head_counts(block.shape[0])), choose.choice(neuron_counts(block.shape[1], 8)))
                    for block, can_go in zip(structure.blocks, structure.removable, strict=True)
                )
                if not any(plan):
                    continue
                light = share_weights(model)
                with ExitStack() as undo:
                    kept = [n for n, shape in enumerate(plan) if shape is not None]
                    left = leave_out(light, structure, kept, undo)
                    undo.enter_context(shaped(light, left.blocks, [shape for shape in plan if shape is not None]))
                    shares = [self.clock.share(light) for _ in range(2)]
                pairs.append([predicted_time(plan, times), *shares])
            return {"pairs": pairs, "itself": [self.clock.share(model) for _ in range(5)]}

        return read_or_compute(self._work / "plans.json", compute)

    def _compute(self, rival: str, rung: hfc.Rung, epochs: float) -> Result:
        """Make a model beside a rung, and test it."""
        if rival == "ladder":
            return self._test(rung.model)
        if rival == "int8":
            return self._test(self._in_int8())
        start = {"layers": self._with_layers, "fisher": self._with_fisher}
        model = start[rival](rung) if rival in start else copy.deepcopy(self.pair[0])
        train_rung(
            model, None, self.parts, self._arguments(epochs), self.pair[1], deadline=None, tick=lambda done: None
        )
        return self._test(model)

    def _arguments(self, epochs: float) -> hfc.DistillationArguments:
        args = default_arguments(
            str(self._work / "training"), "single_label_classification", labelled=True, seed=self._seed
        )
        args.num_train_epochs = epochs
        return args

    def _with_layers(self, rung: hfc.Rung) -> Any:
        """Of the original's layers the most that are as fast as a rung; one if none is."""
        for count in range(len(find_structure(self.pair[0]).blocks) - 1, 0, -1):
            student = hfc.student_from_teacher(self.pair[0], count)
            if self.clock.share(student) <= 1.02 / rung.speedup.ratio:
                break
        return student

    def _with_fisher(self, rung: hfc.Rung) -> Any:
        """Remove heads and neurons by one ranking, as few FLOPs as make the model as fast as a rung."""
        rows = self.parts.calibration(labels=True)
        low, high, best = 0.0, 1.0, None
        for _ in range(_TRIES):
            flops, student = (low + high) / 2, copy.deepcopy(self.pair[0])
            try:
                hfc.prune_structured(student, flops=flops, importance="fisher", reconstruct=False, dataset=rows)
            except hfc.CompressionError:  # even the fewest heads and neurons take more
                low = flops
                continue
            if self.clock.share(student) <= 1.02 / rung.speedup.ratio:
                best, low = student, flops
            else:
                high = flops
            best = best or student
        return best

    def _in_int8(self) -> Any:
        model, tokenizer = self.pair
        rows = [dict(row) for row in self.parts.stop.remove_columns(["teacher_logits"])]
        hfc.export(model, self._work / "int8", processing_class=tokenizer, dtype="int8", dataset=rows, repeats=0)
        return hfc.load_exported(self._work / "int8")

    def _test(self, model: Any) -> Result:
        """Test a model in turns with the original, on the rows that nothing else has read."""
        print(f"{self._name}: test", file=sys.stderr, flush=True)
        shape = self.clock.batch["input_ids"].shape
        rows = [dict(row) for row in self._case.data["test"]]
        models = {"original": self.pair[0], "this": model}
        settings = {"batch_size": shape[0], "length": shape[1], "processing_class": self.pair[1]}
        found = hfc.compare(models, rows, **settings)
        speedup, own, test = found.speedup("this"), found.rows["this"], found.rows["this"].mcnemar
        assert speedup is not None
        assert test is not None
        return {
            "speedup": speedup.ratio,
            "interval": speedup.interval,
            "accuracy": own.accuracy,
            "original": found.first.accuracy,
            "p": test.p_value,
            "mb": own.bytes / 1e6,
        }


def rung_rows(runs: dict[str, Result]) -> list[dict[str, str]]:
    """One row for each rung and rival: means over the seeds."""
    rows = []
    for texts in TEXTS:
        mine = [run for name, run in runs.items() if name.startswith(f"{texts}-")]
        for name in dict.fromkeys(key for run in mine for key in run):
            found = [run[name] for run in mine if name in run]
            lost = [100 * (one["original"] - one["accuracy"]) for one in found]
            rung, _, rival = name.partition(" ")
            rows.append(
                {
                    "texts": TEXTS[texts].title,
                    "rung": rung,
                    "model": rival,
                    "seeds": str(len(found)),
                    "speed-up": " ".join(f"{one['speedup']:.2f}" for one in found),
                    "accuracy": f"{statistics.mean(one['accuracy'] for one in found):.4f}",
                    "points lost, by seed": " ".join(f"{one:.2f}" for one in lost),
                    "mean": f"{statistics.mean(lost):.2f}",
                    "p, by seed": " ".join(f"{one['p']:.3f}" for one in found),
                }
            )
    return rows


def describe_plans(name: str, found: Result) -> str:
    """Say how far predicted times are from measured ones."""
    errors = [abs(predicted / statistics.mean(shares) - 1) for predicted, *shares in found["pairs"]]
    spread = [abs(first / second - 1) for _, first, second in found["pairs"]]
    itself = ", ".join(f"{one:.3f}" for one in found["itself"])
    close = sum(error <= 0.1 for error in errors)
    return (
        f"{name}: predicted against measured times of {len(errors)} random plans: mean absolute error "
        f"{statistics.mean(errors):.1%}, {close} within 10 %, worst {max(errors):.1%}. Two measurements of one plan "
        f"differ by {statistics.mean(spread):.1%} in the mean, {max(spread):.1%} at most; the original against itself: "
        f"{itself}."
    )


def main() -> None:
    """Run what is missing, and print a Markdown table of what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("ladders"))
    parser.add_argument("--teachers", type=Path, help="folder with {texts}-{seed}/teacher")
    parser.add_argument("--texts", nargs="+", choices=[*TEXTS], default=[*TEXTS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--rows", type=int, help="to learn from at most, for a trial")
    parser.add_argument("--plans", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    silence_libraries()
    runs: dict[str, Result] = {}
    notes: list[str] = []
    for texts in arguments.texts:
        for seed in arguments.seeds:
            run = Run(texts, seed, arguments.work, arguments.teachers, arguments.epochs, arguments.rows)
            name = f"{texts}-{seed}"
            if arguments.plans:
                notes.append(describe_plans(name, run.plans(arguments.plans)))
            else:
                runs[name] = run.results()
                notes += [f"{name}: {note}" for note in run.ladder.notes]
                if saved := read_json(arguments.work / name / "plans.json"):
                    notes.append(describe_plans(name, saved))
    print("# A ladder, and its rivals at equal time\n")
    print(f"{machine()}. {arguments.epochs:g} epochs a rung.\n")
    print(tabulate(rung_rows(runs), headers="keys", tablefmt="github", disable_numparse=True))
    print("\n" + "\n\n".join(notes))


if __name__ == "__main__":
    main()
