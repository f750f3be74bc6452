"""Smaller dense models: heads, neurons, layers and tokens removed."""

from typing import TYPE_CHECKING

from hfcompress._lazy import lazy_names

if TYPE_CHECKING:
    from hfcompress.shrink.layers import student_from_teacher
    from hfcompress.shrink.structured import prune_structured
    from hfcompress.shrink.vocabulary import prune_vocabulary
else:
    _modules = {
        "layers": ["student_from_teacher"],
        "structured": ["prune_structured"],
        "vocabulary": ["prune_vocabulary"],
    }
    __getattr__, __dir__ = lazy_names(__name__, _modules)

__all__ = ["prune_structured", "prune_vocabulary", "student_from_teacher"]
