"""How sparse a model is, matrix by matrix, and in all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hfcompress.models.architectures import block_kind
from hfcompress.models.classifier import unwrap
from hfcompress.models.tensors import distinct, has_plain_values
from hfcompress.models.weights import PRUNABLE_DTYPES, Selection, WeightMatrix, check_prunable, select_matrices
from hfcompress.report.plots import draw_sparsity, new_axes
from hfcompress.report.tables import align, html, markdown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LAYER = re.compile(r"(?:.*?\.)?\d+(?=\.)")  # of a name, the part up to the first number
_COUNTED = 1 << 19  # weights compared by one call, so that what it writes stays in the cache
_LONG = 30  # matrices: more are shown layer by layer


@dataclass(frozen=True)
class ZeroCount:
    """How many numbers there are, and how many of them are exactly 0.

    Attributes:
        weights: How many there are.
        zeros: How many of them are 0.
    """

    weights: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Fraction that is zero; 0.0 of none."""
        return self.zeros / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros of one weight matrix.

    Attributes:
        name: Module name.
        shape: Shape of the matrix, as stored (``Conv1D`` stores inputs first).
        dtype: Its dtype, for example ``"float32"``.
        weights: How many weights it has.
        zeros: How many of them are exactly 0.
        kind: The kind of block that it belongs to: ``"attention"``, ``"feed-forward"``, ``"pooler"``,
            ``"embeddings"``, ``"head"`` (outside the body) or ``"other"``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    weights: int
    zeros: int
    kind: str = "other"

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that are zero; 0.0 for an empty matrix."""
        return ZeroCount(self.weights, self.zeros).sparsity


@dataclass(frozen=True)
class SparsityReport:
    """Zeros of a model's prunable weights, and of all its parameters. ``print`` shows a table, a notebook too.

    Attributes:
        layers: One entry a weight matrix in scope, in the order of ``model.named_modules()``.
        whole_model: All parameters of the model, whether in scope or not; a shared one counts once. Of parameters that
            are no plain tensors (quantized, sharded, without values) no zeros are counted.
        not_covered: Matrices of the body held in kinds of module that the library cannot prune; never touched.
        amount: What was asked of the call that made this report, or None for a plain report.
    """

    layers: tuple[LayerSparsity, ...]
    whole_model: ZeroCount
    not_covered: tuple[str, ...] = ()
    amount: float | int | None = None

    @property
    def weights(self) -> int:
        """Number of prunable weights."""
        return _total(self.layers).weights

    @property
    def zeros(self) -> int:
        """Number of prunable weights that are exactly 0."""
        return _total(self.layers).zeros

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable weights that are zero; 0.0 if there are none."""
        return _total(self.layers).sparsity

    @property
    def kinds(self) -> dict[str, ZeroCount]:
        """Zeros by kind of block, in the order in which the kinds first appear."""
        return {kind: _total(layers) for kind, layers in _by_kind(self.layers).items()}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python values, ready for JSON."""
        totals = {"weights": self.weights, "zeros": self.zeros, "sparsity": self.sparsity, "amount": self.amount}
        return totals | {
            "whole_model": _with_sparsity(self.whole_model),
            "kinds": {kind: _with_sparsity(count) for kind, count in self.kinds.items()},
            "layers": [_with_sparsity(layer) for layer in self.layers],
            "not_covered": list(self.not_covered),
        }

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def to_text(self, *, verbose: bool = False) -> str:
        """Return the report as a table for a terminal.

        Args:
            verbose: Show every matrix; otherwise models of more than 30 matrices are shown layer by layer.

        Example:
            >>> count = ZeroCount(12, 3)
            >>> layer = LayerSparsity("layer.0.mlp.up", (4, 3), "float32", 12, 3, "feed-forward")
            >>> print(SparsityReport((layer,), count).to_text())
            matrix                block         shape  weights  zeros  sparsity
            layer.0.mlp.up        feed-forward  4 x 3       12      3    25.00%
            all prunable weights                            12      3    25.00%
            all parameters                                  12      3    25.00%
        """
        rows, alignment, _ = self._table(verbose)
        return "\n".join([*align(rows, alignment), *self._notes()])

    def to_markdown(self, *, verbose: bool = True) -> str:
        """Return the report as a Markdown table; ``verbose`` as for `to_text`."""
        rows, alignment, _ = self._table(verbose)
        notes = [line for note in self._notes() for line in ("", note)]
        return "\n".join([*markdown(rows, alignment), *notes])

    def to_pandas(self) -> pd.DataFrame:
        """Return a data frame with one row a matrix.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_pandas needs the package pandas: pip install pandas") from error
        columns = ["name", "kind", "shape", "dtype", "weights", "zeros", "sparsity"]
        return pd.DataFrame([_with_sparsity(layer) for layer in self.layers], columns=columns)

    def plot(self, axes: Axes | None = None, *, verbose: bool = False) -> tuple[Figure, Axes]:
        """Draw the sparsity of each layer as bars, one for each kind of block.

        Args:
            axes: Where to draw; a new figure if None.
            verbose: One bar for each matrix instead.

        Returns:
            The figure and its axes.

        Raises:
            ImportError: matplotlib is not installed: ``pip install 'hfcompress[plots]'``.
        """
        groups = {layer.name: [layer] for layer in self.layers} if verbose else _by_layer(self.layers)
        bars = {name: {k: _total(o).sparsity for k, o in _by_kind(part).items()} for name, part in groups.items()}
        axes = new_axes(height=1.6 + 0.22 * sum(len(kinds) for kinds in bars.values())) if axes is None else axes
        return draw_sparsity(axes, bars, list(self.kinds), self.sparsity)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        rows, alignment, totals = self._table(verbose=False)
        return "\n".join([html(rows, alignment, totals), *(f"<p>{escape(note)}</p>" for note in self._notes())])

    def _table(self, verbose: bool) -> tuple[list[tuple[str, ...]], str, int]:
        """The rows, how their columns are aligned, and how many of them are totals."""
        if verbose or len(self.layers) <= _LONG:
            return self._matrices()
        return self._layers()

    def _matrices(self) -> tuple[list[tuple[str, ...]], str, int]:
        rows: list[tuple[str, ...]] = [("matrix", "block", "shape", "weights", "zeros", "sparsity")]
        for layer in self.layers:
            rows.append((layer.name, layer.kind, " x ".join(map(str, layer.shape)), *_cells(layer)))
        kinds = self.kinds if len(self.kinds) > 1 else {}
        totals = [(f"all {kind}", kind, "", *_cells(count)) for kind, count in kinds.items()]
        totals.append(("all prunable weights", "", "", *_cells(_total(self.layers))))
        totals.append(("all parameters", "", "", *_cells(self.whole_model)))
        return rows + totals, "<<<>>>", len(totals)

    def _layers(self) -> tuple[list[tuple[str, ...]], str, int]:
        groups = _by_layer(self.layers)
        # The others (a pooler) are a row of their own already.
        shown = [kind for kind in self.kinds if any({one.kind for one in part} > {kind} for part in groups.values())]
        rows: list[tuple[str, ...]] = [("layer", "matrices", "weights", "zeros", "sparsity", *shown)]
        for name, part in [*groups.items(), ("all prunable weights", list(self.layers))]:
            by_kind = {kind: _total(ones) for kind, ones in _by_kind(part).items()}
            kinds = [f"{by_kind[kind].sparsity:.2%}" if kind in by_kind else "" for kind in shown]
            rows.append((name, str(len(part)), *_cells(_total(part)), *kinds))
        rows.append(("all parameters", "", *_cells(self.whole_model), *("" for _ in shown)))
        return rows, "<" + ">" * (4 + len(shown)), 2

    def _notes(self) -> list[str]:
        notes = []
        if isinstance(self.amount, int):
            notes.append(f"asked: {self.amount:,} zeros; actual: {self.zeros:,}")
        elif self.amount is not None:
            notes.append(f"asked: {self.amount:.2%} of the prunable weights; actual: {self.sparsity:.2%}")
        return notes + ([f"not covered: {', '.join(self.not_covered)}"] if self.not_covered else [])


