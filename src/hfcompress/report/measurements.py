"""The records of what was measured of a model, and the tables that show one or several of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hfcompress.losses import Problem
from hfcompress.report.intervals import McNemar, SignFlip
from hfcompress.report.tables import Report, Table
from hfcompress.report.times import ForwardPass, speedup

MB = 1e6
_Form = Callable[[Any], str]
_LABEL_FIGURES = {"exact match": "exact_match", "micro F1": "f1_micro", "macro F1": "f1_macro"}
_CORRELATIONS = {"Pearson": "pearson", "Spearman": "spearman"}


@dataclass(frozen=True, kw_only=True)
class Measurement(Report):
    """What was measured of one model. ``print`` and a notebook show a table.

    A figure is None where the inputs or labels that it needs were not given. Of an exported model there are no counts
    of parameters and zeros and no bytes in memory, and its bytes are those of its file.

    Attributes:
        parameters: Number of parameters; a shared one counts once.
        nonzeros: Number of parameters that are not 0.
        zeros: Number of prunable weights that are 0.
        sparsity: Fraction of the prunable weights that are 0 (see `sparsity_report`).
        bytes: Bytes of the distinct tensors that ``save_pretrained`` writes. Zeros take as much as other numbers.
        bytes_packed: Bytes of the same tensors, each stored densely or as its non-zero values and their places,
            whichever is smaller; ``save_compressed`` comes within 2 % of it.
        bytes_in_memory: Bytes of the memory behind parameters and buffers.
        device: Device of the parameters.
        dtype: Dtypes of the floating-point parameters, separated by commas.
        threads: Number of CPU threads that torch uses.
        passes: Forward passes, one for each batch size and length.
        examples: Number of labelled examples that the following figures are about.
        problem_type: Of the model that was measured with labels; it says which of the following figures there are.
        accuracy: Fraction of correct predictions; of a multi-label model the fraction of correct labels, as
            `DistillationTrainer` has it, where ``exact_match`` counts examples.
        accuracy_interval: 95 % interval of the accuracy: Wilson's, or of labels by the bootstrap over examples.
        f1: F1 score of class 1 where there are two classes, else the mean over the classes (macro).
        cross_entropy: Mean of -log of the label's probability, in nats; of a multi-label model over the labels too.
        calibration_error: Expected calibration error in 15 bins (Guo et al. 2017).
        exact_match: Fraction of the examples with all labels correct (subset accuracy), multi-label.
        exact_match_interval: 95 % Wilson interval of it.
        f1_micro: F1 score of all labels together, multi-label.
        f1_micro_interval: 95 % bootstrap interval of it.
        f1_macro: Mean of the F1 scores of the labels, multi-label; without those that are neither given nor predicted.
        f1_macro_interval: 95 % bootstrap interval of it.
        mse: Mean squared error, regression. Lower is better.
        mse_interval: 95 % bootstrap interval of it.
        pearson: Correlation of outputs and labels, regression.
        pearson_interval: 95 % bootstrap interval of it.
        spearman: Correlation of their ranks, regression.
        spearman_interval: 95 % bootstrap interval of it.
        agreement: Fraction of the examples, or of the labels of a multi-label model, with the same prediction as the
            reference, which is the first model of a comparison.
        reference_difference: Mean absolute difference of the outputs from those of the reference, regression.
        mcnemar: Whether the accuracy differs significantly from that of the reference, for single labels.
        sign_flip: Whether the label accuracy (multi-label) or the squared error (regression) does.
        undefined: Names of the figures above that are None because they have no value for these examples.
    """

    parameters: int | None
    nonzeros: int | None
    zeros: int | None
    sparsity: float | None
    bytes: int
    bytes_packed: int
    bytes_in_memory: int | None
    device: str
    dtype: str
    threads: int
    passes: tuple[ForwardPass, ...] = ()
    examples: int | None = None
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    f1: float | None = None
    cross_entropy: float | None = None
    calibration_error: float | None = None
    agreement: float | None = None
    mcnemar: McNemar | None = None
    problem_type: Problem | None = None
    exact_match: float | None = None
    exact_match_interval: tuple[float, float] | None = None
    f1_micro: float | None = None
    f1_micro_interval: tuple[float, float] | None = None
    f1_macro: float | None = None
    f1_macro_interval: tuple[float, float] | None = None
    mse: float | None = None
    mse_interval: tuple[float, float] | None = None
    pearson: float | None = None
    pearson_interval: tuple[float, float] | None = None
    spearman: float | None = None
    spearman_interval: tuple[float, float] | None = None
    reference_difference: float | None = None
    sign_flip: SignFlip | None = None
    undefined: tuple[str, ...] = ()

    @property
    def paired_test(self) -> McNemar | SignFlip | None:
        """The test of the difference from the reference."""
        return self.mcnemar or self.sign_flip

    @property
    def batch_size(self) -> int | None:
        """Batch size of the first forward pass."""
        return self.passes[0].batch_size if self.passes else None

    @property
    def flops(self) -> int | None:
        """Floating-point operations of the first forward pass."""
        return self.passes[0].flops if self.passes else None

    @property
    def latency_ms(self) -> float | None:
        """Median milliseconds of the first forward pass."""
        return self.passes[0].latency_ms if self.passes else None

    @property
    def latency_iqr_ms(self) -> float | None:
        """Interquartile range of the times of the first forward pass."""
        return self.passes[0].latency_iqr_ms if self.passes else None

    @property
    def throughput(self) -> float | None:
        """Examples a second in the first forward pass."""
        return self.passes[0].throughput if self.passes else None

    @property
    def peak_bytes(self) -> int | None:
        """Peak memory of the first forward pass in bytes."""
        return self.passes[0].peak_bytes if self.passes else None

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain Python values that JSON can hold."""
        first = ("batch_size", "flops", "latency_ms", "latency_iqr_ms", "throughput", "peak_bytes")
        tests = {"mcnemar": self.mcnemar, "sign_flip": self.sign_flip}
        written = {name: test and asdict(test) | {"verdict": test.verdict} for name, test in tests.items()}
        figures = asdict(self) | {name: getattr(self, name) for name in first}
        return figures | written | {"passes": [one.to_dict() for one in self.passes]}

    def _table(self) -> Table:
        return make_table({"model": self}, verbose=bool(self.passes))


