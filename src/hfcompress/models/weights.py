"""The weight matrices of a classifier that pruning, keeping and reporting are about."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import count_outputs, evaluation_mode, get_config, unwrap
from hfcompress.models.plain_weights import (
    check_not_quantized,
    computed_weights,
    is_quantized_linear,
    modules_of_integers,
)
from hfcompress.models.sharded import has_known_placements, local_values, reshard, shard_ranks
from hfcompress.models.tensors import check_has_values, distinct

_HEAD_NAME = re.compile(r"classifier|classification|^score|(^|_)head$|logits")  # what transformers calls its heads
PRUNABLE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class WeightMatrix:
    """One weight matrix of the model.

    Attributes:
        name: Name of the module that holds it, as in ``model.named_modules()``.
        weight: The parameter itself, not a copy.
    """

    name: str
    weight: nn.Parameter


@dataclass(frozen=True)
class Selection:
    """The weight matrices in scope.

    Attributes:
        matrices: Those with plain weights.
        not_covered: The matrices of the body that the library does not know how to prune.
        quantized: The modules in scope that ``quantize_dynamic`` has made, whose weights are packed.
        hidden: The modules in scope with weights in integers, as GPTQ and AWQ pack them.
    """

    matrices: tuple[WeightMatrix, ...]
    not_covered: tuple[str, ...]
    quantized: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()


def select_matrices(
    model: nn.Module, include: Sequence[str] | str | None = None, exclude: Sequence[str] | str | None = None
) -> Selection:
    """Find the weight matrices that pruning, keeping and reporting are about.

    By default these are the matrices of ``nn.Linear`` and transformers' ``Conv1D`` in ``model.base_model``, in the
    order of ``model.named_modules()``: not the classification head, embeddings, norms, biases or adapters. A matrix
    that is shared counts once. See `find_body` for the body of a model without ``base_model``.

    Args:
        model: A Hugging Face classifier, or any module.
        include: Shell patterns over module names. If given, they choose among all ``nn.Linear`` and ``Conv1D`` of the
            model, the head included (adapters never). A pattern that matches a module means everything inside it.
        exclude: Shell patterns for modules to leave out.

    Returns:
        The matrices, and the names of the body's matrices in other kinds of module, which are never touched.

    Raises:
        CompressionError: A pattern matches nothing, or a weight is computed from another parameter.
    """
    include, exclude = _patterns(include, "include"), _patterns(exclude, "exclude")
    reshard(model)
    in_body = find_body(model)
    modules = dict(model.named_modules())
    adapters = set(_adapter_modules(modules))

    # Some of PEFT's layers are an nn.Linear around the real one, their base_layer.
    hidden = set(modules_of_integers(model))
    linear = {
        name: module
        for name, module in modules.items()
        if (_is_linear(module) or is_quantized_linear(module) or name in hidden) and name not in adapters
    }
    candidates = {name: module for name, module in linear.items() if "base_layer" not in module._modules}
    if include is None:
        chosen = {name: module for name, module in candidates.items() if id(module) in in_body}
    else:
        chosen = _matching(candidates, include, "include")
    left_out = {} if exclude is None else _matching(candidates, exclude, "exclude")
    chosen = {name: module for name, module in chosen.items() if name not in left_out}

    seen: set[object] = set()
    list(distinct((module.weight for module in modules.values() if isinstance(module, nn.Embedding)), seen))
    matrices = []
    for name, module in chosen.items():
        if is_quantized_linear(module) or name in hidden:
            continue
        weight = module._parameters.get("weight")
        if weight is None:
            computed = computed_weights(module).get("weight")
            remedy = computed.remedy if computed else "torch.nn.utils.prune.remove(module, 'weight')"
            raise CompressionError(
                f"The weight of {name!r} is computed from other parameters (a parametrization such as "
                f"torch.nn.utils.prune's); make it a plain parameter first with {remedy}, or exclude {name!r}."
            )
        matrices += [WeightMatrix(name, weight) for _ in distinct([weight], seen)]
    quantized = tuple(name for name, module in chosen.items() if is_quantized_linear(module))
    not_covered = tuple(_not_covered(modules, in_body, adapters))
    return Selection(tuple(matrices), not_covered, quantized, tuple(name for name in chosen if name in hidden))


def check_one_attention(model: nn.Module) -> None:
    """Refuse BigBird's sparse attention, which a short text turns off for good, so that the model becomes another."""
    if getattr(getattr(model, "config", None), "attention_type", None) == "block_sparse":
        raise CompressionError(
            "attention_type='block_sparse' turns to another attention for short texts; load the model with "
            "from_pretrained(..., attention_type='original_full'), or set that in its config.json."
        )


