"""Prune, distil and measure Hugging Face text classifiers.

What is public is imported when it is first used, so that ``import hfcompress`` costs little beside transformers.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hfcompress.errors import CompressionError
from hfcompress.loader import register_loader

if TYPE_CHECKING:
    from hfcompress import importance as importance
    from hfcompress import losses as losses
    from hfcompress.arguments import DistillationArguments
    from hfcompress.cache import cache_teacher_logits
    from hfcompress.comparison import Comparison, Measurement
    from hfcompress.distillation import DistillationTrainer
    from hfcompress.magnitude import prune_global_l1
    from hfcompress.measure import compare, measure
    from hfcompress.report import LayerSparsity, SparsityReport, sparsity_report
    from hfcompress.storage import load_compressed, save_compressed
    from hfcompress.structured import BlockStructure, StructureReport, prune_structured
    from hfcompress.student import student_from_teacher
    from hfcompress.training import GradualPruning, KeepSparsity

register_loader()

__version__ = "0.1.0"

__all__ = [
    "BlockStructure",
    "Comparison",
    "CompressionError",
    "DistillationArguments",
    "DistillationTrainer",
    "GradualPruning",
    "KeepSparsity",
    "LayerSparsity",
    "Measurement",
    "SparsityReport",
    "StructureReport",
    "__version__",
    "cache_teacher_logits",
    "compare",
    "load_compressed",
    "measure",
    "prune_global_l1",
    "prune_structured",
    "save_compressed",
    "sparsity_report",
    "student_from_teacher",
]

_LAZY = {  # where each name is; what is imported above for type checkers must be here
    "BlockStructure": "structured",
    "Comparison": "comparison",
    "DistillationArguments": "arguments",
    "DistillationTrainer": "distillation",
    "GradualPruning": "training",
    "KeepSparsity": "training",
    "LayerSparsity": "report",
    "Measurement": "comparison",
    "SparsityReport": "report",
    "StructureReport": "structured",
    "cache_teacher_logits": "cache",
    "compare": "measure",
    "load_compressed": "storage",
    "measure": "measure",
    "prune_global_l1": "magnitude",
    "prune_structured": "structured",
    "save_compressed": "storage",
    "sparsity_report": "report",
    "student_from_teacher": "student",
}
_MODULES = ("importance", "losses")  # public as a whole

if not TYPE_CHECKING:  # a type checker would take any name for a public one

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


class _Package(ModuleType):
    """Whoever imports the module `measure`, and when: that name of the package is the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Python names each imported module in its package so.
        if isinstance(value, ModuleType) and name in __all__:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
