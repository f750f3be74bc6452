"""What the installed transformers, accelerate and torch can do, asked by feature and never by version number.

Each function names the release that brought what it asks for. This is the only module that asks; it imports what it
looks at when it is called, and nothing else at all.
"""

from __future__ import annotations
