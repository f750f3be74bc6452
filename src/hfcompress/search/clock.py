"""Times models in the runtime that will serve them, in turns with the original, as shares of its time."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfcompress.compat import processor_features, processor_name
from hfcompress.errors import CompressionError
from hfcompress.models.blocks import Shape, grid, shaped
from hfcompress.models.classifier import evaluation_mode, max_tokens
from hfcompress.models.inputs import Batch, dummy_inputs
from hfcompress.models.profiling import TimeTable, keep_freed_memory, synchronize, tabulate_times
from hfcompress.search.loss_table import Plan
from hfcompress.search.structure import Structure, leave_out, share_weights

Runtime = Literal["torch", "onnx", "onnx-int8"]
RUNTIMES: tuple[Runtime, ...] = ("torch", "onnx", "onnx-int8")
_WARM_UP = 2  # rounds that are not counted
_LEAST, _MOST, _SECONDS = 5, 25, 1.0  # rounds, and about how long both models together are timed
_MORE, _ERROR = 5, 0.02  # times as many rounds at most, where the median's standard error is larger
_POINTS = {"torch": (4, 5), "onnx": (3, 4), "onnx-int8": (3, 4)}  # numbers of heads and of neurons that are timed


class Clock:
    """Times a model beside the original.

    Args:
        original: The original, which torch runs.
        tokenizer: What makes the inputs of an exported model.
        runtime: What runs the other models.
        batch_size: Texts in a batch.
        length: Tokens of each text.
        device: Where torch runs them; where the original is if None. ONNX Runtime runs on the CPU.

    Attributes:
        original: The original, there.
        batch: What is timed.
        rounds: How many rounds are timed at least; 0 until the first comparison has said how long one takes.
    """

    def __init__(
        self,
        original: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        runtime: Runtime,
        batch_size: int,
        length: int,
        device: torch.device | None = None,
    ) -> None:
        self._device = device or original.device
        self.original = on_device(original, self._device)
        self._tokenizer, self._runtime = tokenizer, runtime
        self.batch: Batch = dummy_inputs(self.original, length, batch_size)
        self.rounds = 0

    def share(self, model: PreTrainedModel) -> float:
        """Return what share of the original's time a model takes: the median over rounds that time both."""
        model = on_device(model, self._device)
        keep_freed_memory()
        with ExitStack() as context:
            for one in (self.original, model):
                context.enter_context(evaluation_mode(one))
            first = _runner(self.original, self.batch)
            if self._runtime == "torch":
                other = _runner(model, self.batch)
            else:
                other = self._exported(model, Path(context.enter_context(tempfile.TemporaryDirectory())))
            for _ in range(_WARM_UP):
                seconds = _seconds(first) + _seconds(other)
            if not self.rounds:  # of the first comparison, in which the other is the original too
                self.rounds = min(_MOST, max(_LEAST, round(_SECONDS / max(seconds, 1e-6))))
            ratios: list[float] = []
            while len(ratios) < self.rounds or (len(ratios) < _MORE * self.rounds and not _is_sure(ratios)):
                number = len(ratios)
                runs = (first, other) if number % 2 else (other, first)
                times = [_seconds(run) for run in runs]
                ratios.append(times[0] / times[1] if number % 2 else times[1] / times[0])
        return 1 / statistics.median(ratios)

    def share_of_plan(self, model: PreTrainedModel, structure: Structure, plan: Plan) -> float:
        """Return what share of the original's time a model would take by a plan, by its shapes alone."""
        light = share_weights(on_device(model, self._device))
        kept = [index for index, shape in enumerate(plan) if shape is not None]
        with ExitStack() as undo:
            left = leave_out(light, structure, kept, undo)
            undo.enter_context(shaped(light, left.blocks, [shape for shape in plan if shape is not None]))
            return self.share(light)

    def tabulate(self, structure: Structure, round_to: int, tick: Callable[[], None]) -> TimeTable:
        """Time models of alike layers by their heads and neurons.

        Args:
            structure: The blocks of the original.
            round_to: Neurons stay in multiples of this.
            tick: Called after each model.
        """
        light = share_weights(self.original)

        def time_layers(shapes: Sequence[Shape]) -> float:
            with ExitStack() as undo:
                left = leave_out(light, structure, range(len(shapes)), undo)
                with shaped(light, left.blocks, shapes):
                    share = self.share(light)
            tick()
            return share

        grids = self._grids(structure, round_to)
        return tabulate_times(time_layers, len(structure.blocks), *grids, fewer=self._fewer(structure))

    def count_shapes(self, structure: Structure, round_to: int) -> int:
        """Return how many models `tabulate` times."""
        heads, neurons = self._grids(structure, round_to)
        return len(heads) * len(neurons) + (self._fewer(structure) is not None)

    def _grids(self, structure: Structure, round_to: int) -> tuple[Sequence[int], Sequence[int]]:
        """Return the numbers of heads and of neurons that are timed."""
        heads, neurons = (max(counts) for counts in zip(*(b.shape for b in structure.blocks), strict=True))
        points = _POINTS[self._runtime]
        return grid(heads, 1, points[0]), grid(neurons, round_to, points[1], round_to)

    def _fewer(self, structure: Structure) -> int | None:
        """The fewest first layers that make a model; None where layers cannot be left out."""
        light = share_weights(self.original)
        for count in range(1, len(structure.blocks) if any(structure.removable) else 0):
            with ExitStack() as undo, suppress(CompressionError):  # such as of a pattern of layers that must repeat
                leave_out(light, structure, range(count), undo)
                return count
        return None

    def _exported(self, model: PreTrainedModel, folder: Path) -> Callable[[], Any]:
        from hfcompress.deploy.onnx_file import save_model
        from hfcompress.deploy.onnx_graph import GraphInputs, build_graph
        from hfcompress.deploy.quantization import quantize, save_for_quantizer, weight_bits
        from hfcompress.deploy.runtime import open_session

        assert self._tokenizer is not None
        own = copy.deepcopy(model).cpu().float()
        with evaluation_mode(own):
            inputs = GraphInputs(own, self._tokenizer)
            graph = build_graph(own, inputs)
        file = folder / "model.onnx"
        if self._runtime == "onnx-int8":
            save_for_quantizer(graph, folder / "float32.onnx")
            quantize(folder / "float32.onnx", file, bits=weight_bits("any"))
        else:
            save_model(graph, file)
        session = open_session(file)
        filled = {name: torch.full_like(self.batch["input_ids"], default) for name, default in inputs.defaults.items()}
        arrays = {name: (self.batch | filled)[name].cpu().numpy() for name in inputs.names}
        return lambda: session.run(["logits"], arrays)