def make_table(models: Mapping[str, Measurement], *, verbose: bool) -> Table:
    """Return all figures, a column a model, or the main ones, a row a model; with notes that explain them."""
    table = all_figures(models) if verbose else main_figures(models)
    return replace(table, notes=explain(models, verbose=verbose))


def main_figures(models: Mapping[str, Measurement]) -> Table:
    """Return the main figures, a row a model, without empty columns."""
    first, *_ = ones = list(models.values())
    packed: _Form = megabytes if any(one.passes for one in ones) else "-".format
    columns = {
        "model": list(models),
        "parameters": cells(ones, "parameters", "{:,}".format),
        "sparsity": cells(ones, "sparsity", "{:.1%}".format),
        "MB": cells(ones, "bytes", megabytes),
        "MB packed": cells(ones, "bytes_packed", packed),
        "GFLOPs": cells(ones, "flops", lambda flops: three_digits(flops / 1e9)),
        "ms a batch": cells(ones, "latency_ms", "{:.1f}".format),
        "speed-up": [
            "1.00x" if one is first and one.passes else str(speedup(first.passes, one.passes) or "-") for one in ones
        ],
        **main_quality_columns(ones),
        **more_quality_columns(ones),
        "against first": cells(ones, "paired_test", lambda test: f"{test.verdict} (p {p_value(test)})"),
    }
    table = [[head, *column] for head, column in columns.items() if set(column) != {"-"}]
    return Table(list(zip(*table, strict=True)), "<" + ">" * (len(table) - 1))


def main_quality_columns(ones: Sequence[Measurement]) -> dict[str, list[str]]:
    """Return the columns of the figure of quality that pictures show, by their heads."""
    label, figure, _ = main_quality(ones)
    form, of_ends = _FORMS[figure]
    return {label: cells(ones, figure, form), "95 % interval": cells(ones, f"{figure}_interval", of_ends)}


def more_quality_columns(ones: Sequence[Measurement]) -> dict[str, list[str]]:
    """Return the columns of what else the short table shows of quality, by their heads; "-" where there is none."""
    return {head: cells(ones, name, "{:.3f}".format) for head, name in (_LABEL_FIGURES | _CORRELATIONS).items()}


def main_quality(ones: Sequence[Measurement]) -> tuple[str, str, bool]:
    """Return the label and the attribute of the figure that pictures show, and whether a lower one is better."""
    if all(one.accuracy is None for one in ones) and any(one.mse is not None for one in ones):
        return "mean squared error", "mse", True
    return accuracy_name(ones), "accuracy", False


