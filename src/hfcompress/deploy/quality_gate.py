"""Decides which int8 model may be written: one that predicts as the float32 model does, on held-out rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hfcompress.deploy.equalization import equalize, largest_inputs
from hfcompress.deploy.exported_model import ExportedModel
from hfcompress.deploy.formats import FORMATS
from hfcompress.deploy.quantization import Operator, find_operators, output_errors, quantize, save_for_quantizer
from hfcompress.deploy.speed import BATCHES
from hfcompress.errors import CompressionError
from hfcompress.losses import Problem
from hfcompress.metrics import example_scores, predict
from hfcompress.models.classifier import get_problem_type
from hfcompress.models.exported import ExportedModule
from hfcompress.models.heads_and_neurons import LinearPath
from hfcompress.models.inputs import Batch, read_examples
from hfcompress.models.labels import LABELS
from hfcompress.models.padding import end_of_text, split_rows
from hfcompress.report.benchmark import predict_logits
from hfcompress.report.intervals import McNemar, SignFlip, paired_interval
from hfcompress.report.quality import as_columns, check_labels, compare_with_reference, score

_LEAST_AGREEMENT = 0.95  # or 1 - max_drop, where that is less: what predicts otherwise more often is another model
_TRIED = 5  # operators, those whose own output is worst, that are left in float32 one by one
_MEASURED = 64  # rows, on which activations are measured
_COMPARED = 128  # rows, on which equalized models and the outputs of operators are compared
_SAME = 1e-5  # of logits, absolute and relative: what equalized channels may change in float32
_ERROR = 0.05  # of all intervals together
_LABEL_ACCURACY = "label accuracy"
_BATCH = max(BATCHES)
_HELPS = 0.9  # of the error: equalized channels that leave more of it do not help

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Equalization:
    """What equalizing channels before they are quantized does to the logits of an int8 model, on the rows to rank on.

    Attributes:
        channels: Which are equalized in the model that was judged: ``"values"``, ``"neurons"``, ``"norms"``,
            ``"residuals"``; none where it does not help.
        before: Mean squared difference of the int8 model's logits from the float32 model's, with nothing equalized; of
            texts read alone or 16 at once, whichever is larger.
        after: The least that was found with some equalized.
    """

    channels: tuple[str, ...]
    before: float
    after: float

    def __str__(self) -> str:
        error = f"the mean squared error of its logits was {self.before:.2g} and became {self.after:.2g}"
        if self.channels:
            return f"Equalized before int8: {', '.join(self.channels)}; {error}."
        return f"No channels are equalized, which does not help int8 here: {error}."


@dataclass(frozen=True, kw_only=True)
class QualityGate:
    """What an int8 model was found to lose against the float32 model, on rows that chose nothing.

    Attributes:
        left_in_float32: Names of the modules that are not int8, the one that repairs most first.
        rows: How many rows this is about.
        ranked_rows: How many others the modules were ranked on.
        agreement: Fraction of the rows with the same prediction; of a multi-label model, of the labels that the two
            predict, the fraction that both do (F1), as most labels are predicted by neither; of a regression 1 less the
            mean squared difference over the variance of the float32 outputs.
        score: What the loss is about: ``"accuracy"``, ``"label accuracy"`` or ``"R2"``.
        float32: That score of the float32 model.
        int8: That of the int8 model.
        interval: 95 % interval of the loss, paired by rows; it holds for the model that passes, though those judged
            before it did not: the n-th has a share of the error of 1 / (n (n + 1)), together no more than 5 %.
        max_drop: The loss that is allowed.
        test: Whether the difference is significant: McNemar's test, or a permutation test; not corrected for several
            models.
        tried: How many models were judged.
        static: Whether activations have scales that were measured before.
        agreement_in_batches: The agreement where 16 texts are read at once, padded, as scales that are computed while
            the model runs depend on all texts of a batch. The float32 model reads each alone; so does int8 where a
            model (BART, T5) cannot read those texts together.
        int8_in_batches: The score of the int8 model there.
        all_int8_agreement: The lower agreement of the model with such scales in which nothing is left in float32.
        static_agreement: The lower agreement of that with scales measured before, where they were tried first and did
            not pass; else None.
        equalization: What equalizing channels does; None where it was not asked for, or there is nothing to equalize.
    """

    left_in_float32: tuple[str, ...]
    rows: int
    ranked_rows: int
    agreement: float
    score: str
    float32: float
    int8: float
    interval: tuple[float, float]
    max_drop: float
    test: McNemar | SignFlip
    tried: int
    static: bool
    agreement_in_batches: float
    int8_in_batches: float
    all_int8_agreement: float
    static_agreement: float | None = None
    equalization: Equalization | None = None

    @property
    def drop(self) -> float:
        """The loss: the float32 model's score less that of the int8 model."""
        return self.float32 - self.int8

    @property
    def lower(self) -> float:
        """The lower of both agreements."""
        return min(self.agreement, self.agreement_in_batches)

    @property
    def passed(self) -> bool:
        """Whether the loss is at most ``max_drop``, and the agreement at least 95 %, or 1 - ``max_drop``.

        Both must hold for texts that are read alone, and for those that are read 16 at once.
        """
        score, least = min(self.int8, self.int8_in_batches), min(_LEAST_AGREEMENT, 1 - self.max_drop)
        return self.float32 - score <= self.max_drop + 1e-9 and self.lower >= least - 1e-9

    @property
    def confirmed(self) -> bool:
        """Whether there are rows enough to exclude a larger loss: its interval ends below ``max_drop``."""
        return self.interval[1] <= self.max_drop

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain Python values that JSON can hold."""
        derived = {name: getattr(self, name) for name in ("drop", "passed", "confirmed")}
        return asdict(self) | {"test": asdict(self.test) | {"verdict": self.test.verdict}} | derived

    def sentences(self) -> list[str]:
        """Say what was found."""
        low, high = self.interval
        several = f", which allows for {self.tried} models having been judged" if self.tried > 1 else ""
        alike = f"int8 predicts as float32 does on {self.agreement:.1%}"
        if self.score == _LABEL_ACCURACY:
            alike = f"of the labels that int8 and float32 predict, {self.agreement:.1%} are predicted by both"
        found = [
            f"On {self.rows:,} held-out rows {alike}; {self.score} "
            f"{self.float32:.3f} before and {self.int8:.3f} after, a loss of {100 * self.drop:.1f} points (95 % "
            f"interval {100 * low:.1f} to {100 * high:.1f}{several}; p {self.test.p_value:.3f})."
        ]
        alone, at_once = (
            f"{one:.1%} are predicted alike and the {self.score} is {score:.3f}"
            for one, score in ((self.agreement, self.int8), (self.agreement_in_batches, self.int8_in_batches))
        )
        if at_once != alone:
            cause = "" if self.static else ", as the scales of activations depend on all texts of a batch"
            found.append(f"Read {_BATCH} at once, {at_once}{cause}.")
        if not self.confirmed:
            found.append(
                f"So few rows cannot confirm that the loss is at most {100 * self.max_drop:g} points, only that it is "
                f"at most {100 * high:.1f}; pass more rows, or take it as not shown."
            )
        if self.left_in_float32:
            names = ", ".join(self.left_in_float32)
            found.append(f"Left in float32: {names}; all of it int8 agrees on {self.all_int8_agreement:.1%}.")
        if self.static_agreement is not None:
            found.append(
                f"Scales that are measured before, with which it runs faster, did not pass: all of it int8 agreed on "
                f"{self.static_agreement:.1%}."
            )
        if self.equalization is not None:
            found.append(str(self.equalization))
        return found


@dataclass(frozen=True)
class HeldOut:
    """Rows on which int8 models are ranked, and others on which they are judged."""

    module: ExportedModule
    tokenizer: PreTrainedTokenizerBase
    ranked: Rows
    judged: Rows

    @cached_property
    def problem(self) -> Problem:
        """What the logits mean."""
        return get_problem_type(self.module, "model")

    @cached_property
    def labels(self) -> Tensor:
        """The labels of the rows to judge on."""
        labels = read_examples("dataset", self.module, self.judged, self.tokenizer).labels
        assert labels is not None
        return check_labels("dataset", labels, self.problem).cpu()

    def logits(self, model: ExportedModel, rows: Rows) -> Tensor:
        """Return the logits of rows, each read alone, as where a text is served when it comes."""
        module = ExportedModule(model)
        return predict_logits("exported", module, read_examples("dataset", module, rows, self.tokenizer), 1)

    def logits_in_batches(self, model: ExportedModel, rows: Rows) -> Tensor:
        """Return the logits of rows, read 16 at once, with padding."""
        return torch.cat([model(**batch).logits for batch in self.batches(model, rows)]).to(torch.float32)

    def batches(self, model: ExportedModel, rows: Rows) -> Iterator[Batch]:
        """Yield 16 rows at once, with padding; alone those that BART and T5 do not read together."""
        examples, end = read_examples("dataset", ExportedModule(model), rows, self.tokenizer), end_of_text(model.config)
        for start in range(0, len(rows), _BATCH):
            part = range(start, min(start + _BATCH, len(rows)))
            batch = examples.take(part)
            if len({*(batch["input_ids"] == end).sum(1).tolist()}) == 1:
                yield batch
            else:
                yield from (examples.take([index]) for index in part)

    def scores(self, logits: Tensor) -> Tensor:
        """Return how right the logits of the rows to judge on are, by row."""
        if self.problem == "single_label_classification":
            return (predict(logits, self.problem) == self.labels).double()
        labels = as_columns(self.labels)
        found = example_scores(as_columns(logits), labels, self.problem)
        if self.problem == "regression":
            return 1 - found / labels.double().var(0, correction=0).mean().clamp(min=1e-12)
        return found


def split_dataset(dataset: Any) -> tuple[Rows, Rows]:
    """Return rows to rank on and rows to judge on: two halves, drawn at random, the same in each call.

    Raises:
        CompressionError: There are no rows, fewer than two, or they have no labels.
    """
    if dataset is None:
        raise CompressionError(
            "dtype='int8' needs dataset=: labelled rows that no training has seen, on which int8 is compared with "
            "float32; some hundred of them."
        )
    rows = split_rows(dataset) if isinstance(dataset, Mapping) else [*dataset]
    if others := [row for row in rows if not isinstance(row, Mapping)]:
        raise CompressionError(f"dataset must hold rows with 'input_ids' and 'labels'; one of it is {others[0]!r:.60}.")
    if len(rows) < 2:
        count = "1 row" if rows else "no rows"
        raise CompressionError(f"dataset has {count}; half of them rank what is quantized, so pass some hundred.")
    unlabelled = sum(not row.keys() & set(LABELS) for row in rows)
    if unlabelled:
        raise CompressionError(f"{unlabelled} of the {len(rows)} rows of dataset have no 'labels', which are needed.")
    columns = {next(name for name in LABELS if name in row) for row in rows}
    if len(columns) > 1:
        named = " and others ".join(repr(name) for name in LABELS if name in columns)
        raise CompressionError(f"Some rows of dataset have {named}; give all of them 'labels'.")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    half = len(rows) // 2
    return [rows[index] for index in order[:half]], [rows[index] for index in order[half:]]


class Candidates:
    """The int8 models that are tried, from all int8 on; each is a file.

    Args:
        graph: The float32 model.
        folder: For files.
        bits: Of a weight.
        make: Opens a file as a model.
    """

    def __init__(self, graph: Any, folder: Path, bits: int, make: Any) -> None:
        self._folder, self._bits, self._make = folder, bits, make
        self._calibration: list[Batch] | None = None
        self._else_dynamic = False
        self._use(graph)

    @property
    def static(self) -> bool:
        """Whether activations have scales that were measured before, in what is built now."""
        return self._calibration is not None

    @property
    def bits(self) -> int:
        """Bits of a weight, in what is built now."""
        return self._bits

    def _use(self, graph: Any) -> None:
        """Go on with another float32 model, which computes the same."""
        self._graph, self.operators = graph, find_operators(graph)
        save_for_quantizer(graph, self._folder / "source.onnx")

    def _file(self, name: str, format: str) -> Path:
        """Return the model file in a folder of its own, as its weights may be in another of a fixed name."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return folder / FORMATS[format].graph

    def build(self, left: Sequence[Operator], name: str = "int8") -> ExportedModel:
        """Quantize all but these operators, into the folder of this name."""
        file = self._file(name, "onnx")
        quantize(self._folder / "source.onnx", file, bits=self._bits, float32=left, calibration=self._calibration)
        model: ExportedModel = self._make(file)
        return model

    def calibrate(self, float32: ExportedModel, rows: HeldOut, *, else_dynamic: bool) -> None:
        """Scale activations by what some of the rows to rank on have, from now on, and not while a model runs.

        Args:
            float32: The float32 model.
            rows: To rank on.
            else_dynamic: Whether they are scaled while a model runs after all, if nothing else passes that is left out
                without being ranked.
        """
        self._calibration, self._else_dynamic = [*_measured(float32, rows)], else_dynamic

    def equalize(self, float32: ExportedModel, rows: HeldOut, paths: Sequence[LinearPath]) -> Equalization | None:
        """Go on with equalized channels, if the logits of all int8 have less error with them.

        Norms whose output others read too, which costs a multiplication, are only equalized if that helps once more.
        """
        original, largest = self._graph, largest_inputs(self._graph, _measured(float32, rows), self._folder)
        compared = rows.ranked[:_COMPARED]
        expected = rows.logits(float32, compared)
        before = least = self._error([], rows, compared, expected)
        chosen, channels = original, tuple[str, ...]()
        errors = dict[tuple[str, ...], float]()
        for residuals in (False, True):
            graph, found = equalize(original, paths, largest, residuals=residuals, folder=self._folder)
            if not found or found in errors or not self._computes(graph, rows, compared, expected):
                continue
            self._use(graph)
            errors[found] = self._error([], rows, compared, expected)
            if errors[found] < _HELPS * least:
                chosen, channels, least = graph, found, errors[found]
        self._use(chosen)
        return Equalization(channels, before, min(errors.values())) if errors else None

    def sets(self, float32: ExportedModel, rows: HeldOut) -> Iterator[list[Operator]]:
        """Yield what to leave in float32: nothing, the embeddings, then those that repair most, each time one more."""
        tables = [one for one in self.operators if one.table]
        unranked = [[], tables] if tables else [[]]
        yield from unranked
        if self._else_dynamic:
            self._calibration = None
            yield from unranked
        ranked = self._rank(float32, rows)
        yield from (ranked[:count] for count in range(1, len(ranked) + 1))

    def _rank(self, float32: ExportedModel, rows: HeldOut) -> list[Operator]:
        """Order the operators with the worst outputs by what leaving each in float32 repairs of the logits."""
        # By dynamic scales, also where they are static: what an outlier does to those, it does to these.
        batches = (float32.complete(one) for one in rows.batches(float32, rows.ranked[:_COMPARED]))
        errors = output_errors(self._graph, self.operators, batches, bits=self._bits, folder=self._folder)
        worst = sorted(self.operators, key=lambda one: -errors[one.name])[:_TRIED]
        expected = rows.logits(float32, rows.ranked)
        all_int8 = self._error([], rows, rows.ranked, expected)
        repaired = {one: self._error([one], rows, rows.ranked, expected) for one in worst}
        return sorted((one for one in worst if repaired[one] < all_int8), key=repaired.__getitem__)

    def _error(self, left: Sequence[Operator], rows: HeldOut, compared: Rows, expected: Tensor) -> float:
        """Return the mean squared error of the logits, the larger of those of texts alone and in batches."""
        int8 = self.build(left, "ranked")
        found = rows.logits(int8, compared), rows.logits_in_batches(int8, compared)
        return max(float((logits - expected).square().mean()) for logits in found)

    def _computes(self, graph: Any, rows: HeldOut, compared: Rows, expected: Tensor) -> bool:
        """Whether a float32 model computes these logits, also if its layers are not as the records know them."""
        save_for_quantizer(graph, self._folder / "equalized.onnx")
        logits = rows.logits(self._make(self._folder / "equalized.onnx"), compared)
        return torch.allclose(logits, expected, rtol=_SAME, atol=_SAME)


