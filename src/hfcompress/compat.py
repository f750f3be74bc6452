"""What the installed transformers, accelerate and torch can do, asked by feature and never by version number.

Each function names the release that brought what it asks for. This is the only module that asks; it imports what it
looks at when it is called, and nothing else at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
