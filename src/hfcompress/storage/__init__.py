"""Saves compressed models as folders, and loads them."""

from typing import TYPE_CHECKING

from hfcompress._lazy import lazy_names

if TYPE_CHECKING:
    from hfcompress.storage.convert import pack_folder, unpack_folder
    from hfcompress.storage.load import load_compressed
    from hfcompress.storage.save import save_compressed
else:
    _modules = {
        "convert": ["pack_folder", "unpack_folder"],
        "load": ["load_compressed"],
        "save": ["save_compressed"],
    }
    __getattr__, __dir__ = lazy_names(__name__, _modules)

__all__ = ["load_compressed", "pack_folder", "save_compressed", "unpack_folder"]
