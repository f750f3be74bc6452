"""What the installed transformers, accelerate and torch can do, asked by feature and never by version number.

Each function names the release that brought what it asks for. This is the only module that asks; it imports what it
looks at when it is called, and nothing else at all.
"""

from __future__ import annotations

from typing import Any


def uncounted_products() -> list[Any]:
    """Return the operations, multiplying each expert's tokens by its weights, of which torch counts no FLOPs.

    torch 2.8 has one and 2.6 does not; transformers has another, for where that one does not run, from 5.3.
    """
    import torch

    names = ((torch.ops.aten, "_grouped_mm"), (torch.ops.transformers, "grouped_mm_fallback"))
    return [getattr(namespace, name) for namespace, name in names if hasattr(namespace, name)]
