"""Feed-forward neurons of architectures without a record, found by torch-pruning in a traced forward pass."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hfcompress.errors import CompressionError
from hfcompress.models.architectures import block_kind
from hfcompress.models.classifier import evaluation_mode, get_logits, input_names
from hfcompress.models.heads_and_neurons import Group, Kind, find_groups, has_layout, name_by_layer, neuron_group
from hfcompress.models.inputs import dummy_inputs

_SECONDS = 60.0


def find_or_trace(model: nn.Module, kind: Kind) -> list[Group]:
    """Find heads or neurons by the records of ARCHITECTURES, or neurons in a trace where there is no record.

    Raises:
        CompressionError: As for `find_groups` and `trace_neurons`.
    """
    return trace_neurons(model) if kind == "neurons" and not has_layout(model, kind) else find_groups(model, kind)


def trace_neurons(model: nn.Module, *, seconds: float = _SECONDS) -> list[Group]:
    """Find groups of neurons by the dependencies in a traced forward pass.

    The graph is that of torch-pruning (DepGraph, Fang et al. 2023, https://arxiv.org/abs/2301.12900, section 3). A
    group is exactly the outputs of some ``nn.Linear`` and the inputs of one, number by number, with no parameters
    between them. Attention is left out of the graph: a trace does not show where a head begins, and with
    rotary embeddings the search does not end.

    Args:
        model: A classifier with values, not wrapped; left as it was.
        seconds: How long the search may take.

    Returns:
        The groups of the layers, in model order.

    Raises:
        CompressionError: There is no such group, the model cannot be traced, or the time is over.
    """
    import torch_pruning

    names = {module: name for name, module in model.named_modules()}
    options = {"use_cache": False} if "use_cache" in input_names(model) else {}
    found: dict[str, list[str]] = {}
    try:
        with _traceable(model), _time_limit(seconds):
            graph = torch_pruning.DependencyGraph().build_dependency(
                model,
                dummy_inputs(model, 8),
                forward_fn=lambda model, inputs: get_logits(model(**inputs, **options)),
                verbose=False,
            )
            for module, name in names.items():
                if isinstance(module, nn.Linear) and module in graph.module2node and _may_be_feed_forward(name):
                    every = list(range(module.out_features))
                    members = graph.get_pruning_group(module, torch_pruning.prune_linear_out_channels, every)
                    ends = _ends(graph, members, every)
                    if ends is not None:
                        found[names[ends[1]]] = [name for module, name in names.items() if module in ends[0]]
    except Exception as error:  # whatever a forward pass or the search in its graph leads to
        raise _unknown(model, f"cannot be traced ({type(error).__name__}: {error})") from error
    if not found:
        raise _unknown(model, "have no known layout (see ARCHITECTURES), and a trace shows none")
    modules = dict(model.named_modules())
    return name_by_layer([neuron_group(modules, up, down) for down, up in found.items()])


def _may_be_feed_forward(name: str) -> bool:
    in_layer = any(part.isdigit() for part in name.split("."))
    return in_layer and block_kind(name) in ("feed-forward", "other")


def _ends(graph: Any, members: Any, every: list[int]) -> tuple[list[nn.Module], nn.Module] | None:
    """The modules that make neurons and the one that consumes them, if that is all that a group of the graph holds."""
    up: list[nn.Module] = []
    down: list[nn.Module] = []
    for dependency, indices in members:
        module = dependency.target.module
        if isinstance(module, nn.Linear):
            if list(indices) != every:
                return None
            (up if graph.is_out_channel_pruning_fn(dependency.handler) else down).append(module)
        elif isinstance(module, nn.Parameter) or any(True for _ in module.parameters()):
            return None
    return (up, down[0]) if len(down) == 1 and down[0] not in up else None


@contextmanager
def _traceable(model: nn.Module) -> Iterator[None]:
    """Let gradients reach every parameter, past attention, in eval mode; all is as before at the end."""
    with ExitStack() as undo:
        undo.enter_context(evaluation_mode(model, gradients=True))
        for name, module in model.named_modules():
            undo.callback(_remove_left_hooks, module)
            if block_kind(name.rpartition(".")[2]) == "attention":
                undo.callback(module.register_forward_hook(_bypass, with_kwargs=True).remove)
        yield


def _remove_left_hooks(module: nn.Module) -> None:
    """Remove the hooks that torch-pruning leaves behind where a pass fails."""
    for key, hook in list(module._forward_hooks.items()):
        if getattr(hook, "__module__", "").startswith("torch_pruning"):
            del module._forward_hooks[key]


def _bypass(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Give an attention's output the gradients of its inputs, so that the graph goes on below it."""
    tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.requires_grad]

    def past(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.detach()
        for source in (one for one in tensors if one.shape == value.shape):
            value = value + (source - source.detach())
        return value

    return tree_map(past, output)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError in whatever function is called once the time is over."""
    end, before = time.monotonic() + seconds, sys.getprofile()

    def check(*_: object) -> None:
        if time.monotonic() > end:
            raise TimeoutError(f"no end after {seconds:g} seconds")

    sys.setprofile(check)
    try:
        yield
    finally:
        sys.setprofile(before)


def _unknown(model: nn.Module, why: str) -> CompressionError:
    return CompressionError(
        f"The neurons of {type(model).__name__} {why}; leave them out (neurons=0), or make the model smaller by layers "
        "(drop_layers=, student_from_teacher)."
    )
