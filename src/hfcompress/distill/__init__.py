"""Students that learn from labels and from a teacher."""

from typing import TYPE_CHECKING

from hfcompress._lazy import lazy_names

if TYPE_CHECKING:
    from hfcompress.distill.arguments import DistillationArguments
    from hfcompress.distill.logits_cache import cache_teacher_logits
    from hfcompress.distill.trainer import DistillationTrainer
else:
    _modules = {
        "arguments": ["DistillationArguments"],
        "logits_cache": ["cache_teacher_logits"],
        "trainer": ["DistillationTrainer"],
    }
    __getattr__, __dir__ = lazy_names(__name__, _modules)

__all__ = ["DistillationArguments", "DistillationTrainer", "cache_teacher_logits"]
