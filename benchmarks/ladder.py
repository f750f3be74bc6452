"""`hfcompress.compress` against its rivals at equal measured time, and predicted against measured times.

For each data set and seed a BERT is fine-tuned (MiniLM of 6 layers, as in the study of reconstruction, or MPNet of 12)
and compressed: twice, four and ten times as fast. Beside each rung stand, made as fast by the same clock and trained
for as many epochs in all as the rung and those above it: some of the original's layers (`student_from_teacher`), and
heads and neurons removed by one ranking (`prune_structured`, fisher, nothing reconstructed). Beside the original stand
the original trained on for as long as the last rung, and the original in int8, as ONNX Runtime runs it; so does each
rung in int8. All are tested on rows that nothing else has read, with McNemar's test against the original.

    python -m benchmarks.ladder --work ladders --texts sentences reviews base --device cpu

With ``--again 4x 10x`` these rungs of ladders that are done are trained further instead, in three ways: on the texts of
before; for as many steps with sentences of IMDB reviews beside them, from which they learn the original's logits; and
for half as many on the texts of before at a lower learning rate.

Stopped, it goes on behind the last result in the folder; processes side by side take other ``--texts``, ``--seeds``.
``--report`` computes nothing and writes the tables of all that is there to benchmarks/results and docs/compress.md;
runs of other folders, such as another machine's, stay in them.
"""

from __future__ import annotations

import argparse
import copy
import random
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import datasets
import torch
from tabulate import tabulate

import hfcompress as hfc
from benchmarks.prune_global import machine
from examples.imdb.data import encode, load_reviews
from examples.imdb.environment import silence_libraries
from examples.imdb.files import Result, read_json, read_or_compute, write_json
from examples.imdb.reconstruction import TEXTS, Case, Texts
from hfcompress.compat import mixed_precision
from hfcompress.search.clock import Clock, typical_length
from hfcompress.search.deadline import Deadline
from hfcompress.search.loss_table import Plan, head_counts, neuron_counts, predicted_time
from hfcompress.search.rows import Parts, read_parts, readable, with_logits
from hfcompress.search.structure import find_structure
from hfcompress.search.training import default_arguments, train_rung

TASKS = TEXTS | {
    "base": Texts("Rotten Tomatoes, MPNet", "packaged-sentences", 6250, 2200, 64, 3, 2e-5, (), models="base"),
}
RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "compress.md"  # which shows the summaries
_BLOCK = re.compile(r"(?<=<!-- written by benchmarks/ladder.py -->\n).*?(?=<!-- until here -->)", re.DOTALL)
SPEEDUPS = (2.0, 4.0, 10.0)
PLANS = 20  # whose times are predicted and measured
_TRIES = 8  # of a bisection to the time of a rung
_AGAIN = 8.0  # epochs, in the texts of before, that a rung is trained further
_LOW_RATE = 2e-5  # at which MPNet was fine-tuned
_OTHERS = 3  # times as many other texts beside these
_WORDS = (5, 40)  # of a sentence of a review
_SLACK = 1.05  # of a rung's time, within which a rival is as fast; layers come in coarse steps


