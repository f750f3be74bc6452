"""How sparse a model is, matrix by matrix."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from hfcompress.layers import PRUNABLE_DTYPES, Selection, WeightMatrix, check_prunable, select_matrices
from hfcompress.scan import common_dtype, pieces_of, scan


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros of one weight matrix.

    Attributes:
        name: Module name.
        shape: Shape of the matrix, as stored (``Conv1D`` stores inputs first).
        dtype: Its dtype, for example ``"float32"``.
        weights: How many weights it has.
        zeros: How many of them are exactly 0.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    weights: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that are zero; 0.0 for an empty matrix."""
        return self.zeros / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class SparsityReport:
    """Zeros of a model's prunable weights. ``print`` shows a table.

    Attributes:
        layers: One entry a weight matrix, in the order of ``model.named_modules()``.
        not_covered: Matrices of the body held in kinds of module that the library cannot prune; never touched.
        amount: What was asked of the call that made this report, or None for a plain report.
    """

    layers: tuple[LayerSparsity, ...]
    not_covered: tuple[str, ...] = ()
    amount: float | int | None = None

    @property
    def weights(self) -> int:
        """Number of prunable weights."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Number of prunable weights that are exactly 0."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable weights that are zero; 0.0 if there are none."""
        return self.zeros / self.weights if self.weights else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python values, ready for JSON."""
        layers = [asdict(layer) | {"sparsity": layer.sparsity} for layer in self.layers]
        totals = {"weights": self.weights, "zeros": self.zeros, "sparsity": self.sparsity, "amount": self.amount}
        return totals | {"layers": layers, "not_covered": list(self.not_covered)}

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def to_markdown(self) -> str:
        """Return the report as a Markdown table."""
        lines = [f"| {' | '.join(row)} |" for row in self._rows()]
        notes = [line for note in self._notes() for line in ("", note)]
        return "\n".join([lines[0], "|---|---|---:|---:|---:|", *lines[1:], *notes])

    def __str__(self) -> str:
        return "\n".join([*align(self._rows(), "<<>>>"), *self._notes()])

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("matrix", "shape", "weights", "zeros", "sparsity")]
        for layer in self.layers:
            shape = " x ".join(map(str, layer.shape))
            rows.append((layer.name, shape, f"{layer.weights:,}", f"{layer.zeros:,}", f"{layer.sparsity:.2%}"))
        rows.append(("all prunable weights", "", f"{self.weights:,}", f"{self.zeros:,}", f"{self.sparsity:.2%}"))
        return rows

    def _notes(self) -> list[str]:
        notes = [] if self.amount is None else [f"asked: {self.amount}"]
        return notes + ([f"not covered: {', '.join(self.not_covered)}"] if self.not_covered else [])


def sparsity_report(
    model: nn.Module, *, include: Sequence[str] | str | None = None, exclude: Sequence[str] | str | None = None
) -> SparsityReport:
    """Count the zeros of a model's prunable weights. Changes nothing.

    Args:
        model: A Hugging Face classifier, or any module with ``nn.Linear`` or ``Conv1D`` in it.
        include: Shell patterns over module names; see `prune_global_l1`.
        exclude: Shell patterns for modules to leave out.

    Returns:
        Zeros by matrix and in all; ``-0.0`` is a zero.

    Raises:
        CompressionError: A pattern matches nothing, nothing is prunable, or a weight is quantized, sharded or on the
            meta device.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
        >>> report = sparsity_report(BertForSequenceClassification(config))
        >>> report.weights, report.zeros, report.sparsity
        (9216, 0, 0.0)
    """
    selection = select_matrices(model, include, exclude)
    check_prunable(model, selection)
    return report_of(selection, count_zeros(selection.matrices))


def count_zeros(matrices: Iterable[WeightMatrix]) -> dict[str, int]:
    """Count the zeros of each matrix, by its name; the matrices may be of any dtype."""
    matrices = list(matrices)
    zeros = {m.name: int((m.weight == 0).sum()) for m in matrices if m.weight.dtype not in PRUNABLE_DTYPES}
    pieces = pieces_of(m for m in matrices if m.name not in zeros)
    for piece, found in zip(pieces, scan(pieces, common_dtype(pieces), 0, 1), strict=True):
        zeros[piece.matrix.name] = zeros.get(piece.matrix.name, 0) + found.inside
    return zeros


def report_of(selection: Selection, zeros: Mapping[str, int], amount: float | int | None = None) -> SparsityReport:
    """Make the report of matrices whose zeros were counted, by name; an empty matrix may be left out."""
    layers = []
    for matrix in selection.matrices:
        weight = matrix.weight
        dtype = str(weight.dtype).removeprefix("torch.")
        layers.append(LayerSparsity(matrix.name, tuple(weight.shape), dtype, weight.numel(), zeros.get(matrix.name, 0)))
    return SparsityReport(tuple(layers), selection.not_covered, amount)


def align(rows: Iterable[Sequence[str]], alignment: str) -> list[str]:
    """Pad the cells of a table for a terminal; one ``<`` or ``>`` a column says to which side."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pairs = list(zip(alignment, widths, strict=True))
    return ["  ".join(f"{c:{a}{w}}" for c, (a, w) in zip(row, pairs, strict=True)).rstrip() for row in rows]
