"""Forward passes that stop at a module, and that start behind layers whose outputs are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from hfcompress.models.classifier import get_logits, input_names
from hfcompress.models.inputs import Batch, dummy_inputs
from hfcompress.models.layers import layer_stacks
from hfcompress.models.padding import reading

Layer = tuple[str, nn.Module]  # the name of its stack, and the layer
_ADDITIONS = ("add", "add_", "__add__", "__radd__", "__iadd__")


class _ReachedError(Exception):
    """Ends a forward pass that has gone far enough."""


class Watch(TorchFunctionMode):
    """Records what modules read, and what they return or what that is added to.

    Args:
        modules: The modules, and whether of each the first sum of its output and another tensor of its shape is
            recorded instead of the output: the residual stream, in most layers.
        calls: How many outputs or sums there will be; None if that is unknown.

    Attributes:
        inputs: By module what it reads, a tensor a call.
        outputs: By module what it returns, or the sums.
        ends: Whether the pass ends when there are as many as there will be.
    """

    def __init__(self, modules: Mapping[nn.Module, bool], calls: int | None = None) -> None:
        super().__init__()
        self.inputs: dict[nn.Module, list[Tensor]] = {}
        self.outputs: dict[nn.Module, list[Tensor]] = {module: [] for module in modules}
        self.ends = True
        self._sums, self._calls = modules, calls
        self._last: tuple[nn.Module, Tensor] | None = None  # until its output is in a sum
        self._undo = ExitStack()

    def __enter__(self) -> Watch:
        for module in self.outputs:
            self._undo.callback(module.register_forward_hook(self._record).remove)
        super().__enter__()  # type: ignore[no-untyped-call] # torch does not type it
        return self

    def __exit__(self, *error: object) -> None:
        self._last = None
        self._undo.close()
        super().__exit__(*error)  # type: ignore[no-untyped-call] # likewise

    @property
    def full(self) -> bool:
        """Whether there are as many outputs or sums as there will be."""
        return self._calls is not None and sum(map(len, self.outputs.values())) == self._calls

    def _record(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.inputs.setdefault(module, []).append(inputs[0])
        if self._sums[module]:
            self._last = (module, output)
        else:
            self._add(module, output)

    def _add(self, module: nn.Module, output: Tensor) -> None:
        self.outputs[module].append(output.clone())  # which the model may change in place
        if self.ends and self.full:
            raise _ReachedError

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not (self._last and getattr(func, "__name__", "") in _ADDITIONS and len(args) > 1):
            return func(*args, **(kwargs or {}))
        module, output = self._last
        first, second = args[:2]
        other = second if first is output else first if second is output else None
        result = func(*args, **(kwargs or {}))
        if isinstance(other, Tensor) and other.shape == output.shape:
            self._last = None
            self._add(module, result)
        return result


class PartialForward:
    """Runs a model on batches, from behind the layers that they have been put through.

    The layers that are done return what the last of their stack returned, so that none of them runs again. As a context
    it gives the layers back.

    Args:
        model: In evaluation mode.
        batches: What it reads.
        layers: As of `skippable_layers`, or none.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], layers: Sequence[Layer]) -> None:
        self._model, self._batches, self._layers = model, batches, layers
        self._kept: list[dict[str, Any]] = [{} for _ in batches]  # of each batch and stack, the last layer's output
        self._current = self._done = 0
        self._undo = ExitStack()
        self._options = {"use_cache": False} if "use_cache" in input_names(model) else {}

    def __enter__(self) -> PartialForward:
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def run(self, index: int, watch: Watch | None = None, through: nn.Module | None = None) -> None:
        """Run a batch until the watch has all, and through a layer, whose output is kept for `skip`."""
        self._current = index

        def end() -> None:
            if watch is None or watch.full:
                raise _ReachedError
            watch.ends = True

        with ExitStack() as context:
            for stack, layer in self._layers[self._done : self._end(through)]:
                keep = self._keep(stack, end if layer is through else None)
                context.callback(layer.register_forward_hook(keep).remove)
            context.enter_context(suppress(_ReachedError))
            if watch is not None:
                watch.ends = through is None
                context.enter_context(watch)
            self.logits(index)

    def skip(self, layer: nn.Module) -> None:
        """Let the next runs start behind a layer through which all batches have been run."""
        end = self._end(layer)
        for stack, one in self._layers[self._done : end]:
            if "forward" in vars(one):
                self._undo.callback(setattr, one, "forward", one.forward)
            else:
                self._undo.callback(vars(one).pop, "forward")
            one.forward = self._return_kept(stack)
        self._done = end

    def advance(self, layer: nn.Module) -> None:
        """Run all batches through a layer, and let the next runs start behind it."""
        for index in range(len(self._batches)):
            self.run(index, through=layer)
        self.skip(layer)

    def logits(self, index: int) -> Tensor:
        """Return the logits of a batch."""
        self._current, batch = index, self._batches[index]
        with reading(self._model, batch):
            return get_logits(self._model(**batch, **self._options))

    def _end(self, layer: nn.Module | None) -> int:
        return next((index + 1 for index, (_, one) in enumerate(self._layers) if one is layer), 0)

    def _keep(self, stack: str, then: Callable[[], None] | None) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._kept[self._current][stack] = output
            if then is not None:
                then()

        return hook

    def _return_kept(self, stack: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:  # clones, which the model may change in place
            output = self._kept[self._current][stack]
            return tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, output)

        return forward


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