def sparsity_report(
    model: nn.Module, *, include: Sequence[str] | str | None = None, exclude: Sequence[str] | str | None = None
) -> SparsityReport:
    """Count the zeros of a model's prunable weights, and of all its parameters. Changes nothing.

    Args:
        model: A Hugging Face classifier, or any module with ``nn.Linear`` or ``Conv1D`` in it.
        include: Shell patterns over module names; see `prune_global_l1`.
        exclude: Shell patterns for modules to leave out.

    Returns:
        Zeros by matrix, by kind of block and in all; ``-0.0`` is a zero.

    Raises:
        CompressionError: A pattern matches nothing, nothing is prunable, or a weight is quantized, sharded or on the
            meta device.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
        >>> report = sparsity_report(BertForSequenceClassification(config))
        >>> report.weights, report.zeros, report.sparsity
        (9216, 0, 0.0)
        >>> {kind: count.weights for kind, count in report.kinds.items()}
        {'attention': 4096, 'feed-forward': 4096, 'pooler': 1024}
    """
    selection = select_matrices(model, include, exclude)
    check_prunable(model, selection)
    return make_report(model, selection, count_zeros(selection.matrices))


def count_zeros(matrices: Iterable[WeightMatrix]) -> dict[str, int]:
    """Count the zeros of each matrix, by its name; the matrices may be of any dtype."""
    return {matrix.name: _count_zeros(matrix.weight) for matrix in matrices}


