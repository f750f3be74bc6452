"""The report of the zeros of a model, by matrix and in total."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from hfcompress.models.architectures import block_kind
from hfcompress.models.classifier import check_model_kind, unwrap
from hfcompress.models.sharded import has_known_placements, local_values, shards_of_model, sum_local_counts
from hfcompress.models.tensors import count_nonzero, distinct, has_plain_values, is_torchao
from hfcompress.models.weights import (
    PRUNABLE_DTYPES,
    Selection,
    check_prunable,
    effective_parameters,
    find_body,
    is_head_name,
    select_matrices,
)
from hfcompress.report.plots import draw_sparsity
from hfcompress.report.tables import Report, Row, Table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LAYER_NAME = re.compile(r"(?:.*?\.)?\d+(?=\.)")  # the part of a module name up to the first number
_CHUNK = 1 << 19  # weights compared by one call; their flags stay in the cache
_MOST_ROWS = 30  # of matrices; a model with more is shown layer by layer


@dataclass(frozen=True)
class ZeroCount:
    """Number of weights, and of zeros among them.

    Attributes:
        weights: Number of weights.
        zeros: Number of weights that are exactly 0.
    """

    weights: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that are 0; 0.0 if there are none."""
        return self.zeros / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros of one weight matrix.

    Attributes:
        name: Module name.
        shape: Shape of the matrix, as stored (``Conv1D`` stores inputs first).
        dtype: Dtype of the matrix, for example ``"float32"``.
        weights: Number of weights.
        zeros: Number of weights that are exactly 0.
        kind: Kind of the block: ``"attention"``, ``"feed-forward"``, ``"pooler"``,
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
        """Fraction of the weights that are 0; 0.0 for an empty matrix."""
        return ZeroCount(self.weights, self.zeros).sparsity