def accuracy_name(ones: Iterable[Measurement]) -> str:
    """Return what the accuracy counts, for tables and pictures."""
    return "label accuracy" if any(one.problem_type == "multi_label_classification" for one in ones) else "accuracy"


def all_figures(models: Mapping[str, Measurement]) -> Table:
    """Return all figures, a column a model, without empty rows; ratios to the first model in brackets."""
    first, *others = ones = list(models.values())
    rows = [["", *models]]

    def add(label: str, name: str, form: _Form, records: Sequence[Any] = ones, *, ratios: bool = True) -> None:
        written = cells(records, name, form)
        base, *values = (record and getattr(record, name) for record in records)
        for index, value in enumerate(values, start=1):
            if ratios and value is not None and base:
                written[index] += f" ({value / base:.3f}x)"
        if set(written) != {"-"}:
            rows.append([label, *written])

    add("parameters", "parameters", "{:,}".format)
    add("parameters that are not zero", "nonzeros", "{:,}".format)
    add("zeros of the prunable weights", "sparsity", "{:.2%}".format, ratios=False)
    add("MB in memory", "bytes_in_memory", lambda size: three_digits(size / MB))
    add("MB on disk, dense", "bytes", lambda size: three_digits(size / MB))
    add("MB on disk, packed", "bytes_packed", lambda size: three_digits(size / MB))
    for index in range(max(len(one.passes) for one in ones)):
        passes = [one.passes[index] if index < len(one.passes) else None for one in ones]
        speedups = [None, *(speedup(first.passes, other.passes, index) for other in others)]
        batch = f", {' or '.join(dict.fromkeys(one.label for one in passes if one))}"
        add(f"GFLOPs{batch}", "flops", lambda flops: three_digits(flops / 1e9), passes)
        add(f"ms, median{batch}", "latency_ms", "{:.2f}".format, passes)
        add(f"ms, quartiles{batch}", "quartiles_ms", "{0[0]:.2f} to {0[1]:.2f}".format, passes, ratios=False)
        add(f"speed-up{batch}", "label", str, speedups, ratios=False)
        add(f"speed-up, 99 % interval{batch}", "interval", "{0[0]:.2f}x to {0[1]:.2f}x".format, speedups, ratios=False)
        add(f"examples a second{batch}", "throughput", three_digits, passes)
        add(f"peak memory in MB{batch}", "peak_bytes", lambda size: three_digits(size / MB), passes)
    add("labelled examples", "examples", "{:,}".format, ratios=False)
    accuracy, interval = accuracy_name(ones), "{0[0]:.3f} to {0[1]:.3f}".format
    add(accuracy, "accuracy", "{:.3f}".format)
    add(f"{accuracy}, 95 % interval", "accuracy_interval", interval, ratios=False)
    for label, name in _LABEL_FIGURES.items():
        add(label, name, "{:.3f}".format)
        add(f"{label}, 95 % interval", f"{name}_interval", interval, ratios=False)
    for label, name in (("F1", "f1"), ("cross-entropy", "cross_entropy"), ("calibration error", "calibration_error")):
        add(label, name, "{:.3f}".format)
    add("mean squared error", "mse", three_digits)
    add(
        "mean squared error, 95 % interval",
        "mse_interval",
        lambda ends: " to ".join(map(three_digits, ends)),
        ratios=False,
    )
    for label, name in _CORRELATIONS.items():
        add(label, name, "{:.3f}".format, ratios=False)
        add(f"{label}, 95 % interval", f"{name}_interval", interval, ratios=False)
    alike = "labels predicted like the reference" if accuracy == "label accuracy" else "predictions like the reference"
    add(alike, "agreement", "{:.1%}".format, ratios=False)
    add("mean distance from the reference", "reference_difference", three_digits, ratios=False)
    only_one_right = "{0.only_first}, {0.only_this}".format
    add("only the reference right, only this one right", "mcnemar", only_one_right, ratios=False)
    add("McNemar's test", "mcnemar", _test_result, ratios=False)
    for score in dict.fromkeys(one.sign_flip.score for one in ones if one.sign_flip):
        tests = [one if one.sign_flip and one.sign_flip.score == score else None for one in ones]
        add(f"permutation test of the {score}", "sign_flip", _test_result, tests, ratios=False)
    for name in ("device", "dtype", "threads"):
        add(name, name, str, ratios=False)
    return Table(rows, "<" + ">" * len(models))


