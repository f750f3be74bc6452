"""What the installed transformers, accelerate and torch can do, asked by feature and never by version number.

Each function names the release that brought what it asks for. This is the only module that asks; it imports what it
looks at when it is called, and nothing else at all.
"""

from __future__ import annotations

import inspect
import platform
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class MixedPrecision(NamedTuple):
    """The mixed precision to train in."""

    name: str
    """``"bf16"``, ``"fp16"`` or ``"no"``, as accelerate calls them."""
    reason: str
    """Why, as the end of a sentence."""


def package_version(name: str) -> str:
    """Return the version of a package that can be imported, as it says itself, without what a build appends.

    It is for records, and decides nothing. Metadata of an installation is not asked: that of ``onnxruntime-gpu`` has
    another name, and a package that is imported from its source has none.
    """
    return str(getattr(import_module(name), "__version__", "unknown")).partition("-")[0]


def current_accelerator() -> torch.device | None:
    """Return the accelerator if there is one that can be used.

    `torch.accelerator` came with torch 2.6; its ``current_accelerator(check_available=)`` only with 2.7.
    """
    import torch

    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def mixed_precision(device: str | None = None) -> MixedPrecision:
    """Choose the mixed precision to train in: bfloat16 where it is computed natively, float16 on a GPU without that.

    On processors without native bfloat16 a step of training was measured under bfloat16 autocast (BERT of 6 layers and
    width 384, 16 texts of 64 tokens): 2 times as long as in float32 with AVX-512 alone, where oneDNN converts, and 10
    to 15 times as long without (one thread, two threads: the backward pass uses only one). On ``"mps"`` both bfloat16
    and float16 depend on the chip, on macOS and on accelerate, whose release 1.7 refuses them; so float32 there.

    Args:
        device: Type of the device, for example ``"cuda"``; the accelerator if there is one, or else the processor, if
            None.
    """
    import torch

    accelerator = current_accelerator() if device is None else None
    device = accelerator.type if accelerator is not None else device or "cpu"
    if device == "cpu":
        return _mixed_precision_of_processor()
    # Since torch 2.6 at least torch.cuda and torch.xpu have it; on others its emulation counts unless it is excluded.
    supported = getattr(getattr(torch, device, None), "is_bf16_supported", None)
    if supported is None:
        return MixedPrecision("no", f"whether {device} has another depends on chip, system and releases")
    native = {"including_emulation": False} if "including_emulation" in inspect.signature(supported).parameters else {}
    if supported(**native):
        return MixedPrecision("bf16", f"this {device} device computes bfloat16 natively")
    if device == "cuda":
        return MixedPrecision("fp16", "this GPU computes float16 natively, but not bfloat16")
    return MixedPrecision("no", f"this {device} device does not compute bfloat16 natively")


def _mixed_precision_of_processor() -> MixedPrecision:
    import torch

    # Missing where torch was built without oneDNN. On Arm it says whether bfloat16 is native; on x86 it is also true
    # where oneDNN converts. Torch 2.6 to 2.15 have no public name for it.
    computes = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if computes is None or not computes():
        factor = "10 to 15 times (a forward pass 3 to 4 times)"
    elif platform.machine().lower() in ("x86_64", "amd64") and not {"AVX-512 BF16", "AMX"} & set(processor_features()):
        factor = "about 2 times"
    else:
        return MixedPrecision("bf16", "this processor computes bfloat16 natively")
    return MixedPrecision("no", f"this processor has no native bfloat16, and bf16 takes {factor} as long as float32")


def processor_name() -> str:
    """Return the name of the processor, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, (*names, platform.processor(), platform.machine())), "cpu")


def processor_features() -> list[str]:
    """Name the features of an x86 processor that matter for speed, as torch 2.6 and later find them."""
    import torch

    queries = {
        "AVX2": "_is_avx2_supported",
        "AVX-512": "_is_avx512_supported",
        "AVX-512 VNNI": "_is_vnni_supported",
        "AVX-512 BF16": "_is_avx512_bf16_supported",
        "AMX": "_is_amx_tile_supported",
    }
    asked = ((name, getattr(torch.cpu, query, None)) for name, query in queries.items())
    return [name for name, ask in asked if ask is not None and ask()]


def kept_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> list[str]:
    """Return patterns of the parameters that transformers keeps in float32 where others are loaded in this dtype.

    A model of 5.0 has them in its ``dtype_plan``, for both halves; from 5.1 on some are kept for float16 alone.
    """
    plan = getattr(model, "dtype_plan", None)
    if plan is not None:
        return list(plan)
    kept = [*(model._keep_in_fp32_modules_strict or ())]
    return kept + [*(model._keep_in_fp32_modules or ())] * (str(dtype) == "torch.float16")


def quantized_products() -> list[Any]:
    """Return the operations by which models of ``quantize_dynamic`` multiply, of which torch counts no FLOPs.

    Up to torch 2.13 at least torch has them, where it was built with a quantized engine.
    """
    import torch

    names = ("linear_dynamic", "linear_relu_dynamic", "linear_dynamic_fp16", "linear_relu_dynamic_fp16")
    return [getattr(torch.ops.quantized, name) for name in names if hasattr(torch.ops.quantized, name)]


def uncounted_products() -> list[Any]:
    """Return the operations, multiplying each expert's tokens by its weights, of which torch counts no FLOPs.

    torch 2.8 has one and 2.6 does not; transformers has another, for where that one does not run, from 5.3.
    """
    import torch

    names = ((torch.ops.aten, "_grouped_mm"), (torch.ops.transformers, "grouped_mm_fallback"))
    return [getattr(namespace, name) for namespace, name in names if hasattr(namespace, name)]
