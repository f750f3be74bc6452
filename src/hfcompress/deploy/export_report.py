"""The report of an export: what was written, what was checked, and how fast it is on this machine."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from hfcompress.deploy.quality_gate import QualityGate
from hfcompress.deploy.speed import ALL_INT8, describe_times, is_slower, label
from hfcompress.report.comparison import Comparison
from hfcompress.report.tables import Report, Row, Table
from hfcompress.report.times import speedup

_BITS = {
    7: "Weights have 7 bits, which are exact on every processor",
    8: "Weights have 8 bits, whose products saturate on processors without VNNI and AMX",
}


@dataclass(frozen=True, kw_only=True)
class ExportReport(Report):
    """What `export` wrote. ``print`` and a notebook show a table.

    Attributes:
        directory: The folder.
        format: ``"onnx"`` or ``"openvino"``.
        dtype: ``"float32"`` or ``"int8"``: what was written.
        inputs: The inputs of the model file.
        bytes: Bytes of the classifier's tensors, and of the model file or files.
        difference: The largest difference of the float32 model's logits from those of the classifier, for made-up texts
            of several lengths, padded and not.
        weight_bits: Of each int8 weight, 7 or 8; None where nothing is int8.
        static: Whether int8 activations have scales that were measured before; else they are computed while it runs.
        gate: What int8 was found to lose; None where it was not asked for.
        times: The classifier, the float32 model and the int8 model, timed in turns; None where nothing was timed.
        processor: The features of this processor that matter for speed.
        versions: Of the packages that wrote it.
    """

    directory: str
    format: str
    dtype: str
    inputs: tuple[str, ...]
    bytes: tuple[int, int]
    difference: float
    weight_bits: int | None
    static: bool
    gate: QualityGate | None
    times: Comparison | None
    processor: tuple[str, ...]
    versions: dict[str, str]

    @property
    def left_in_float32(self) -> tuple[str, ...]:
        """Names of the modules that are not int8 in an int8 model, the one that repairs most first."""
        return () if self.gate is None or self.dtype == "float32" else self.gate.left_in_float32

    @property
    def verdict(self) -> tuple[str, ...]:
        """Sentences: what int8 costs in quality and gains in time, on this machine."""
        found = [] if self.gate is None else self.gate.sentences()
        if self.times is not None:
            found += describe_times(self.times)
            found += self._slower(self.times)
            found.append(f"This processor has {', '.join(self.processor) or 'none of AVX2, AVX-512, VNNI and AMX'}.")
        scaled = "by what was measured before" if self.static else "while the model runs"
        if self.format == "openvino" and self.weight_bits is not None and not self.static:
            found.append("Weights of 8 bits; activations become int8 where the processor has VNNI or AMX.")
        elif self.weight_bits is not None:
            found.append(f"{_BITS[self.weight_bits]}; activations are scaled {scaled}.")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain Python values that JSON can hold."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        reports = {name: plain[name] and plain[name].to_dict() for name in ("gate", "times")}
        lists = {name: list(getattr(self, name)) for name in ("inputs", "bytes", "processor", "verdict")}
        return plain | reports | lists

    def _slower(self, times: Comparison) -> list[str]:
        float32, int8 = (label(self.format, dtype) for dtype in ("float32", "int8"))
        if int8 not in times.rows:
            return []
        found = []
        if is_slower(times, int8, float32):
            kept = "float32 was written" if self.dtype == "float32" else "it may be faster where VNNI or AMX are"
            found.append(f"int8 is slower than float32 on this machine at every batch that was timed; {kept}.")
        if ALL_INT8 in times.rows:
            batches = range(len(times.first.passes))
            ratios = [str(speedup(times.rows[ALL_INT8].passes, times.rows[int8].passes, index)) for index in batches]
            found.append(f"With what is left in float32, the speed is {', '.join(ratios)} that of all of it int8.")
        return found

    def _table(self) -> Table:
        before, after = self.bytes
        rows: list[Row] = [
            ("", "exported model"),
            ("dtype", self.dtype),
            ("inputs", ", ".join(self.inputs)),
            ("MB", f"{after / 1e6:,.1f}, {after / before:.2f} of the {before / 1e6:,.1f} before"),
            ("float32 logits", f"within {self.difference:.1g} of the original's"),
        ]
        return Table(rows, "<<", self.verdict)
