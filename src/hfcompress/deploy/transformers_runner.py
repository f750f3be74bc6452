"""The file by which transformers' own runner, which came with 5.23, finds an exported model in its folder."""

from __future__ import annotations

import json
from pathlib import Path

from hfcompress.deploy.export_report import ExportReport
from hfcompress.deploy.formats import FORMATS

MANIFEST = "export.json"
# How torch's pytree writes down an output that has nothing but logits.
_LEAF: dict[str, object] = {"type": None, "context": None, "children_spec": []}
_OUTPUT: dict[str, object] = {
    "type": "transformers.modeling_outputs.SequenceClassifierOutput",
    "context": '["logits"]',
    "children_spec": [_LEAF],
}


def write_manifest(folder: Path, model_class: str, report: ExportReport) -> None:
    """Write the file into a new folder; `transformers.exporters.base.ExportedModel.from_pretrained` reads it."""
    metadata = {
        "architecture": model_class,
        "packages": report.versions,
        "export_dtype": "float32",
        "export_device": "cpu",
        "kwargs": {name: {"rank": 2, "shape": [1, 1], "dtype": "int64"} for name in report.inputs},
        "out_spec": json.dumps([1, _OUTPUT]),
    }
    file = FORMATS[report.format].graph
    content = {
        "schema_version": 1,
        "export_format": report.format,
        "components": {"model": {"file": file, "metadata": metadata}},
    }
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