@dataclass(frozen=True)
class SparsityReport(Report):
    """Zeros of a model's prunable weights, and of all its parameters. ``print`` and a notebook show a table.

    Attributes:
        layers: One entry a weight matrix in scope, in the order of ``model.named_modules()``.
        whole_model: All parameters of the model, whether in scope or not; a shared one counts once. Parameters that are
            not plain tensors (quantized, sharded otherwise than by rows, without values) count as without zeros.
        not_covered: Names of the body's matrices in kinds of module that the library cannot prune and never changes.
        amount: The amount that `prune_global_l1` was asked for; None in a report of `sparsity_report`.
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
        """Fraction of the prunable weights that are 0; 0.0 if there are none."""
        return _total(self.layers).sparsity

    @property
    def kinds(self) -> dict[str, ZeroCount]:
        """Zeros by kind of block, in the order of first appearance."""
        return _by_kind(self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain Python values that JSON can hold."""
        totals = {"weights": self.weights, "zeros": self.zeros, "sparsity": self.sparsity, "amount": self.amount}
        return totals | {
            "whole_model": _with_sparsity(self.whole_model),
            "kinds": {kind: _with_sparsity(count) for kind, count in self.kinds.items()},
            "layers": [_with_sparsity(layer) for layer in self.layers],
            "not_covered": list(self.not_covered),
        }

    def to_text(self, *, verbose: bool = False, width: int | None = None) -> str:
        """Return a table for a terminal.

        Args:
            verbose: Show every matrix; otherwise a model of more than 30 matrices is shown layer by layer.
            width: Characters of a line. Columns beyond it follow below, each time with the first column.

        Example:
            >>> count = ZeroCount(12, 3)
            >>> layer = LayerSparsity("layer.0.mlp.up", (4, 3), "float32", 12, 3, "feed-forward")
            >>> print(SparsityReport((layer,), count).to_text())
            matrix                block         shape  weights  zeros  sparsity
            layer.0.mlp.up        feed-forward  4 x 3       12      3    25.00%
            all prunable weights                            12      3    25.00%
            all parameters                                  12      3    25.00%
        """
        return self._table(verbose).text(width)

    def to_markdown(self, *, verbose: bool = True) -> str:
        """Return a Markdown table; ``verbose`` as for `to_text`."""
        return self._table(verbose).markdown()

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
        bars = {name: {k: count.sparsity for k, count in _by_kind(part).items()} for name, part in groups.items()}
        return draw_sparsity(axes, bars, list(self.kinds), self.sparsity)

    def _table(self, verbose: bool = False) -> Table:
        return self._table_by_matrix() if verbose or len(self.layers) <= _MOST_ROWS else self._table_by_layer()

    def _table_by_matrix(self) -> Table:
        head = ("matrix", "block", "shape", "weights", "zeros", "sparsity")
        rows = [(layer.name, layer.kind, " x ".join(map(str, layer.shape)), *_cells(layer)) for layer in self.layers]
        kinds = self.kinds if len(self.kinds) > 1 else {}
        totals = [(f"all {kind}", kind, "", *_cells(count)) for kind, count in kinds.items()]
        totals.append(("all prunable weights", "", "", *_cells(_total(self.layers))))
        totals.append(("all parameters", "", "", *_cells(self.whole_model)))
        return Table([head, *rows, *totals], "<<<>>>", self._notes(), len(totals))

    def _table_by_layer(self) -> Table:
        groups = _by_layer(self.layers)
        # A kind that no layer shares with another one (the pooler) has a row of its own already.
        shown = [kind for kind in self.kinds if any({one.kind for one in part} > {kind} for part in groups.values())]
        rows: list[Row] = [("layer", "matrices", "weights", "zeros", "sparsity", *shown)]
        for name, part in [*groups.items(), ("all prunable weights", list(self.layers))]:
            by_kind = _by_kind(part)
            kinds = [f"{by_kind[kind].sparsity:.2%}" if kind in by_kind else "" for kind in shown]
            rows.append((name, str(len(part)), *_cells(_total(part)), *kinds))
        rows.append(("all parameters", "", *_cells(self.whole_model), *("" for _ in shown)))
        return Table(rows, "<" + ">" * (4 + len(shown)), self._notes(), totals=2)

    def _notes(self) -> list[str]:
        notes = [f"not covered: {', '.join(self.not_covered)}"] if self.not_covered else []
        if self.amount is None:
            return notes
        if isinstance(self.amount, int):
            return [f"asked: {self.amount:,} zeros; actual: {self.zeros:,}", *notes]
        return [f"asked: {self.amount:.2%} of the prunable weights; actual: {self.sparsity:.2%}", *notes]


def sparsity_report(
    model: nn.Module, *, include: Sequence[str] | str | None = None, exclude: Sequence[str] | str | None = None
) -> SparsityReport:
    """Count the zeros of a model's prunable weights, and of all its parameters. The model is not changed.

    Args:
        model: A Hugging Face classifier, or any module that contains ``nn.Linear`` or ``Conv1D``.
        include: Shell patterns over module names; see `prune_global_l1`.
        exclude: Shell patterns for modules to leave out.

    Returns:
        Zeros by matrix, by kind of block and in total; ``-0.0`` is a zero. Of a model sharded by FSDP2, those of all
        shards, in every process; all processes must call this.

    Raises:
        CompressionError: A pattern matches nothing, nothing is prunable, or a weight is quantized, sharded otherwise
            than by rows, or on the meta device.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
        >>> report = sparsity_report(BertForSequenceClassification(config))
        >>> report.weights, report.zeros, report.sparsity
        (9216, 0, 0.0)
        >>> {kind: count.weights for kind, count in report.kinds.items()}
        {'attention': 4096, 'feed-forward': 4096, 'pooler': 1024}
    """
    check_model_kind(model, classifier=False)
    return make_report(model, shards_of_model(model).together(partial(_select, model, include, exclude)))


def _select(model: nn.Module, include: Sequence[str] | str | None, exclude: Sequence[str] | str | None) -> Selection:
    selection = select_matrices(model, include, exclude)
    check_prunable(model, selection)
    return selection


