"""Prune, distill, measure and export Hugging Face text classifiers.

What is public is imported when it is first used, so that ``import hfcompress`` costs little beside transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hfcompress import deploy, distill, prune, report, search, shrink, storage
from hfcompress.errors import CompressionError
from hfcompress.storage.quantizer import register_loader

if TYPE_CHECKING:  # a type checker sees the names; the table below says where they are imported from
    from hfcompress import importance as importance
    from hfcompress import losses as losses
    from hfcompress.deploy import ExportedModel, ExportReport, QualityGate, export, load_exported
    from hfcompress.distill import DistillationArguments, DistillationTrainer, cache_teacher_logits
    from hfcompress.prune import GradualPruning, KeepSparsity, prune_global_l1
    from hfcompress.report import (
        BlockStructure,
        Comparison,
        ForwardPass,
        LayerSparsity,
        Measurement,
        SparsityReport,
        StructureReport,
        VocabularyReport,
        compare,
        measure,
        sparsity_report,
    )
    from hfcompress.search import Ladder, Rung, compress
    from hfcompress.shrink import prune_structured, prune_vocabulary, student_from_teacher
    from hfcompress.storage import load_compressed, pack_folder, save_compressed, unpack_folder

__version__ = "0.1.0"

__all__ = ["CompressionError", "__version__"]
__all__ += ["ExportReport", "ExportedModel", "QualityGate", "export", "load_exported"]
__all__ += ["DistillationArguments", "DistillationTrainer", "cache_teacher_logits"]
__all__ += ["GradualPruning", "KeepSparsity", "prune_global_l1"]
__all__ += ["BlockStructure", "Comparison", "ForwardPass", "LayerSparsity", "Measurement", "SparsityReport"]
__all__ += ["StructureReport", "VocabularyReport", "compare", "measure", "sparsity_report"]
__all__ += ["Ladder", "Rung", "compress"]
__all__ += ["prune_structured", "prune_vocabulary", "student_from_teacher"]
__all__ += ["load_compressed", "pack_folder", "save_compressed", "unpack_folder"]

_MODULES = ("importance", "losses")  # public as a whole

register_loader()

if not TYPE_CHECKING:  # a type checker would take any name for a public one

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        for package in (deploy, distill, prune, report, search, shrink, storage):
            if name in package.__all__:
                value = globals()[name] = getattr(package, name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