def explain(models: Mapping[str, Measurement], *, verbose: bool) -> list[str]:
    """Return the notes that a reader of the table needs."""
    first, *others = models.values()
    timed = [one for one in models.values() if one.passes]
    notes = []
    if timed:
        devices = dict.fromkeys(f"{one.device}, threads: {one.threads}, {one.dtype}" for one in timed)
        batches = dict.fromkeys(part.label for one in timed for part in one.passes[: None if verbose else 1])
        turns = ", the models in turns" if len(timed) > 1 else ""
        notes.append(
            f"Time: median of forward passes after warming up, {len(timed[0].passes[0].times_ms)} of each{turns}; "
            f"batches of {' or '.join(batches)} tokens; on {' or '.join(devices)}."
        )
        if verbose:
            notes.append(
                "FLOPs: of the matrix products, attention included, two for a multiplication with addition; "
                "softmax, norms and other operations by element are not counted. Peak memory: the model, its "
                "inputs and what a pass allocates. Packed: non-zero values and their places, or dense where that "
                "is smaller."
            )
        if any(one.zeros for one in timed):
            notes.append("Zeros save no FLOPs and no time here: dense kernels multiply a zero like any other number.")
    if any(one.parameters is None for one in models.values()):
        notes.append("Exported models: MB are those of the file; parameters, zeros, FLOPs and memory are not known.")
    labels = [str(speedup(first.passes, other.passes)) for other in others]
    if any(label.endswith("noise") for label in labels):
        notes.append("noise: the interval of the speed-up holds 1: a difference is not shown.")
    if any(label.endswith("few rounds") for label in labels):
        notes.append("few rounds: fewer than eight rounds cannot show a difference.")
    return notes + _explain_quality(list(models.values()), verbose=verbose)


def _explain_quality(ones: Sequence[Measurement], *, verbose: bool) -> list[str]:
    notes = []
    if any(one.mcnemar for one in ones):
        notes.append(
            "Against first: McNemar's test of the predictions for the same examples; worse or better at p < 0.05, not "
            "corrected for several models."
        )
    for score in dict.fromkeys(one.sign_flip.score for one in ones if one.sign_flip):
        notes.append(
            f"Against first: paired permutation test (sign flips) of the {score} of the same examples; worse or better "
            "at p < 0.05, not corrected for several models."
        )
    problems = {one.problem_type for one in ones}
    if "multi_label_classification" in problems:
        notes.append(
            "Label accuracy: of all labels; exact match: of the examples with all labels correct. Intervals by the "
            "bootstrap over examples, of exact match Wilson's. Macro F1 leaves out labels neither given nor predicted."
        )
    if "regression" in problems:
        notes.append("Mean squared error: lower is better. Intervals by the bootstrap over examples.")
    in_short = {f"{main_quality(ones)[1]}_interval", *_LABEL_FIGURES.values(), *_CORRELATIONS.values()}
    if any(name in in_short or verbose for one in ones for name in one.undefined):
        notes.append(
            "undefined: there is no correlation where outputs or labels are all equal, no F1 score without a label "
            "given or predicted, and no interval where resampling the examples changes nothing or leaves no figure."
        )
    return notes


def cells(records: Sequence[Any], name: str, form: _Form) -> list[str]:
    """Write an attribute of each record; "-" or "undefined" where the record or the attribute is None."""
    values = (record and getattr(record, name) for record in records)
    absent = ("undefined" if name in getattr(record, "undefined", ()) else "-" for record in records)
    return [missing if value is None else form(value) for value, missing in zip(values, absent, strict=True)]


def megabytes(size: int) -> str:
    """Write a size in bytes as megabytes."""
    return f"{size / MB:.1f}" if size >= MB else three_digits(size / MB)


def three_digits(value: float) -> str:
    """Write three significant digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _ends(ends: tuple[float, float]) -> str:
    return f"{three_digits(ends[0])} to {three_digits(ends[1])}"


# Of the figure that the main table shows with its interval.
_FORMS: dict[str, tuple[_Form, _Form]] = {
    "accuracy": ("{:.3f}".format, "{0[0]:.3f} to {0[1]:.3f}".format),
    "mse": (three_digits, _ends),
}


def _test_result(test: McNemar | SignFlip) -> str:
    return f"{test.verdict}, p {p_value(test)}"


def p_value(test: McNemar | SignFlip) -> str:
    """Write the p-value of a test."""
    return f"{test.p_value:.3f}" if test.p_value >= 0.001 else "< 0.001"