def effective_parameters(model: nn.Module) -> Iterator[Tensor]:
    """Yield a model's parameters, and in place of what a weight is computed from that weight."""
    sources: set[int] = set()
    for module in model.modules():
        for name, computed in computed_weights(module).items():
            sources |= set(map(id, computed.sources))
            with evaluation_mode(module):  # in training a spectral norm would go a step on
                yield getattr(module, name).detach()
    yield from (parameter for parameter in model.parameters() if id(parameter) not in sources)


def find_body(model: nn.Module) -> set[int]:
    """Return the ids of the modules of a model's body, which is what default pruning is about.

    It is ``model.base_model``. Where that is the model itself, as in a class of the user's own (a cross-encoder around
    an ``AutoModel``), it is the transformers models inside. Where no matrix is outside of the body (Perceiver), the
    head is inside it, and is left out.
    """
    inner = unwrap(model)
    bodies = [_base_model(inner)]
    if bodies == [inner] and not _is_of_transformers(inner):
        bodies = [_base_model(one) for one in _models_inside(inner)] or [inner]
    found = {id(module) for one in bodies for module in one.modules()}
    if all(id(module) in found for module in inner.modules() if _is_linear(module) or is_quantized_linear(module)):
        found -= {id(module) for module in _head_inside(inner)}
    return found


def _base_model(model: nn.Module) -> nn.Module:
    """The innermost ``base_model``: that of a class of the user's own may be a classifier of transformers."""
    body = getattr(model, "base_model", model)
    return model if body is model or not isinstance(body, nn.Module) else _base_model(body)


def _is_of_transformers(model: nn.Module) -> bool:
    """Whether a model's class is one of transformers, whatever class FSDP2 has made of it."""
    own = next(one for one in type(model).__mro__ if not one.__module__.startswith("torch.distributed."))
    return own.__module__.startswith("transformers.")


