"""What the installed transformers, accelerate and torch can do, asked by feature and never by version number.

Each function names the release that brought what it asks for. This is the only module that asks; it imports what it
looks at when it is called, and nothing else at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def kept_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> list[str]:
    """Return patterns of the parameters that transformers keeps in float32 where others are loaded in this dtype.

    A model of 5.0 has them in its ``dtype_plan``, for both halves; from 5.1 on some are kept for float16 alone.
    """
    plan = getattr(model, "dtype_plan", None)
    if plan is not None:
        return list(plan)
    kept = [*(model._keep_in_fp32_modules_strict or ())]
    return kept + [*(model._keep_in_fp32_modules or ())] * (str(dtype) == "torch.float16")


def uncounted_products() -> list[Any]:
    """Return the operations, multiplying each expert's tokens by its weights, of which torch counts no FLOPs.

    torch 2.8 has one and 2.6 does not; transformers has another, for where that one does not run, from 5.3.
    """
    import torch

    names = ((torch.ops.aten, "_grouped_mm"), (torch.ops.transformers, "grouped_mm_fallback"))
    return [getattr(namespace, name) for namespace, name in names if hasattr(namespace, name)]
