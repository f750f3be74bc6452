"""The int8 models of OpenVINO that the quality gate tries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from hfcompress.deploy.exported_model import ExportedModel
from hfcompress.deploy.openvino_model import compress_weights, convert
from hfcompress.deploy.quality_gate import Candidates
from hfcompress.deploy.quantization import Operator


class OpenVinoCandidates(Candidates):
    """Those of which OpenVINO runs the int8 model; which operators are worst is measured in ONNX Runtime."""

    @override
    def _use(self, graph: Any) -> None:
        super()._use(graph)
        self._converted = self._folder / "source.xml"  # in float32
        convert(self._folder / "source.onnx", self._converted)

    @override
    def build(self, left: Sequence[Operator], name: str = "int8") -> ExportedModel:
        """Make the weights of all but these operators int8."""
        file = self._folder / f"{name}.xml"
        compress_weights(self._converted, file, float32=left)
        model: ExportedModel = self._make(file)
        return model
