# pyright: reportUnnecessaryTypeIgnoreComment=true
"""What a user's program may look like to type checkers: mypy and pyright check it in the gate, and nothing runs it."""

from transformers import PreTrainedModel

import hfcompress as hfc
from hfcompress import DistillationArguments, GradualPruning, compare, prune_structured


def shrink(model: PreTrainedModel) -> float:
    report: hfc.SparsityReport = hfc.prune_global_l1(model, 0.2)
    structure = prune_structured(model, flops=0.5)
    callback = GradualPruning(0.5, schedule="linear")
    args = DistillationArguments("out", alpha=0.5)
    row: hfc.ForwardPass = hfc.measure(model).passes[0]
    print(compare({"model": model}).to_text(), callback.plan(10), args.alpha, row.latency_ms)
    print(hfc.losses.probabilities, hfc.importance.l1_scores, hfc.load_compressed("folder"), hfc.__version__)
    return report.sparsity + structure.removed("heads")


def use_a_name_that_is_not_public() -> None:
    """Where a checker accepted it, the comment would be unnecessary, which both checkers refuse."""
    _ = hfc.prune_globally  # type: ignore[attr-defined]
