"""Prune, distil and measure Hugging Face text classifiers."""

from hfcompress.arguments import DistillationArguments
from hfcompress.cache import cache_teacher_logits
from hfcompress.comparison import Comparison, Measurement
from hfcompress.distillation import DistillationTrainer
from hfcompress.errors import CompressionError
from hfcompress.magnitude import prune_global_l1
from hfcompress.measure import compare, measure
from hfcompress.report import LayerSparsity, SparsityReport, sparsity_report
from hfcompress.storage import register_loader
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
    "measure",
    "prune_global_l1",
    "prune_structured",
    "sparsity_report",
    "student_from_teacher",
]
