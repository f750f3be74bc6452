"""The weight matrices of a classifier that pruning, keeping and reporting are about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy
from transformers.pytorch_utils import Conv1D

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import unwrap
from hfcompress.models.sharded import has_known_placements, local_values, reshard, shard_ranks
from hfcompress.models.tensors import check_has_values, distinct

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
    """The weight matrices in scope, and the matrices of the body that the library does not know how to prune."""

    matrices: tuple[WeightMatrix, ...]
    not_covered: tuple[str, ...]


def select_matrices(
    model: nn.Module, include: Sequence[str] | str | None = None, exclude: Sequence[str] | str | None = None
) -> Selection:
    """Find the weight matrices that pruning, keeping and reporting are about.

    By default these are the matrices of ``nn.Linear`` and transformers' ``Conv1D`` in ``model.base_model``, in the
    order of ``model.named_modules()``: not the classification head, embeddings, norms, biases or adapters. A matrix
    that is shared counts once.

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
    inner = unwrap(model)
    body = getattr(inner, "base_model", inner)
    in_body = {id(module) for module in body.modules()}
    modules = dict(model.named_modules())
    adapters = set(_adapter_modules(modules))

    # Some of PEFT's layers are an nn.Linear around the real one, their base_layer.
    linear = {n: m for n, m in modules.items() if isinstance(m, nn.Linear | Conv1D) and n not in adapters}
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
        weight = module._parameters.get("weight")
        if weight is None:
            raise CompressionError(
                f"The weight of {name!r} is computed from other parameters (a parametrization such as "
                "torch.nn.utils.prune's); make it a plain parameter first, for example with "
                f"torch.nn.utils.prune.remove(module, 'weight'), or exclude {name!r}."
            )
        matrices += [WeightMatrix(name, weight) for _ in distinct([weight], seen)]
    return Selection(tuple(matrices), tuple(_not_covered(modules, in_body, adapters)))


def check_prunable(model: nn.Module, selection: Selection, *, sharded: bool = False) -> None:
    """Raise a `CompressionError` unless every selected matrix holds plain floating-point numbers on a real device.

    Args:
        model: What the matrices were selected from.
        selection: The matrices.
        sharded: Whether matrices sharded in any way are allowed, not only by rows over one group of processes.
    """
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
