"""Decides which int8 model may be written: one that predicts as the float32 model does, on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from hfcompress.deploy.exported_model import ExportedModel
from hfcompress.deploy.held_out import BATCH, HeldOut
from hfcompress.deploy.onnx_candidates import Candidates, Equalization
from hfcompress.errors import CompressionError
from hfcompress.losses import Problem
from hfcompress.metrics import predict
from hfcompress.models.heads_and_neurons import LinearPath
from hfcompress.report.intervals import McNemar, SignFlip, paired_interval
from hfcompress.report.quality import as_columns, compare_with_reference, score

_LEAST_AGREEMENT = 0.95  # or 1 - max_drop, where that is less: what predicts otherwise more often is another model
_ERROR = 0.05  # of all intervals together
_LABEL_ACCURACY = "label accuracy"


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
    def lower_agreement(self) -> float:
        """The lower of both agreements."""
        return min(self.agreement, self.agreement_in_batches)

    @property
    def passed(self) -> bool:
        """Whether the loss is at most ``max_drop``, and the agreement at least 95 %, or 1 - ``max_drop``.

        Both must hold for texts that are read alone, and for those that are read 16 at once.
        """
        score, least = min(self.int8, self.int8_in_batches), min(_LEAST_AGREEMENT, 1 - self.max_drop)
        return self.float32 - score <= self.max_drop + 1e-9 and self.lower_agreement >= least - 1e-9

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
            found.append(f"Read {BATCH} at once, {at_once}{cause}.")
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
            all_int8_agreement=next((one.lower_agreement for one in tried if one.static == candidates.static), lower),
            static_agreement=tried[0].lower_agreement if tried and tried[0].static and not candidates.static else None,
            equalization=equalization,
        )
        if result.passed:
            return result
        tried.append(result)
    best = max(tried, key=lambda one: (one.lower_agreement, min(one.int8, one.int8_in_batches)))
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
