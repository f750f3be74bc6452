"""Models for other runtimes: exported, quantized behind a quality gate, and run from their folder."""

from typing import TYPE_CHECKING

from hfcompress._lazy import lazy_names

if TYPE_CHECKING:
    from hfcompress.deploy.export_report import ExportReport
    from hfcompress.deploy.exported_model import ExportedModel, load_exported
    from hfcompress.deploy.exporting import export
    from hfcompress.deploy.quality_gate import QualityGate
else:
    _modules = {
        "export_report": ["ExportReport"],
        "exported_model": ["ExportedModel", "load_exported"],
        "exporting": ["export"],
        "quality_gate": ["QualityGate"],
    }
    __getattr__, __dir__ = lazy_names(__name__, _modules)

__all__ = ["ExportReport", "ExportedModel", "QualityGate", "export", "load_exported"]
