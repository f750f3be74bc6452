"""Forward passes that stop at a module, and that start behind layers whose outputs are kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from hfcompress.models.classifier import get_logits, input_names
from hfcompress.models.inputs import Batch
from hfcompress.models.padding import reading

Layer = tuple[str, nn.Module]  # the name of its stack, and the layer
_ADDITIONS = ("add", "add_", "__add__", "__radd__", "__iadd__")


class _ReachedError(Exception):
    """Ends a forward pass that has gone far enough."""


class OutputRecorder(TorchFunctionMode):
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

    def __enter__(self) -> OutputRecorder:
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


@dataclass(frozen=True)
class Pause:
    """A place within a layer where passes stop, and from where they go on.

    Attributes:
        module: That is called there, once in a pass.
        done: The modules of the layer that have returned by then, the largest ones; and the layers before it, back to
            one that has pauses.
        around: The largest module that returns what ``module`` does.
        width: Of the module's output.
        read: By module of ``done`` and ``around``, the places in its flattened output of the tensors that a pass that
            goes on from there reads. The others, such as attention weights, need not be kept; None: all are.
    """

    module: nn.Module
    done: tuple[nn.Module, ...]
    around: nn.Module
    width: int
    read: Mapping[nn.Module, Collection[int]] | None = None


class StandIn(nn.Module):
    """Is called in place of a module, and has its attributes; the module itself, and its hooks, do not run."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.train(module.training)
        vars(self).update(_module=module, _function=function)  # not as a submodule

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(vars(self)["_module"], name)


