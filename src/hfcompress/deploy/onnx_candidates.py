"""The int8 models of ONNX Runtime that the quality gate tries: what is equalized, and what is left in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfcompress.deploy.equalization import equalize, largest_inputs
from hfcompress.deploy.exported_model import ExportedModel
from hfcompress.deploy.formats import FORMATS
from hfcompress.deploy.held_out import HeldOut, Rows
from hfcompress.deploy.quantization import Operator, find_operators, output_errors, quantize, save_for_quantizer
from hfcompress.models.heads_and_neurons import LinearPath
from hfcompress.models.inputs import Batch, read_examples

_TRIED = 5  # operators, those whose own output is worst, that are left in float32 one by one
_MEASURED = 64  # rows, on which activations are measured
_COMPARED = 128  # rows, on which equalized models and the outputs of operators are compared
_SAME = 1e-5  # of logits, absolute and relative: what equalized channels may change in float32
_HELPS = 0.9  # of the error: equalized channels that leave more of it do not help


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
