"""The report of an export: what was written, and what was checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hfcompress.report.tables import Report, Row, Table


@dataclass(frozen=True, kw_only=True)
class ExportReport(Report):
    """What `export` wrote. ``print`` and a notebook show a table.

    Attributes:
        directory: The folder.
        format: ``"onnx"``.
        dtype: ``"float32"``.
        inputs: The inputs of the model file.
        bytes: Bytes of the classifier's tensors, and of the model file.
        difference: The largest difference of the float32 model's logits from those of the classifier, for made-up texts
            of several lengths, padded and not.
        versions: Of the packages that wrote it.
    """

    directory: str
    format: str
    dtype: str
    inputs: tuple[str, ...]
    bytes: tuple[int, int]
    difference: float
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain Python values that JSON can hold."""
        return asdict(self)

    def _table(self) -> Table:
        before, after = self.bytes
        rows: list[Row] = [
            ("", "exported model"),
            ("folder", self.directory),
            ("dtype", self.dtype),
            ("inputs", ", ".join(self.inputs)),
            ("MB", f"{after / 1e6:,.1f}, {after / before:.2f} of the {before / 1e6:,.1f} before"),
            ("float32 logits", f"within {self.difference:.1g} of the original's"),
        ]
        return Table(rows, "<<")
