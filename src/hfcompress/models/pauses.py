"""Finds where partial forward passes can stop and go on: behind which layers, and where within them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from hfcompress.models.inputs import Batch, dummy_inputs
from hfcompress.models.layers import layer_stacks
from hfcompress.models.partial_forward import Layer, PartialForward, Pause


def skippable_layers(model: nn.Module) -> list[Layer]:
    """Find the layers of a model in the order in which they run, if `PartialForward` can start behind each of them.

    Args:
        model: In evaluation mode.

    Returns:
        The layers; none where a layer runs more than once, or where what it returns is not all that is handed on.
    """
    stacks = {module: name for name in layer_stacks(model) for module in model.get_submodule(name).children()}
    text = [dummy_inputs(model, 12)]
    order, expected = call_order(model, stacks, text[0])
    layers = [(stacks[module], module) for module in order]
    if set(order.values()) != {1}:
        return []
    with PartialForward(model, text, layers) as runs:
        for _, layer in layers:
            runs.advance(layer)
            if not torch.allclose(runs.logits(0), expected, rtol=1e-5, atol=1e-7):
                return []
    return layers


def find_pauses(model: nn.Module, layers: Sequence[Layer], modules: Iterable[nn.Module]) -> dict[nn.Module, Pause]:
    """Find the places in layers where these modules are called, and what has returned by then.

    Args:
        model: In evaluation mode.
        layers: As of `skippable_layers`.
        modules: Linear ones.

    Returns:
        By module; none where passes that stop there do not give the same logits.
    """
    text = [dummy_inputs(model, 12)]
    order, expected = call_order(model, model.modules(), text[0])
    inside = {module: layer for _, layer in layers for module in layer.modules()}
    wanted = [module for module in order if order[module] == 1 and module in inside and module in set(modules)]
    found = _Calls(model, {module for module in inside if order.get(module) == 1}, wanted).pauses
    for pauses in (found, {module: replace(pause, read=None) for module, pause in found.items()}):
        with PartialForward(model, text, layers) as runs:
            for layer, steps in groupby(pauses.values(), key=lambda pause: inside[pause.module]):
                for pause in steps:
                    runs.run_to(0, pause, to_sum=False)
                    runs.resume(pause)
                runs.advance(layer)
            if torch.allclose(runs.logits(0), expected, rtol=1e-5, atol=1e-7):
                return pauses
    return {}


class _Operations(TorchFunctionMode):
    """Notes what torch computes, and from what.

    Attributes:
        within: The modules that run; None while nothing is noted.
        found: Of each operation the modules that ran, the tensors that it read and those that it returned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.within: set[nn.Module] | None = set()
        self.found: list[tuple[set[nn.Module], list[Tensor], list[Tensor]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read, made = (
            [one for one in tree_leaves(each) if isinstance(one, Tensor)] for each in ((args, kwargs), result)
        )
        if self.within is not None and (made or func.__name__ not in ("__get__", "size")):  # which read shapes alone
            self.found.append((self.within, read, made))
        return result

    def needed(self, result: Tensor, gone: set[nn.Module]) -> set[int]:
        """Return the ids of the tensors that a result is computed from where these modules do not run."""
        found = {id(result)}
        for within, read, made in reversed(self.found):
            if not within & gone and (not made or any(id(one) in found for one in made)):
                found |= {id(one) for one in read}
        return found


class _Calls:
    """Follows the calls of modules in one pass."""

    def __init__(self, model: nn.Module, known: Collection[nn.Module], wanted: Collection[nn.Module]) -> None:
        self.pauses: dict[nn.Module, Pause] = {}
        self._wanted = wanted
        self._before: list[nn.Module] = []  # layers
        self._running: list[tuple[nn.Module, list[nn.Module]]] = []  # modules, with those that returned within them
        self._outputs: dict[nn.Module, Tensor] = {}  # of wanted ones, while what is around them returns the same
        self._leaves: dict[nn.Module, list[Any]] = {}  # of all outputs
        self._operations = _Operations()
        with ExitStack() as hooks:
            for module in known:
                hooks.callback(module.register_forward_pre_hook(self._start).remove)
                hooks.callback(module.register_forward_hook(self._end).remove)
            with self._operations:
                logits = PartialForward(model, [dummy_inputs(model, 12)], []).logits(0)
        self.pauses = {module: replace(pause, read=self._read(pause, logits)) for module, pause in self.pauses.items()}

    def _start(self, module: nn.Module, inputs: Any) -> None:
        if module in self._wanted:
            done = [one for _, returned in self._running for one in returned]
            self.pauses[module] = Pause(module, (*self._before, *done), module, 0)
        self._running.append((module, []))
        self._operations.within = {one for one, _ in self._running}

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._operations.within = None
        self._running.pop()
        if self._running:
            self._running[-1][1].append(module)
        else:
            self._before = [] if self.pauses.keys() & set(module.modules()) else [*self._before, module]
        self._leaves[module] = tree_leaves(output)
        first = next((leaf for leaf in self._leaves[module] if isinstance(leaf, Tensor)), None)
        if module in self._wanted and first is not None:
            self._outputs[module] = first.clone()  # which the model may change in place
            self.pauses[module] = replace(self.pauses[module], width=first.shape[-1])
        inner = set(module.modules())
        for one, own in [*self._outputs.items()]:
            if one not in inner:
                continue
            same = first is not None and first.shape == own.shape and torch.equal(first, own)
            if same and self._running:  # within a layer
                done = tuple(other for other in self.pauses[one].done if other not in inner)
                self.pauses[one] = replace(self.pauses[one], around=module, done=done)
            else:
                del self._outputs[one]
        self._operations.within = {one for one, _ in self._running}

    def _read(self, pause: Pause, logits: Tensor) -> dict[nn.Module, set[int]]:
        """Find what is read of the outputs of modules that do not run again."""
        gone = {*pause.done, *([] if pause.around is pause.module else [pause.around])}
        needed = self._operations.needed(logits, gone)
        leaves = {module: self._leaves[module] for module in (*pause.done, pause.around)}
        found = {
            module: {place for place, one in enumerate(own) if id(one) in needed} for module, own in leaves.items()
        }
        found[pause.around].discard(
            next((place for place, one in enumerate(leaves[pause.around]) if isinstance(one, Tensor)), -1)
        )
        return found


def call_order(model: nn.Module, modules: Iterable[nn.Module], batch: Batch) -> tuple[dict[nn.Module, int], Tensor]:
    """Return how often a pass calls each of these modules, in the order of their first calls; and the logits."""
    calls: dict[nn.Module, int] = {}
    with ExitStack() as hooks:
        for module in modules:

            def count(module: nn.Module, inputs: Any) -> None:
                calls[module] = calls.get(module, 0) + 1

            hooks.callback(module.register_forward_pre_hook(count).remove)
        logits = PartialForward(model, [batch], []).logits(0)
    return calls, logits