def make_report(
    model: nn.Module, selection: Selection, zeros: Mapping[str, int] | None = None, amount: float | int | None = None
) -> SparsityReport:
    """Make the report of selected matrices.

    Their zeros, by name and 0 where a name is missing, are counted if None; of sharded ones, those in this process.
    """
    body, plain = find_body(model), not hasattr(unwrap(model), "base_model")
    seen: set[object] = set()
    list(distinct((matrix.weight for matrix in selection.matrices), seen))
    others = [parameter for parameter in distinct(effective_parameters(model), seen) if not is_lazy(parameter)]
    parameters = [*(matrix.weight for matrix in selection.matrices), *others]
    if zeros is None:
        counts = [_count_zeros(parameter) for parameter in parameters]
    else:
        counts = [*(zeros.get(matrix.name, 0) for matrix in selection.matrices), *map(_count_zeros, others)]
    counts = sum_local_counts(parameters, counts)
    layers = []
    for (name, weight), count in zip(((m.name, m.weight) for m in selection.matrices), counts, strict=False):
        # Of a plain module nothing says what its body is, so that all of it is in scope.
        is_head = id(model.get_submodule(name)) not in body or (plain and any(map(is_head_name, name.split("."))))
        kind = "head" if is_head else block_kind(name)
        dtype = str(weight.dtype).removeprefix("torch.")
        layers.append(LayerSparsity(name, tuple(weight.shape), dtype, weight.numel(), count, kind))
    whole_model = ZeroCount(sum(parameter.numel() for parameter in parameters), sum(counts))
    return SparsityReport(tuple(layers), whole_model, selection.not_covered, amount)


def _count_zeros(parameter: Tensor) -> int:
    """Count the zeros of what this process holds of a parameter of any dtype; 0 where its values cannot be read."""
    if isinstance(parameter, DTensor) and has_known_placements(parameter):
        parameter = local_values(parameter)
    if is_torchao(parameter):
        return parameter.numel() - count_nonzero(parameter)
    if not has_plain_values(parameter):
        return 0
    weight = parameter.detach()
    if weight.dtype not in PRUNABLE_DTYPES or not weight.is_contiguous():
        return weight.numel() - count_nonzero(weight)
    # Flags in the weights' own dtype are compared and added by vector instructions; torch.count_nonzero uses none.
    parts = torch.split(weight.view(-1), _CHUNK)
    flags = torch.empty_like(parts[0])
    return sum(int(torch.eq(part, 0, out=flags[: len(part)]).sum(dtype=torch.float32)) for part in parts)


def _cells(count: LayerSparsity | ZeroCount) -> tuple[str, str, str]:
    return f"{count.weights:,}", f"{count.zeros:,}", f"{count.sparsity:.2%}"


def _with_sparsity(count: LayerSparsity | ZeroCount) -> dict[str, Any]:
    return asdict(count) | {"sparsity": count.sparsity}


def _total(layers: Iterable[LayerSparsity]) -> ZeroCount:
    layers = list(layers)
    return ZeroCount(sum(layer.weights for layer in layers), sum(layer.zeros for layer in layers))


def _by_kind(layers: Iterable[LayerSparsity]) -> dict[str, ZeroCount]:
    return {kind: _total(group) for kind, group in _group(layers, lambda layer: layer.kind).items()}


def _by_layer(layers: Iterable[LayerSparsity]) -> dict[str, list[LayerSparsity]]:
    return _group(layers, lambda layer: match.group() if (match := _LAYER_NAME.match(layer.name)) else layer.name)


def _group(layers: Iterable[LayerSparsity], key: Callable[[LayerSparsity], str]) -> dict[str, list[LayerSparsity]]:
    groups: dict[str, list[LayerSparsity]] = {}
    for layer in layers:
        groups.setdefault(key(layer), []).append(layer)
    return groups