class Run:
    """One data set and one seed.

    Args:
        texts: Which of the TASKS.
        seed: Of texts, teacher and training.
        work: Folder for results.
        epochs: Of each rung at most.
        device: Where models are timed.
        rows: To learn from at most; all if None.
    """

    def __init__(self, texts: str, seed: int, work: Path, epochs: float, device: str | None, rows: int | None) -> None:
        self.name, self._epochs, self._device, self._rows = f"{texts}-{seed}", epochs, device, rows
        self._work, self._seed = work / self.name, seed
        precision = (
            "no" if TASKS[texts].models == "packaged" else mixed_precision().name
        )  # of MPNet, which takes longest
        self._case = Case(TASKS[texts], seed, self._work, precision)

    @cached_property
    def pair(self) -> tuple[Any, Any]:
        """The original, where models are trained, and its tokenizer."""
        self._case.finish(("teacher", self._case._fine_tune))
        model, tokenizer = self._case.load_teacher()
        return model.to(self._arguments(1.0).device).eval(), tokenizer

    @cached_property
    def train(self) -> Any:
        """The rows to learn from."""
        data = self._case.data["train"]
        return data if self._rows is None else data.select(range(min(self._rows, len(data))))

    @cached_property
    def parts(self) -> Parts:
        """The rows of the rivals: those of the ladder."""
        return self._read(self.train)

    def _read(self, train: Any) -> Parts:
        model, tokenizer = self.pair
        args = self._arguments(1.0)
        found = read_parts(model, tokenizer, train, self._case.data["validation"], args, None, self._seed)
        found = with_logits(model, model, found, None, args, self._work, Deadline())
        return readable(found, model, args)

    @cached_property
    def clock(self) -> Clock:
        """The clock of the ladder."""
        model, tokenizer = self.pair
        length = typical_length(model, [len(ids) for ids in self.parts.train["input_ids"]])
        place = torch.device(self._device) if self._device else None
        clock = Clock(model, tokenizer, "torch", 16, length, place)
        clock.share(clock.original)  # which tells how many rounds there is time for
        return clock

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
            device=self._device,
            output_dir=self._work / "ladder",
            args=self._arguments(self._epochs),
            seed=self._seed,
        )

    def compute(self) -> None:
        """Test the ladder and its rivals, and predicted times; what was done before is left."""
        rungs = self.ladder.rungs
        write_json(self._work / "notes.json", {"notes": list(self.ladder.notes), "machine": machine()})
        for rung in rungs:
            self._once(f"{rung.name} ladder", partial(self._test_rung, rung))
        self._once("plans", self._predict)
        for rung in rungs:
            self._once(f"{rung.name} ladder in int8", partial(self._test_in_int8, rung.name, rung.model))
        self._once("1x int8", lambda: self._test_in_int8("original", self.clock.original))
        for number, rung in enumerate(rungs, 1):
            self._once(f"{rung.name} layers", partial(self._test_trained, self._with_layers, rung, number))
            self._once(f"{rung.name} fisher", partial(self._test_trained, self._with_fisher, rung, number))
        if rungs:
            self._once("1x control", partial(self._test_trained, self._original, rungs[-1], len(rungs)))

    def train_again(self, rungs: Sequence[str]) -> None:
        """Test rungs that are trained further, in three ways."""
        for name in rungs:
            self._once(f"{name} same texts", partial(self._test_further, name, _AGAIN))
            self._once(f"{name} more texts", partial(self._test_further, name, _AGAIN / (1 + _OTHERS), others=True))
            lower = partial(self._test_further, name, _AGAIN / 2, learning_rate=_LOW_RATE)
            self._once(f"{name} lower rate", lower)

    def _test_further(self, name: str, epochs: float, *, others: bool = False, **given: float) -> Result:
        student = hfc.load_compressed(self._work / "ladder" / name).to(self.pair[0].device)
        parts = self.parts
        if others:
            more = sentences(_OTHERS * len(self.train), self._seed)
            rows = encode(more, self.pair[1], self._case.texts.max_length).cast(self.train.features)
            parts = self._read(datasets.concatenate_datasets([self.train, rows]))
        args = self._arguments(epochs, **given)
        trained = train_rung(student, None, parts, args, self.pair[1], deadline=Deadline(), tick=lambda done: None)
        return self._test(student) | {"epochs": trained.epochs, "kept": trained.kept > 0}

    def _once(self, name: str, compute: Callable[[], Result]) -> None:
        def announced() -> Result:
            print(f"{self.name}: {name}", file=sys.stderr, flush=True)
            return compute()

        read_or_compute(self._work / f"{name}.json", announced)

    def _predict(self) -> Result:
        """Predict and measure the times of random plans, and the original's against itself."""
        structure = find_structure(self.clock.original)
        times = self.clock.tabulate(structure, 8, lambda: None)
        choose, pairs = random.Random(self._seed), list[list[float]]()
        groups = [group for block in structure.blocks for group in block.heads]
        share_heads = len(set(groups)) < len(groups)
        while len(pairs) < PLANS:
            same = choose.choice(head_counts(structure.blocks[0].shape[0]))
            plan: Plan = tuple(
                None
                if can_go and choose.random() < 0.2
                else (
                    same if share_heads else choose.choice(head_counts(block.shape[0])),
                    choose.choice(neuron_counts(block.shape[1], 8)),
                )
                for block, can_go in zip(structure.blocks, structure.removable, strict=True)
            )
            if not any(plan):
                continue
            shares = [self.clock.share_of_plan(self.clock.original, structure, plan) for _ in range(2)]
            pairs.append([predicted_time(plan, times), *shares])
        return {"pairs": pairs, "itself": [self.clock.share(self.clock.original) for _ in range(5)]}

    def _test_rung(self, rung: hfc.Rung) -> Result:
        own = {"predicted": rung.predicted, "recipe": rung.recipe, "layers": rung.layers, "shapes": rung.shapes}
        return self._test(rung.model.to(self.pair[0].device)) | own

    def _test_trained(self, make: Callable[[hfc.Rung], Any], rung: hfc.Rung, rungs: int) -> Result:
        """Make a model as fast as a rung, and train it for as many epochs as all rungs so far."""
        model, args = make(rung), self._arguments(self._epochs * rungs)
        trained = train_rung(model, None, self.parts, args, self.pair[1], deadline=Deadline(), tick=lambda done: None)
        return self._test(model) | {"epochs": trained.epochs, "kept": trained.kept > 0}

    def _arguments(self, epochs: float, **given: float) -> hfc.DistillationArguments:
        return default_arguments(
            str(self._work / "training"),
            "single_label_classification",
            labelled=True,
            seed=self._seed,
            rows=len(self.train),
            num_train_epochs=epochs,
            **given,
        )

    def _original(self, rung: hfc.Rung) -> Any:
        return copy.deepcopy(self.pair[0])

    def _with_layers(self, rung: hfc.Rung) -> Any:
        """Of the original's layers the most that are as fast as a rung; one if none is."""
        for count in range(len(find_structure(self.pair[0]).blocks) - 1, 0, -1):
            student = hfc.student_from_teacher(self.pair[0], count)
            if self.clock.share(student) <= _SLACK / rung.speedup.ratio:
                break
        return student

    def _with_fisher(self, rung: hfc.Rung) -> Any:
        """Remove heads and neurons by one ranking, as few FLOPs as make the model as fast as a rung."""
        rows = self.parts.calibration(labels=True)
        low, high, best, fastest = 0.0, 1.0, None, (float("inf"), None)
        for _ in range(_TRIES):
            flops, student = (low + high) / 2, copy.deepcopy(self.pair[0])
            try:
                hfc.prune_structured(student, flops=flops, importance="fisher", reconstruct=False, dataset=rows)
            except hfc.CompressionError:  # even the fewest heads and neurons take more
                low = flops
                continue
            share = self.clock.share(student)
            fastest = min(fastest, (share, student), key=itemgetter(0))
            if share <= _SLACK / rung.speedup.ratio:
                best, low = student, flops
            else:
                high = flops
        return best or fastest[1]

    def _test_in_int8(self, name: str, model: Any) -> Result:
        """Export a model in int8 and test it in ONNX Runtime; say why where none passes the gate."""
        rows = [dict(row) for row in self.parts.check.remove_columns(["teacher_logits"])]
        folder, tokenizer = self._work / "int8" / name, self.pair[1]
        try:
            hfc.export(model, folder, processing_class=tokenizer, dtype="int8", dataset=rows, max_drop=0.02, repeats=0)
        except hfc.CompressionError as error:
            return {"refused": str(error)}
        return self._test(hfc.load_exported(folder), on_cpu=True)

    def _test(self, model: Any, *, on_cpu: bool = False) -> Result:
        """Time a model in turns with the original, and test both on the rows that nothing else has read."""
        original, place = self.clock.original, self.clock.original.device
        rows = [dict(row) for row in self._case.data["test"]]
        shape = self.clock.batch["input_ids"].shape
        settings = {"batch_size": shape[0], "length": shape[1], "processing_class": self.pair[1]}
        served = model if on_cpu else copy.deepcopy(model).to(place)
        speedup = hfc.compare({"original": original, "this": served}, **settings).speedup("this")
        found = hfc.compare({"original": self.pair[0], "this": model}, rows, **settings | {"repeats": 1})
        own, test = found.rows["this"], found.rows["this"].mcnemar
        assert speedup is not None
        assert test is not None
        return {
            "speedup": speedup.ratio,
            "interval": speedup.interval,
            "accuracy": own.accuracy,
            "original": found.first.accuracy,
            "only_original": test.only_first,
            "only_this": test.only_this,
            "p": test.p_value,
            "mb": own.bytes / 1e6,
        }


