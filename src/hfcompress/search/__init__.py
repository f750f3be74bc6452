"""All at once: a ladder of smaller models, each a number of times as fast as the original, from one call."""

from typing import TYPE_CHECKING

from hfcompress._lazy import lazy_names

if TYPE_CHECKING:
    from hfcompress.search.compressing import compress
    from hfcompress.search.ladder import Ladder, Rung
else:
    _modules = {"compressing": ["compress"], "ladder": ["Ladder", "Rung"]}
    __getattr__, __dir__ = lazy_names(__name__, _modules)

__all__ = ["Ladder", "Rung", "compress"]
