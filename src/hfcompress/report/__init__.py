"""Reports on a model: its zeros, its structure, and its measured size, speed and quality. They never change a model."""

from typing import TYPE_CHECKING

from hfcompress._lazy import lazy_names

if TYPE_CHECKING:
    from hfcompress.report.benchmark import compare, measure
    from hfcompress.report.comparison import Comparison
    from hfcompress.report.measurements import Measurement
    from hfcompress.report.sparsity import LayerSparsity, SparsityReport, sparsity_report
    from hfcompress.report.structure import BlockStructure, StructureReport
    from hfcompress.report.times import ForwardPass
    from hfcompress.report.vocabulary import VocabularyReport
else:
    _modules = {
        "benchmark": ["compare", "measure"],
        "comparison": ["Comparison"],
        "measurements": ["Measurement"],
        "sparsity": ["LayerSparsity", "SparsityReport", "sparsity_report"],
        "structure": ["BlockStructure", "StructureReport"],
        "times": ["ForwardPass"],
        "vocabulary": ["VocabularyReport"],
    }
    __getattr__, __dir__ = lazy_names(__name__, _modules)

__all__ = [
    "BlockStructure",
    "Comparison",
    "ForwardPass",
    "LayerSparsity",
    "Measurement",
    "SparsityReport",
    "StructureReport",
    "VocabularyReport",
    "compare",
    "measure",
    "sparsity_report",
]