def sentences(count: int, seed: int) -> datasets.Dataset:
    """Draw sentences of IMDB reviews at random, without labels."""
    reviews = load_reviews("packaged", count, 0, seed)
    texts = [text for part in reviews.values() for text in part["text"]]
    split = dict.fromkeys(one for text in texts for one in re.split(r"(?<=[.!?])\s+", text))
    found = [one for one in split if _WORDS[0] <= len(one.split()) <= _WORDS[1]]
    drawn = random.Random(seed).sample(found, count)
    return datasets.Dataset.from_dict({"text": drawn, "label": [None] * count})


def collect(work: Path) -> dict[str, Result]:
    """Read all results in a folder, by data set and seed."""
    runs: dict[str, Result] = {}
    for task in TASKS:
        for folder in sorted(work.glob(f"{task}-*")):
            files = sorted(file for file in folder.glob("*.json") if file.stem not in ("teacher", "state"))
            runs[folder.name] = {file.stem: read_json(file) for file in files}
    return runs


def summaries(runs: dict[str, Result]) -> str:
    """Return a table for each data set: what was lost in the mean over the seeds, and how fast that was."""
    kinds = {"compress": "ladder", "compress, then int8": "ladder in int8"}
    kinds |= {"compress, trained further": "same texts", "the same with other texts beside": "more texts"}
    kinds |= {"trained further at a lower learning rate": "lower rate"}
    kinds |= {"heads and neurons by one ranking": "fisher", "some of the layers": "layers", "trained on": "control"}
    parts = []
    for task, texts in TASKS.items():
        mine = [run for name, run in runs.items() if name.startswith(f"{task}-")]
        rows = []
        for title, kind in kinds.items():
            names = {"1x": "1x int8" if kind == "ladder in int8" else f"1x {kind}"}
            names |= {f"{speedup:g}x": f"{speedup:g}x {kind}" for speedup in SPEEDUPS}
            found = {asked: [run[name] for run in mine if name in run] for asked, name in names.items()}
            if any(found.values()):
                rows.append({"": title} | {asked: _mean_loss(some) for asked, some in found.items()})
        if rows:
            parts.append(f"{texts.title}:\n\n{_table(rows)}")
    return "\n\n".join(parts)


