"""The command ``hfcompress``, a client of the library.

It lies beside the library because importing any part of that imports transformers, which takes seconds; ``--help``
and a mistyped option are answered at once.
"""

from hfcompress_cli.application import main

__all__ = ["main"]
