"""Looks at a running model that leave it as it was: its answer to a short text, its FLOPs, its time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from hfcompress.blocks import Units

TOKENS = 128  # of the text that FLOPs and time are about, or as many as the model can read


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode and compute no gradients, while the context lasts."""
    modes = {module: module.training for module in model.modules()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in trained:  # the FLOP counter fails on views of parameters that require gradients (DeBERTa)
        parameter.requires_grad_(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in trained:
            parameter.requires_grad_(True)


def count_flops(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Count the floating-point operations of a forward pass, attention included."""
    # The counter does not know the fused attention of CPUs; as plain matrix products it is counted like any other.
    with evaluating(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return int(counter.get_total_flops())


def short_text(model: PreTrainedModel, tokens: int = TOKENS) -> dict[str, Tensor]:
    """Make a text of so many tokens, or as many as the model can read."""
    device = next(model.parameters()).device
    embeddings: Any = model.get_input_embeddings()
    limit = getattr(model.config, "max_position_embeddings", None) or tokens
    ids = torch.arange(3, 3 + min(tokens, max(1, limit - 4)), device=device) % embeddings.weight.shape[0]
    return {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Hold a model's half-precision numbers in float32, while the context lasts; every one comes back as it was."""
    halves = (torch.float16, torch.bfloat16)
    before = {name: (one, one.dtype) for name, one in _tensors(model) if one.dtype in halves}
    try:
        for one, _ in before.values():
            one.data = one.data.float()
        yield
    finally:
        for one, dtype in before.values():
            one.data = one.data.to(dtype)
        for name, one in _tensors(model):  # what has taken their place
            if name in before:
                one.data = one.data.to(before[name][1])


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def answer(model: PreTrainedModel) -> Tensor:
    """The logits of a dozen tokens, float64."""
    with evaluating(model):
        logits: Tensor = model(**short_text(model, 12)).logits
        return logits.double()


def sizes(model: PreTrainedModel) -> dict[str, int]:
    """Count FLOPs (of a text of 128 tokens), parameters and layers."""
    return {
        "flops": count_flops(model, short_text(model)),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": int(model.config.num_hidden_layers),
    }


def milliseconds(model: PreTrainedModel) -> float:
    """Time a text of 128 tokens: the median of seven passes, after two that are not counted."""
    times = []
    with evaluating(model):
        text = short_text(model)
        for _ in range(9):
            start = time.perf_counter()
            model(**text)
            wait_for(text["input_ids"].device)
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def wait_for(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def calls_of(model: PreTrainedModel, units: Sequence[Units]) -> list[int]:
    """How often a forward pass uses each block: shared layers several times."""
    counts = [0] * len(units)
    hooks = []
    for index, one in enumerate(units):

        def count(module: nn.Module, inputs: Any, index: int = index) -> None:
            counts[index] += 1

        hooks.append(model.get_submodule(one.readers[0].module).register_forward_pre_hook(count))
    try:
        answer(model)
    finally:
        for hook in hooks:
            hook.remove()
    return counts