def _mean_loss(found: list[Result]) -> str:
    """Return the mean points of accuracy lost at the mean speed-up, and of how many seeds."""
    passed = [one for one in found if "refused" not in one]
    if not passed:
        return "refused" if found else ""
    lost = statistics.mean(100 * (one["original"] - one["accuracy"]) for one in passed)
    return f"{lost:.2f} at {statistics.mean(one['speedup'] for one in passed):.2f}x ({len(passed)})"


def rung_rows(runs: dict[str, Result]) -> list[dict[str, str]]:
    """One row for each rung and rival: all seeds, and their mean."""
    rows = []
    names = ["1x control", "1x int8"]
    kinds = ("ladder", "same texts", "more texts", "lower rate", "layers", "fisher", "ladder in int8")
    names += [f"{speedup:g}x {kind}" for speedup in SPEEDUPS for kind in kinds]
    for task, texts in TASKS.items():
        mine = [run for name, run in runs.items() if name.startswith(f"{task}-")]
        for name in names:
            found = [run[name] for run in mine if name in run and "refused" not in run[name]]
            if found:
                rung, _, rival = name.partition(" ")
                lost = [100 * (one["original"] - one["accuracy"]) for one in found]
                rows.append(
                    {
                        "texts": texts.title,
                        "rung": rung,
                        "model": rival,
                        "speed-up, measured": " ".join(f"{one['speedup']:.2f}" for one in found),
                        "accuracy": " ".join(f"{one['accuracy']:.3f}" for one in found),
                        "points lost": " ".join(f"{one:.2f}" for one in lost),
                        "mean": f"{statistics.mean(lost):.2f}",
                        "p": " ".join(f"{one['p']:.3f}" for one in found),
                        "kept": f"{statistics.mean(one['accuracy'] / one['original'] for one in found):.1%}",
                        "MB": f"{statistics.mean(one['mb'] for one in found):.1f}",
                    }
                )
    return rows