def make_report(
    model: nn.Module, selection: Selection, zeros: Mapping[str, int], amount: float | int | None = None
) -> SparsityReport:
    """Make the report of matrices whose zeros were counted, by name; an empty matrix may be left out."""
    inner = unwrap(model)
    body = {id(module) for module in getattr(inner, "base_model", inner).modules()}
    layers = []
    for matrix in selection.matrices:
        weight = matrix.weight
        dtype = str(weight.dtype).removeprefix("torch.")
        kind = block_kind(matrix.name) if id(model.get_submodule(matrix.name)) in body else "head"
        shape, count = tuple(weight.shape), zeros.get(matrix.name, 0)
        layers.append(LayerSparsity(matrix.name, shape, dtype, weight.numel(), count, kind))
    seen: set[object] = set()
    list(distinct((matrix.weight for matrix in selection.matrices), seen))
    others = [parameter for parameter in distinct(model.parameters(), seen) if not is_lazy(parameter)]
    found = _total(layers)
    whole = ZeroCount(
        found.weights + sum(other.numel() for other in others), found.zeros + sum(map(_count_zeros, others))
    )
    return SparsityReport(tuple(layers), whole, selection.not_covered, amount)


def _count_zeros(parameter: Tensor) -> int:
    """Count the zeros of a parameter of any dtype; none where its values cannot be read."""
    if not has_plain_values(parameter):
        return 0
    weight = parameter.detach()
    if weight.dtype not in PRUNABLE_DTYPES or not weight.is_contiguous():
        return weight.numel() - int(torch.count_nonzero(weight))
    # Compared into the weights' own dtype and added, many at a time, which torch.count_nonzero does not do.
    parts = torch.split(weight.view(-1), _COUNTED)
    flags = torch.empty_like(parts[0])
    return sum(int(torch.eq(part, 0, out=flags[: len(part)]).sum(dtype=torch.float32)) for part in parts)


def _cells(count: LayerSparsity | ZeroCount) -> tuple[str, str, str]:
    return f"{count.weights:,}", f"{count.zeros:,}", f"{count.sparsity:.2%}"


def _with_sparsity(count: LayerSparsity | ZeroCount) -> dict[str, Any]:
    return asdict(count) | {"sparsity": count.sparsity}


def _total(layers: Iterable[LayerSparsity]) -> ZeroCount:
    layers = list(layers)
    return ZeroCount(sum(layer.weights for layer in layers), sum(layer.zeros for layer in layers))


def _by_kind(layers: Iterable[LayerSparsity]) -> dict[str, list[LayerSparsity]]:
    return _grouped((layer.kind, layer) for layer in layers)


def _by_layer(layers: Iterable[LayerSparsity]) -> dict[str, list[LayerSparsity]]:
    names = ((_LAYER.match(layer.name), layer) for layer in layers)
    return _grouped((found.group() if found else layer.name, layer) for found, layer in names)


def _grouped(pairs: Iterable[tuple[str, LayerSparsity]]) -> dict[str, list[LayerSparsity]]:
    groups: dict[str, list[LayerSparsity]] = {}
    for key, layer in pairs:
        groups.setdefault(key, []).append(layer)
    return groups