def on_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Return a model on a device: itself if it is there, else a copy."""
    if model.device.type == device.type and device.index in (None, model.device.index):
        return model
    return copy.deepcopy(model).to(device)


def describe_machine(device: torch.device) -> str:
    """Name what times depend on: the accelerator, or the processor and what it can do; and torch's threads."""
    features = ", ".join(processor_features())
    if device.type == "cpu":
        name = f"{processor_name()} ({features})" if features else processor_name()
    else:
        of_kind = getattr(getattr(torch, device.type, None), "get_device_name", None)  # mps has none
        name = device.type if of_kind is None else of_kind(device)
    return f"{name}, threads: {torch.get_num_threads()}"


def typical_length(model: PreTrainedModel, lengths: Sequence[int]) -> int:
    """Return how many tokens a text of these lengths typically has: the median, at most what the model reads."""
    median = max(1, round(statistics.median(lengths)))
    return min(median, max_tokens(model) or median)


def _is_sure(ratios: Sequence[float]) -> bool:
    """Whether their median is known well enough: by its standard error if they were normal, from their quartiles."""
    low, median, high = statistics.quantiles(ratios, n=4)
    error: float = 1.25 * (high - low) / 1.35 / len(ratios) ** 0.5
    return error <= _ERROR * median


def _runner(model: PreTrainedModel, batch: Batch) -> Callable[[], Any]:
    device = batch["input_ids"].device

    def run() -> None:
        model(**batch)
        synchronize(device)

    return run


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