def plan_rows(runs: dict[str, Result]) -> list[dict[str, str]]:
    """How far predicted times are from measured ones, a row for each run."""
    rows = []
    for name, run in runs.items():
        if "plans" not in run:
            continue
        pairs = run["plans"]["pairs"]
        errors = [abs(predicted / statistics.mean(shares) - 1) for predicted, *shares in pairs]
        spreads = [abs(first / second - 1) for _, first, second in pairs]
        spread = max(0.1, 2 * statistics.mean(spreads))
        rows.append(
            {
                "run": name,
                "plans": str(len(pairs)),
                "mean absolute error": f"{statistics.mean(errors):.1%}",
                "within 10 %": str(sum(error <= 0.1 for error in errors)),
                "within 10 % or twice the mean spread": str(sum(error <= spread for error in errors)),
                "worst": f"{max(errors):.1%}",
                "two measurements of a plan differ by": f"{statistics.mean(spreads):.1%}, at most {max(spreads):.1%}",
                "the original against itself": " ".join(f"{one:.3f}" for one in run["plans"]["itself"]),
            }
        )
    return rows


def write_report(runs: dict[str, Result], folder: Path) -> None:
    """Write the page and its figures."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "ladder.json", runs)
    machines = sorted({run["notes"]["machine"] for run in runs.values() if "notes" in run})
    notes = [f"{name}: {note}" for name, run in runs.items() for note in run.get("notes", {}).get("notes", [])]
    notes += [
        f"{name}: {key}: {one['refused']}" for name, run in runs.items() for key, one in run.items() if "refused" in one
    ]
    recipes = [
        {
            "run": name,
            "rung": key.split()[0],
            "predicted": f"{one['predicted']:.2f}",
            "measured": f"{one['speedup']:.2f}",
        }
        | {"layers": "{} of {}".format(*one["layers"]), "how": one["recipe"]}
        for name, run in runs.items()
        for key, one in run.items()
        if key.endswith(" ladder")
    ]
    page = [
        "# A ladder, and its rivals at equal time",
        f"{' and '.join(machines)}. Points of accuracy lost against the original (negative: gained), at the speed-up "
        "that was measured: means over seeds, of which the number stands in brackets.",
        summaries(runs),
        "## Each seed",
        "Several seeds stand beside each other, each with texts and an original of its own.",
        _table(rung_rows(runs)),
        "## Predicted and measured times",
        _table(plan_rows(runs)),
        "## The rungs",
        _table(recipes),
        *notes,
    ]
    (folder / "ladder.md").write_text("\n\n".join(page) + "\n")
    if folder == RESULTS:
        PAGE.write_text(_BLOCK.sub(lambda _: f"\n{summaries(runs)}\n\n", PAGE.read_text()))


def _table(rows: list[dict[str, str]]) -> str:
    return str(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


def main() -> None:
    """Run what is missing, or write the page of what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("ladders"))
    parser.add_argument("--texts", nargs="+", choices=[*TASKS], default=[*TEXTS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--device", help="where models are timed, if not where they are trained")
    parser.add_argument("--rows", type=int, help="to learn from at most, for a trial")
    parser.add_argument("--again", nargs="+", metavar="RUNG", help="train these rungs further, and nothing else")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not arguments.report:
        silence_libraries()
        for texts in arguments.texts:
            for seed in arguments.seeds:
                run = Run(texts, seed, arguments.work, arguments.epochs, arguments.device, arguments.rows)
                run.train_again(arguments.again) if arguments.again else run.compute()
    before = read_json(arguments.output / "ladder.json")
    write_report(before | collect(arguments.work), arguments.output)


if __name__ == "__main__":
    main()
