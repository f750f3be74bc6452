"""Smaller dense models: heads, neurons and layers removed."""

from typing import TYPE_CHECKING

from hfcompress._lazy import lazy_names

if TYPE_CHECKING:
    from hfcompress.shrink.layers import student_from_teacher
    from hfcompress.shrink.structured import prune_structured
else:
    _modules = {
        "layers": ["student_from_teacher"],
        "structured": ["prune_structured"],
    }
    __getattr__, __dir__ = lazy_names(__name__, _modules)

__all__ = ["prune_structured", "student_from_teacher"]
