"""Weights that are no plain parameters: computed in the forward pass, quantized, or an adapter's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import get_config
from hfcompress.models.shape_plan import is_plan
from hfcompress.models.tensors import is_torchao

_QUANTIZED = re.compile(r"torch\.(ao\.)?nn\.(intrinsic\.)?quantized\b")  # where torch defines such modules


@dataclass(frozen=True)
class ComputedWeight:
    """A weight that a module computes in each forward pass.

    Attributes:
        sources: The parameters that it is computed from.
        remedy: The call that makes it a plain parameter, with the values that it has now.
    """

    sources: tuple[nn.Parameter, ...]
    remedy: str


def computed_weights(module: nn.Module) -> dict[str, ComputedWeight]:
    """Find the weights of a module that it computes: masked, normalized or otherwise parametrized ones, by name."""
    found = {}
    for name, value in vars(module).items():
        if not isinstance(value, Tensor):
            continue
        own = {
            end: module._parameters[f"{name}_{end}"]
            for end in ("orig", "g", "v")
            if f"{name}_{end}" in module._parameters
        }
        sources = tuple(parameter for parameter in own.values() if parameter is not None)
        if f"{name}_mask" in module._buffers:
            found[name] = ComputedWeight(sources, f"torch.nn.utils.prune.remove(module, {name!r})")
        elif sources:
            norm = "spectral_norm" if "orig" in own else "weight_norm"
            found[name] = ComputedWeight(sources, f"torch.nn.utils.remove_{norm}(module, {name!r})")
    parametrizations = module._modules.get("parametrizations")
    if parametrize.is_parametrized(module) and isinstance(parametrizations, nn.ModuleDict):
        for name, steps in parametrizations.items():
            call = f"torch.nn.utils.parametrize.remove_parametrizations(module, {name!r})"
            found[name] = ComputedWeight(tuple(steps.parameters(recurse=False)), call)
    return found


def check_no_computed_weights(model: nn.Module, verb: str) -> None:
    """Raise a `CompressionError` if a weight is masked or otherwise parametrized; ``verb`` is a participle."""
    for name, module in model.named_modules():
        for weight, computed in computed_weights(module).items():
            raise CompressionError(
                f"The {weight} of {name!r} is computed from other parameters (masks of torch.nn.utils.prune, "
                f"weight_norm or another parametrization), so the model cannot be {verb}; make it a plain parameter "
                f"first: {computed.remedy}, module being model.get_submodule({name!r})."
            )


def quantized_weight(module: Any) -> Tensor:
    """Return a copy of the weight of a linear layer that ``quantize_dynamic`` has made."""
    weight: Tensor = module.weight()
    return weight


def is_quantized_linear(module: nn.Module) -> bool:
    """Whether this is a linear layer of `torch.ao` with packed weights."""
    return is_quantized(module) and callable(getattr(module, "weight", None)) and hasattr(module, "out_features")


def is_quantized(module: nn.Module) -> bool:
    """Whether this is one of the quantized modules of `torch.ao`, as ``quantize_dynamic`` puts them into a model."""
    return _QUANTIZED.match(type(module).__module__) is not None


def check_no_adapter(model: nn.Module) -> None:
    """Raise a `CompressionError` if a model has an adapter of PEFT, which transformers or PEFT has put into it.

    Prompts are known by PEFT's wrapper alone, so a model is checked before `unwrap` takes that off.
    """
    for module in model.modules():
        configs = vars(module).get("_peft_config")  # of PEFT's wrapper around a model with prompts
        prompt = next((one for one in (configs or {}).values() if getattr(one, "is_prompt_learning", False)), None)
        if prompt is not None:
            raise CompressionError(
                f"The model has a prompt of PEFT ({type(prompt).__name__}), which no weight of it can hold; save it "
                "with PEFT, model.save_pretrained(...), or train LoRA instead, which can be merged."
            )
    if getattr(model, "_hf_peft_config_loaded", False) or any(hasattr(m, "base_layer") for m in model.modules()):
        raise CompressionError("The model has a PEFT adapter; merge it first: model = model.merge_and_unload().")


def check_not_quantized(model: nn.Module, verb: str) -> None:
    """Raise a `CompressionError` if a module was quantized, as by ``quantize_dynamic``; ``verb`` is a participle."""
    if (found := _first_quantized(model) or _first_of_torchao(model)) is not None:
        raise CompressionError(
            f"{found} and has no floating-point weights, so it cannot be {verb}; take the model as it was before "
            "(quantize_dynamic(...) returns a copy), and quantize it afterwards."
        )


def check_no_float32_alone(model: nn.Module, setting: str) -> None:
    """Raise a `CompressionError` if a module was quantized: such ones compute in float32, whatever the setting says."""
    if (found := _first_quantized(model)) is not None:
        raise CompressionError(f"{found} and computes in float32 alone; leave out {setting}.")


def _first_quantized(model: nn.Module) -> str | None:
    """Say which module is the first quantized one."""
    for name, module in model.named_modules():
        if is_quantized(module):
            return f"{name or 'The model'} is quantized ({type(module).__module__}.{type(module).__name__})"
    return None


def _first_of_torchao(model: nn.Module) -> str | None:
    for name, parameter in model.named_parameters():
        if is_torchao(parameter):
            return f"{name} is quantized ({type(parameter).__module__}.{type(parameter).__name__})"
    return None


def modules_of_integers(model: nn.Module) -> Iterator[str]:
    """Names of the modules that another library's quantization has put in place of linear layers: GPTQ's, AWQ's."""
    method = getattr(get_config(model), "quantization_config", None)
    if method is None or is_plan(method):
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            continue
        saved = (buffer for key, buffer in module._buffers.items() if key not in module._non_persistent_buffers_set)
        held = [tensor for tensor in (*module._parameters.values(), *saved) if tensor is not None and tensor.dim() > 1]
        if not all(map(torch.is_floating_point, held)):
            yield name
