"""Unstructured pruning: sets the smallest weights to zero, at once or during training, and keeps them at zero."""

from typing import TYPE_CHECKING

from hfcompress._lazy import lazy_names

if TYPE_CHECKING:
    from hfcompress.prune.callbacks import GradualPruning, KeepSparsity
    from hfcompress.prune.magnitude import prune_global_l1
else:
    __getattr__, __dir__ = lazy_names(
        __name__, {"callbacks": ["GradualPruning", "KeepSparsity"], "magnitude": ["prune_global_l1"]}
    )

__all__ = ["GradualPruning", "KeepSparsity", "prune_global_l1"]
