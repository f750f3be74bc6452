"""Prune, distil and measure Hugging Face text classifiers."""

from hfcompress.cache import cache_teacher_logits
from hfcompress.distillation import DistillationArguments, DistillationTrainer
from hfcompress.errors import CompressionError
from hfcompress.magnitude import prune_global_l1
from hfcompress.measure import Comparison, Measurement, compare, measure
from hfcompress.report import LayerSparsity, SparsityReport, sparsity_report
from hfcompress.structured import student_from_teacher
from hfcompress.training import GradualPruning, KeepSparsity

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "CompressionError",
    "DistillationArguments",
    "DistillationTrainer",
    "GradualPruning",
    "KeepSparsity",
    "LayerSparsity",
    "Measurement",
    "SparsityReport",
    "__version__",
    "cache_teacher_logits",
    "compare",
    "measure",
    "prune_global_l1",
    "sparsity_report",
    "student_from_teacher",
]
