"""The int8 models of OpenVINO that the quality gate tries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from hfcompress.deploy.exported_model import ExportedModel
from hfcompress.deploy.onnx_candidates import Candidates
from hfcompress.deploy.openvino_model import compress_weights, convert, quantize_static
from hfcompress.deploy.quantization import Operator


class OpenVinoCandidates(Candidates):
    """Those of which OpenVINO runs the int8 model; which operators are worst is measured in ONNX Runtime."""

    @property
    @override
    def bits(self) -> int:
        """Bits of a weight: without static scales no product saturates."""
        return self._bits if self.static else 8

    @override
    def _use(self, graph: Any) -> None:
        super()._use(graph)
        self._converted = self._folder / "source.xml"  # in float32
        convert(self._folder / "source.onnx", self._converted)

    @override
    def build(self, left: Sequence[Operator], name: str = "int8") -> ExportedModel:
        """Quantize all but these operators: their weights alone where no scales of activations were measured."""
        file = self._file(name, "openvino")
        if self._calibration is None:
            compress_weights(self._converted, file, float32=left)
        else:
            int8 = [one for one in self.operators if one not in left]
            quantize_static(self._converted, file, bits=self._bits, int8=int8, calibration=self._calibration)
        model: ExportedModel = self._make(file)
        return model