def _models_inside(model: nn.Module) -> list[nn.Module]:
    """The outermost transformers models below a module."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if name and isinstance(module, PreTrainedModel) and not any(_is_inside(name, other) for other in found):
            found[name] = module
    return list(found.values())


def _head_inside(model: nn.Module) -> list[nn.Module]:
    """The modules of a classification head that is part of the body: what ends in as many outputs as there are labels.

    It is looked for outside of stacks of layers, unless it is nowhere else; with it belong what is around it under the
    name of a head, or in a row with it.
    """
    labels = count_outputs(get_config(model))
    if labels is None or (_is_of_transformers(model) and "Classification" not in type(model).__name__):
        return []
    ends = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == labels]
    lists = [f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outside = [name for name in ends if not any(name.startswith(prefix) for prefix in lists)]
    heads: list[nn.Module] = []
    for name in outside or ends[-1:]:
        root = next((path for path in _paths(name) if is_head_name(path)), name)
        row = name.rpartition(".")[0]
        if root == name and row and isinstance(model.get_submodule(row), nn.Sequential):
            root = row
        heads += model.get_submodule(root).modules()
    return heads


def is_head_name(path: str) -> bool:
    """Whether a module has the name of a classification head.

    Example:
        >>> is_head_name("classifier"), is_head_name("model.lm_head"), is_head_name("decoder.heads")
        (True, True, False)
    """
    return _HEAD_NAME.search(path.rpartition(".")[2]) is not None


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def check_prunable(model: nn.Module, selection: Selection, *, sharded: bool = False) -> None:
    """Raise a `CompressionError` unless every selected matrix holds plain floating-point numbers on a real device.

    Args:
        model: What the matrices were selected from.
        selection: The matrices.
        sharded: Whether matrices divided in any way are allowed, not only by rows over one group of processes.
    """
    if selection.quantized:
        check_not_quantized(model, "pruned")
    if selection.hidden:
        name = selection.hidden[0]
        raise CompressionError(
            f"{name} ({type(model.get_submodule(name)).__name__}) holds its weights as integers, by the "
            "quantization_config of the model, and cannot be pruned; prune the model before it is quantized, or leave "
            "such modules out with exclude=."
        )
    if not selection.matrices:
        found = f" (not covered: {', '.join(selection.not_covered)})" if selection.not_covered else ""
        raise CompressionError(
            f"{type(unwrap(model)).__name__} has no weight matrix to prune: nn.Linear or Conv1D in its body are "
            f"needed{found}; pass a model that has some, or name other layers with include=."
        )
    first: tuple[str, tuple[int, ...]] | None = None  # sharded matrix, and the ranks of its processes
    for matrix in selection.matrices:
        where, weight = f"{matrix.name}.weight", matrix.weight
        check_has_values([(where, weight)])
        if is_lazy(weight):
            raise CompressionError(f"{where} is not initialized yet; run the lazy module once first.")
        if sharded and hasattr(weight, "ds_id"):
            raise CompressionError(
                f"{where} is partitioned by DeepSpeed (ZeRO-3), which keeps its values elsewhere, so that its zeros "
                "cannot be kept; train with ZeRO-2 or FSDP2."
            )
        if isinstance(weight, DTensor) and any(placement.is_partial() for placement in weight.placements):
            raise CompressionError(
                f"{where} is sharded over devices as {weight.placements}, so that each holds a part of a sum, whose "
                "zeros are not those of the weight; call redistribute() to make it sharded or replicated first."
            )
        if isinstance(weight, DTensor) and not sharded:
            if not has_known_placements(weight):
                raise CompressionError(
                    f"{where} is sharded over devices as {weight.placements}; weights are counted and pruned in shards "
                    "only if these are blocks of rows along one axis of the mesh (Shard(0), as FSDP2 makes them), "
                    "replicated along others; prune the model before it is sharded."
                )
            ranks = shard_ranks(weight)
            first = first or ((where, ranks) if ranks else None)
            if ranks and first and ranks != first[1]:
                raise CompressionError(
                    f"{first[0]} is sharded over the processes {first[1]}, but {where} over {ranks}; shard all over "
                    "the same, or prune the model before it is sharded."
                )
        plain = isinstance(weight, DTensor) or type(weight) is nn.Parameter
        plain = plain and type(local_values(weight)) is torch.Tensor and weight.layout is torch.strided
        if weight.dtype not in PRUNABLE_DTYPES or not plain:
            raise CompressionError(
                f"{where} is quantized or sparse ({type(weight).__name__}, {weight.dtype}, {weight.layout}); prune the "
                "model as dense float32, float64, float16 or bfloat16 and convert it afterwards."
            )
        if not sharded and (weight.dim() != 2 or (0 in weight.stride() and weight.numel() > 1)):
            raise CompressionError(
                f"{where} has shape {tuple(weight.shape)} and strides {weight.stride()}, so it is not a full matrix "
                "of its own: a shard (FSDP, ZeRO-3) or an expanded view; prune the model before it is sharded."
            )


def _patterns(patterns: Sequence[str] | str | None, argument: str) -> list[str] | None:
    if patterns is None:
        return None
    given = [patterns] if isinstance(patterns, str) else list(patterns) if isinstance(patterns, Iterable) else []
    if not given or not all(isinstance(pattern, str) for pattern in given):
        raise CompressionError(f"{argument}={patterns!r} must be one or more shell patterns over module names.")
    return given


def _matching(candidates: dict[str, nn.Module], patterns: list[str], argument: str) -> dict[str, nn.Module]:
    """Candidates whose own path or that of a module around them matches a pattern, in their order."""
    matched: set[str] = set()
    for pattern in patterns:
        hits = [name for name in candidates if any(fnmatchcase(path, pattern) for path in _paths(name))]
        if not hits:
            raise CompressionError(
                f"{argument} pattern {pattern!r} matches no weight matrix; the first of {len(candidates)} module names "
                f"are {', '.join(list(candidates)[:3]) or '(none)'}."
            )
        matched.update(hits)
    return {name: module for name, module in candidates.items() if name in matched}


def _paths(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _adapter_modules(modules: dict[str, nn.Module]) -> Iterator[str]:
    """Names of the modules that PEFT added: its tuner layers list them in ``adapter_layer_names``.

    Of a module that PEFT copied to train it in full (``modules_to_save``), the copy in use takes the original's place.
    """
    for name, module in modules.items():
        added = [f"{name}.{attribute}" for attribute in getattr(module, "adapter_layer_names", ())]
        in_use = ""
        if {"original_module", "modules_to_save"} <= module._modules.keys():
            wrapper: Any = module
            if wrapper.active_adapters and not wrapper.disable_adapters:
                added.append(f"{name}.original_module")
                in_use = f"{name}.modules_to_save.{wrapper.active_adapters[0]}"
        if "prompt_encoder" in module._modules and hasattr(module, "get_base_model"):
            added.append(f"{name}.prompt_encoder".removeprefix("."))
        for prefix in added:
            inside = (other for other in modules if _is_inside(other, prefix))
            yield from (other for other in inside if not in_use or not _is_inside(other, in_use))


def _is_inside(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def _not_covered(modules: dict[str, nn.Module], in_body: set[int], adapters: set[str]) -> Iterator[str]:
    for name, module in modules.items():
        if id(module) not in in_body or name in adapters or isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            continue
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2:
                yield f"{name}.{parameter_name}" if name else parameter_name
