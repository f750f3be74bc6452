"""Classification heads that nobody has trained yet: how they are known, and the mark of them in a config.

A base model loaded as a classifier gets a head of random numbers. Pruned or shrunken and saved, such a model would look
like a trained one. The mark in its config holds digests of the head's weights, so a head that any training has changed
is no longer marked, whoever trained it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import get_config, unwrap
from hfcompress.models.tensors import has_plain_values

MARK = "hfcompress_new_head"  # the key in config.json
_ROUNDED = (torch.float32, torch.bfloat16, torch.float16)  # a model that is loaded in half precision has the same head


def new_head(model: nn.Module) -> list[str]:
    """Return the names of a classification head's weights that were initialised at random and not trained since.

    By the mark in the config; or else by what ``from_pretrained`` leaves at the parameters that it read. Of those that
    it did not read, the biases are exactly zero until the first step of an optimizer. Of a head without a bias (GPT-2,
    Llama) only a mark tells: fused optimizers, Trainer's default, leave no trace at a parameter.

    Args:
        model: Any module.

    Returns:
        The names; none where the head was trained, or where nothing tells.
    """
    inner = unwrap(model)
    names = _marked_names(inner)
    return names or _missing_names(inner)


def check_trained(model: nn.Module, name: str) -> None:
    """Refuse a model whose classification head nobody has trained, where its answers are needed.

    Args:
        model: Any module.
        name: The argument.

    Raises:
        CompressionError: See `new_head`.
    """
    if head := new_head(model):
        raise CompressionError(
            f"The classification head of {name} is new ({', '.join(head)}): random numbers, by which its predictions "
            "mean nothing. Fine-tune it first, or load the model that was fine-tuned; where its weights were set by "
            "hand, save it and load it again."
        )


def mark_new_head(model: nn.Module, names: Sequence[str]) -> None:
    """Write into the config that these weights of the head are new, as they are now; without names, that none is."""
    config, inner = get_config(model), unwrap(model)
    if config is None:
        return
    known = dict(inner.named_parameters())
    names = sorted(name for name in names if name in known and has_plain_values(known[name]))
    if names:
        setattr(config, MARK, {"weights": names, "digests": _digests([known[name] for name in names])})
    else:
        vars(config).pop(MARK, None)


def update_mark(model: nn.Module) -> list[str]:
    """Write into the config whether the head is new, and return the names of its weights if so."""
    names = new_head(model)
    mark_new_head(model, names)
    return names


def _marked_names(model: nn.Module) -> list[str]:
    mark = getattr(get_config(model), MARK, None)
    names, digests = (mark.get("weights"), mark.get("digests")) if isinstance(mark, Mapping) else (None, None)
    known = dict(model.named_parameters())
    if not (isinstance(names, list) and isinstance(digests, list) and names and all(name in known for name in names)):
        return []
    head = [known[name] for name in names]
    return list(names) if all(map(has_plain_values, head)) and _digest(head) in digests else []


def _missing_names(model: nn.Module) -> list[str]:
    """Return the names of the head's parameters that ``from_pretrained`` did not read, if they are untouched."""
    body = getattr(model, "base_model", model)
    if body is model or not isinstance(body, nn.Module) or not any(map(_was_read, body.parameters())):
        return []
    inside = set(map(id, body.parameters()))
    own = {name: one for name, one in model.named_parameters() if ".original_module." not in name}  # PEFT's, unused
    missing = {name: one for name, one in own.items() if id(one) not in inside and not _was_read(one)}
    biases = {name: one for name, one in missing.items() if name.endswith("bias")}
    if not biases or not all(map(has_plain_values, missing.values())) or any(map(_has_nonzero, biases.values())):
        return []
    # A layer's weight and bias are initialised together; a weight that was set since has been changed more often.
    pairs = ((one, missing.get(name.removesuffix("bias") + "weight", one)) for name, one in biases.items())
    return sorted(missing) if all(bias._version == weight._version for bias, weight in pairs) else []


def _was_read(parameter: Tensor) -> bool:
    """Whether ``from_pretrained`` read a parameter; every transformers 5 sets this, so as not to initialise it."""
    return bool(getattr(parameter, "_is_hf_initialized", False))


def _has_nonzero(tensor: Tensor) -> bool:
    return bool(tensor.detach().any())


def _digests(head: Sequence[Tensor]) -> list[str]:
    """Return the digests of weights as they are, and rounded to half precision."""
    return list(dict.fromkeys(_digest(one.detach().to(dtype) for one in head) for dtype in _ROUNDED))


def _digest(head: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for one in head:
        values: Any = one.detach().float().cpu().contiguous().numpy()
        digest.update(f"{tuple(values.shape)}".encode() + values.tobytes())
    return digest.hexdigest()[:32]