def _measured(float32: ExportedModel, rows: HeldOut) -> Iterator[Batch]:
    """Return inputs of the rows on which activations are measured, each alone."""
    examples = read_examples("dataset", rows.module, rows.ranked[:_MEASURED], rows.tokenizer)
    return (float32.complete(batch) for _, batch in examples.batches(1))


def choose(
    candidates: Candidates,
    float32: ExportedModel,
    rows: HeldOut,
    max_drop: float,
    paths: Sequence[LinearPath] | None,
) -> QualityGate:
    """Build int8 models until one passes; its file is the last that was built in the folder ``int8``.

    Args:
        candidates: What builds them.
        float32: The float32 model.
        rows: To rank and to judge on.
        max_drop: The loss that is allowed.
        paths: Along which channels are equalized first where that helps, beside those of norms; None for no channels.

    Raises:
        CompressionError: None passes; the best is named.
    """
    expected = rows.logits(float32, rows.judged)
    _check_labels(rows, expected)
    before = rows.scores(expected)
    tried: list[QualityGate] = []
    largest = None if rows.problem == "regression" else 1.0  # difference of two scores
    kinds = {"multi_label_classification": _LABEL_ACCURACY, "regression": "R2"}
    equalization = None if paths is None else candidates.equalize(float32, rows, paths)
    for number, left in enumerate(candidates.sets(float32, rows), 1):
        int8 = candidates.build(left)
        logits, in_batches = rows.logits(int8, rows.judged), rows.logits_in_batches(int8, rows.judged)
        after = rows.scores(logits)
        compared = compare_with_reference("int8", expected, logits, rows.labels, rows.problem)
        agreement, agreement_in_batches = (_agreement(one, expected, rows.problem) for one in (logits, in_batches))
        lower = min(agreement, agreement_in_batches)
        result = QualityGate(
            left_in_float32=tuple(one.name for one in left),
            rows=len(rows.judged),
            ranked_rows=len(rows.ranked),
            agreement=agreement,
            score=kinds.get(rows.problem, "accuracy"),
            float32=float(before.mean()),
            int8=float(after.mean()),
            interval=paired_interval(before - after, 1 - _ERROR / (number * (number + 1)), largest=largest),
            max_drop=max_drop,
            test=compared.get("mcnemar") or compared["sign_flip"],
            tried=number,
            static=candidates.static,
            agreement_in_batches=agreement_in_batches,
            int8_in_batches=float(rows.scores(in_batches).mean()),
            all_int8_agreement=next((one.lower for one in tried if one.static == candidates.static), lower),
            static_agreement=tried[0].lower if tried and tried[0].static and not candidates.static else None,
            equalization=equalization,
        )
        if result.passed:
            return result
        tried.append(result)
    best = max(tried, key=lambda one: (one.lower, min(one.int8, one.int8_in_batches)))
    raise CompressionError(
        f"None of {len(tried)} int8 models passes max_drop={max_drop:g}, so nothing was written. The best: "
        f"{' '.join(best.sentences())} Export in float32, or allow a larger max_drop."
    )


def _check_labels(rows: HeldOut, expected: Tensor) -> None:
    """Refuse labels that do not go with the logits."""
    try:
        score("dataset", expected, rows.labels, rows.problem)
    except CompressionError as error:
        cause, leave, _ = str(error).partition("; leave ")  # where nothing is judged
        remedy = "; int8 is judged by them, so pass those of the model's own kind." if leave else ""
        raise CompressionError(f"{cause}{remedy}") from error


def _agreement(logits: Tensor, expected: Tensor, problem: Problem) -> float:
    """Return how alike logits and those that are expected are: see `QualityGate`."""
    if problem == "regression":
        logits, expected = as_columns(logits), as_columns(expected)
        variance = expected.var(0, correction=0).mean().clamp(min=1e-12)
        return float(1 - (logits - expected).square().mean() / variance)
    found, other = predict(logits, problem), predict(expected, problem)
    if problem == "single_label_classification":
        return int((found == other).sum()) / len(found)
    predicted = float((found + other).sum())
    return 2 * float((found * other).sum()) / predicted if predicted else 1.0