class PartialForward:
    """Runs a model on batches in steps, none of which computes again what one before it has computed.

    Layers through which all batches have run return what the last of their stack returned. Within a layer, passes stop
    at a pause and later go on from there: what has returned by then returns the same again. As a context it gives the
    model back as it was.

    Args:
        model: In evaluation mode.
        batches: What it reads.
        layers: As of `skippable_layers`, or none.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], layers: Sequence[Layer]) -> None:
        self._model, self._batches, self._layers = model, batches, layers
        self._kept: list[dict[str, Any]] = [{} for _ in batches]  # of each batch and stack, the last layer's output
        self._inside: list[dict[nn.Module, Any]] = [{} for _ in batches]  # outputs within the next layer
        self._current = self._done = 0
        self._undo, self._undo_inside = ExitStack(), ExitStack()
        self._stand_ins: dict[nn.Module, nn.Module] = {}
        self._options = {"use_cache": False} if "use_cache" in input_names(model) else {}

    def __enter__(self) -> PartialForward:
        return self

    @property
    def indices(self) -> range:
        """The indices of the batches."""
        return range(len(self._batches))

    def __exit__(self, *error: object) -> None:
        self._undo_inside.close()
        self._undo.close()

    def run(self, index: int, recorder: OutputRecorder | None = None, through: nn.Module | None = None) -> None:
        """Run a batch until the recorder has all, and through a layer, whose output is kept for `skip`."""
        outputs: dict[nn.Module, Any] = {}
        layers = self._layers[self._done : self._end(through)]
        self._run(index, recorder, through, [layer for _, layer in layers], outputs)
        self._kept[index] |= {stack: outputs[layer] for stack, layer in layers if layer in outputs}

    def run_to(self, index: int, pause: Pause, *, to_sum: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Run a batch until a module is called, and keep what is needed to go on from there.

        Args:
            index: Of the batch.
            pause: At the module.
            to_sum: Whether to run until the module's output is added to another tensor.

        Returns:
            What the module reads, and what its output is added to, or else 0: a tensor each, for its one call. The
            module itself does not run.
        """

        def nothing(states: Tensor) -> Tensor:
            return states.new_zeros(*states.shape[:-1], pause.width)

        outputs: dict[nn.Module, Any] = {}
        with ExitStack() as undo:
            self._replace(pause.module, nothing, undo)
            stand_in = self._stand_ins[pause.module]
            recorder = OutputRecorder({stand_in: to_sum}, 1)
            self._run(index, recorder, pause.around, pause.done, outputs)
        if pause.read is not None:
            outputs = {module: _keep_places(output, pause.read[module]) for module, output in outputs.items()}
        if pause.around is pause.module:  # which will run on what the others returned
            del outputs[pause.around]
        else:
            outputs[pause.around] = recorder.inputs[stand_in][0], outputs[pause.around]
        self._inside[index] = outputs
        return recorder.inputs[stand_in], recorder.outputs[stand_in]

    def resume(self, pause: Pause) -> None:
        """Let the next runs go on from a module to which all batches have been run."""
        self._undo_inside.close()
        for module in pause.done:
            self._replace(module, partial(self._return_inside, module), self._undo_inside)
        if pause.around is not pause.module:
            self._replace(pause.around, partial(self._return_around, pause), self._undo_inside)

    def skip(self, layer: nn.Module) -> None:
        """Let the next runs start behind a layer through which all batches have been run."""
        self._undo_inside.close()
        self._inside = [{} for _ in self._batches]
        end = self._end(layer)
        for stack, one in self._layers[self._done : end]:
            self._replace(one, partial(self._return_kept, stack), self._undo)
        self._done = end

    def advance(self, layer: nn.Module) -> None:
        """Run all batches through a layer, and let the next runs start behind it."""
        for index in self.indices:
            self.run(index, through=layer)
            self._inside[index] = {}
        self.skip(layer)

    def logits(self, index: int) -> Tensor:
        """Return the logits of a batch."""
        self._current, batch = index, self._batches[index]
        with reading(self._model, batch):
            return get_logits(self._model(**batch, **self._options))

    def _run(
        self,
        index: int,
        recorder: OutputRecorder | None,
        through: nn.Module | None,
        kept: Sequence[nn.Module],
        outputs: dict[nn.Module, Any],
    ) -> None:
        """Run a batch until the recorder has all, and through a module; keep its output and those of others."""

        def keep(module: nn.Module, output: Any) -> None:
            outputs[module] = output if module is through else _clone(output)  # which the model may change in place
            if module is through:
                if recorder is None or recorder.full:
                    raise _ReachedError
                recorder.ends = True

        with ExitStack() as context:
            for module in dict.fromkeys([*kept, *([] if through is None else [through])]):
                occupant = self._stand_ins.get(module, module)
                hook = partial(lambda module, _, inputs, output: keep(module, output), module)
                context.callback(occupant.register_forward_hook(hook).remove)
            context.enter_context(suppress(_ReachedError))
            if recorder is not None:
                recorder.ends = through is None
                context.enter_context(recorder)
            self.logits(index)

    def _replace(self, module: nn.Module, function: Callable[..., Any], undo: ExitStack) -> None:
        """Let a function be called in place of a module until ``undo`` is closed."""
        stand_in = StandIn(module, function)
        for holder in [*self._model.modules()]:
            for name, child in holder._modules.items():
                if child is module:
                    undo.callback(holder._modules.__setitem__, name, module)
                    holder._modules[name] = stand_in
        undo.callback(self._stand_ins.pop, module)
        self._stand_ins[module] = stand_in

    def _end(self, layer: nn.Module | None) -> int:
        return next((index + 1 for index, (_, one) in enumerate(self._layers) if one is layer), 0)

    def _return_kept(self, stack: str, *args: Any, **kwargs: Any) -> Any:
        return _clone(self._kept[self._current][stack])

    def _return_inside(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _clone(self._inside[self._current][module])

    def _return_around(self, pause: Pause, *args: Any, **kwargs: Any) -> Any:
        states, output = self._inside[self._current][pause.around]
        leaves, spec = tree_flatten(output)
        first = next(place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        return tree_unflatten([*leaves[:first], pause.module(states), *leaves[first + 1 :]], spec)


def _keep_places(output: Any, places: Collection[int]) -> Any:
    """Return an output with NaN, which take no memory, in place of all other floating-point tensors in it."""
    leaves, spec = tree_flatten(output)
    kept = [
        leaf.new_full((), torch.nan).expand(leaf.shape)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and place not in places
        else leaf
        for place, leaf in enumerate(leaves)
    ]
    return tree_unflatten(kept, spec)


def _clone(output: Any) -> Any:
    return tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, output)
