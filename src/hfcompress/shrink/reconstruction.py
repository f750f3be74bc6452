"""Outputs of layers reconstructed after heads, neurons or layers were removed, by least squares on a data set.

Layer by layer, on the prefix that is pruned and reconstructed already, the weight W of each projection that reads heads
or neurons becomes the one that minimizes ||Y - XW'||² + λ||W' - W||² over the tokens of a data set: X is what the
pruned model's projection reads, Y what the original's returns, or what makes the residual stream the original's. One
half of a token's weight is 1; the other follows how sensitive the original's logits are to the output there, because a
classifier reads only one or a few tokens of the last layer. It is the mask tuning of Kwon et al. 2022
(https://arxiv.org/abs/2204.09656, section 4.3), which solves for one number a head or neuron, with the full weight
solved for instead (as in K-prune, Park et al. 2024, https://arxiv.org/abs/2308.03449).
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import evaluation_mode, get_problem_type, in_float32
from hfcompress.models.heads_and_neurons import KINDS, Group, find_groups, weight_axis
from hfcompress.models.inputs import Batch, dummy_inputs, read_examples
from hfcompress.models.padding import without_padding
from hfcompress.models.partial_forward import OutputRecorder, PartialForward
from hfcompress.models.pauses import call_order, find_pauses, skippable_layers
from hfcompress.models.tensors import identities
from hfcompress.progress import track
from hfcompress.report.structure import Reconstruction, Target
from hfcompress.shrink.least_squares import Products, best_change
from hfcompress.shrink.surgeon import one_logit_per_text
from hfcompress.validation import check_count

TARGETS: tuple[Target, ...] = ("projection", "residual")
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
_ROWS, _TOKENS_READ = 1024, 1 << 15  # of a data set, at most so many are read
_HELD_OUT = 8  # each eighth row chooses the penalties and the target
_TRIED = 4  # on each fourth of the others choices are tried
_ROUNDING = 100  # times the rounding of the outputs, whose error must fall by more
_SENSITIVITY = 0.5  # of a token's weight, the share that follows what the logits read of it
_TOKENS = 512  # in a batch, so that the gradients' activations stay few
Twins = Mapping[nn.Module, nn.Module]


@dataclass(frozen=True)
class Calibration:
    """The texts to reconstruct with.

    Attributes:
        fit: Batches without padding, which the weights are solved from.
        held_out: Those that choose among the solutions.
        tried: How many of the first batches hold each fourth text, on which choices are tried first.
    """

    fit: list[Batch]
    held_out: list[Batch]
    tried: int

    def part(self) -> Calibration:
        """Return it with the batches of each fourth text alone; those that are held out are all there."""
        return Calibration(self.fit[: self.tried], self.held_out, self.tried)


def read_calibration(model: nn.Module, dataset: Iterable[Any], batch_size: int) -> Calibration:
    """Read rows, labelled or not, or batches of tensors; of more than 1,024, or 32,768 tokens, evenly spaced ones.

    Raises:
        CompressionError: There are none, or a row is longer than the model reads.
    """
    check_count("batch_size", batch_size)
    rows: list[Mapping[str, Any]] = []
    for part in [dataset] if isinstance(dataset, Mapping) else dataset:
        ids = part.get("input_ids") if isinstance(part, Mapping) else None
        if ids is None:
            found = ", ".join(map(str, part)) if isinstance(part, Mapping) else type(part).__name__
            raise CompressionError(
                f"dataset must hold rows with 'input_ids', as a Trainer takes them; row {len(rows)} holds {found}."
            )
        if isinstance(ids, Tensor) and ids.dim() == 2:
            tensors = {n: v for n, v in part.items() if isinstance(v, Tensor) and v.dim() and len(v) == len(ids)}
            rows += [{name: value[index] for name, value in tensors.items()} for index in range(len(ids))]
        else:
            rows.append(part)
    if not rows:
        raise CompressionError("dataset must hold rows with 'input_ids', as a Trainer takes them; found 0 rows.")
    rows = _spaced(rows, _ROWS)
    rows = _spaced(rows, len(rows) * _TOKENS_READ // sum(read_examples("dataset", model, rows).lengths))
    split = min(_HELD_OUT, len(rows))
    fit = [row for index, row in enumerate(rows) if (index + 1) % split] or rows
    held_out = rows[split - 1 :: split]
    rest = [row for index, row in enumerate(fit) if index % _TRIED]
    tried, others = (_batches(model, part, batch_size) if part else [] for part in (fit[::_TRIED], rest))
    return Calibration([*tried, *others], _batches(model, held_out, batch_size), len(tried))


def _spaced(rows: Sequence[Any], most: int) -> list[Any]:
    count = max(1, min(most, len(rows)))
    return [rows[index * len(rows) // count] for index in range(count)]


def _batches(model: nn.Module, rows: Sequence[Mapping[str, Any]], batch_size: int) -> list[Batch]:
    """Put rows into batches without padding, of a few hundred tokens where texts are long."""
    found = []
    for _, batch in read_examples("dataset", model, rows).batches(batch_size):
        size = max(1, _TOKENS // batch["input_ids"].shape[1])
        for start in range(0, len(batch["input_ids"]), size):
            found.append({name: value[start : start + size] for name, value in batch.items()})
    return found


def copy_sharing_weights(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Return each module's copy in a copy of a model that has the same parameters and buffers, not copies of them.

    What replaces a parameter of the model afterwards leaves the copy as it is.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    copy.deepcopy(model, memo)
    return {module: memo[id(module)] for module in model.modules()}


def reconstruct_outputs(
    model: PreTrainedModel, twins: Twins, groups: Sequence[Group], calibration: Calibration, undo: ExitStack
) -> Reconstruction:
    """Solve for the weights of the projections that read heads and neurons, in place.

    The target is the one that brings the logits of held-out texts closest to the original's where only a fourth of the
    others are solved from. The weights stay as they were if neither target brings the logits closer. A projection stays
    as it was where its outputs' error does not fall, or where its weight is also another module's. Weights that are 0
    stay 0.

    Args:
        model: What is left after heads, neurons or layers were removed.
        twins: By module of it, that of the original model.
        groups: Heads and neurons whose projections are solved for, beside those that records of ARCHITECTURES describe.
        calibration: What both read.
        undo: Puts everything back when it is closed.
    """
    original = twins[model]
    kept = {name: (parameter.dtype, parameter.requires_grad) for name, parameter in model.named_parameters()}
    with ExitStack() as context:
        for one in (model, original):  # the original's weights that the model has too are the model's to give back
            context.enter_context(in_float32(one))
            context.enter_context(evaluation_mode(one))
            context.enter_context(without_padding(one))
        dtypes = {name: dtype for name, (dtype, _) in kept.items()}
        solver = _Solver(model, twins, _projections(model, groups), calibration, dtypes)
        without = solver.error_before()
        for target in solver.targets():
            with ExitStack() as trial:
                found, error = solver.solve(target, trial)
            if error < without:
                break
        else:
            return Reconstruction(None, 0, (without, without))
    for name, parameter in found.items():
        holder, _, attribute = name.rpartition(".")
        _put(model.get_submodule(holder), attribute, parameter, undo)
        dtype, needs_gradient = kept[name]
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(needs_gradient)
    return Reconstruction(target, sum(name.endswith(".weight") for name in found), (without, error))


@dataclass(frozen=True)
class _Part:
    """A batch of the texts.

    Attributes:
        batch: What both models read.
        held_out: Whether it chooses among the solutions, and is not solved from.
        weights: By projection a tensor of shape (tokens, 1) a call: how its real tokens weigh.
    """

    batch: Batch
    held_out: bool
    weights: dict[nn.Module, list[Tensor]]


class _Solver:
    """Solves for the projections of a model, for one target or another."""

    def __init__(
        self,
        model: PreTrainedModel,
        twins: Twins,
        names: Mapping[nn.Module, str],
        calibration: Calibration,
        dtypes: Mapping[str, torch.dtype],
    ) -> None:
        self._model, self._original, self._twins, self._names = model, twins[model], twins, names
        self._dtypes = dtypes
        layers = [skippable_layers(one) for one in (self._original, model)]
        self._layers = layers if all(layers) else [[], []]
        text = dummy_inputs(model, 12)
        self._calls, _ = call_order(model, names, text)
        recorder = OutputRecorder(dict.fromkeys(names, True))
        PartialForward(model, [text], []).run(0, recorder)
        self._sums = {module: len(recorder.outputs[module]) == calls for module, calls in self._calls.items()}
        self._tried = calibration.tried
        self._pauses = find_pauses(model, self._layers[1], names)
        self._parts = self._read(calibration)
        self._expected = self._logits(PartialForward(self._original, calibration.held_out, []))

    def logits_error(self, runs: PartialForward) -> float:
        """Return the mean squared difference of held-out logits from the original's; infinite where it is no number.

        Args:
            runs: The model on batches of which the last are held out.
        """
        difference = (self._logits(runs) - self._expected).square().mean()
        return float(difference) if difference.isfinite() else math.inf

    def error_before(self) -> float:
        """Return the error of the logits with the weights as they are."""
        return self.logits_error(PartialForward(self._model, [part.batch for part in self._held_out], []))

    def targets(self) -> list[Target]:
        """Return what can be solved for, first what on a fourth of the texts brings held-out logits closest.

        There is no residual stream where no projection's output is added to another tensor.
        """
        targets = TARGETS if any(self._sums.values()) else TARGETS[:1]
        if len(targets) == 1:
            return [*targets]
        errors = {}
        for target in targets:
            with ExitStack() as trial:
                errors[target] = self.solve(target, trial, [*self._parts[: self._tried], *self._held_out])[1]
        return sorted(targets, key=errors.__getitem__)

    def solve(
        self, target: Target, undo: ExitStack, parts: Sequence[_Part] | None = None
    ) -> tuple[dict[str, nn.Parameter], float]:
        """Solve for all projections in the order in which they run, in place.

        The pruned model computes each half of a layer once for each batch: passes stop where a projection is called,
        which is solved for what it reads there, and then go on with its new weights.

        Args:
            target: What to solve for.
            undo: Puts the weights back when it is closed.
            parts: All batches, the held-out ones at the end.

        Returns:
            The new parameters, and the error of the logits.
        """
        parts = self._parts if parts is None else parts
        found: dict[str, nn.Parameter] = {}
        batches = [part.batch for part in parts]
        sums = {module: target == "residual" and has_sum for module, has_sum in self._sums.items()}
        with (
            PartialForward(self._original, batches, self._layers[0]) as full,
            PartialForward(self._model, batches, self._layers[1]) as small,
        ):
            for layer, modules in track(list(self._steps()), "reconstructing outputs"):
                wanted: list[dict[nn.Module, list[Tensor]]] = [{} for _ in batches]
                for module in modules:
                    pause = self._pauses.get(module)
                    products = [self._no_products(module) for _ in ("fit", "held out", "unweighted")]
                    for index, part in enumerate(parts):
                        if module is modules[0]:
                            wanted[index] = self._run_original(full, index, modules, sums, layer)
                        if pause is None:
                            recorder = OutputRecorder({module: sums[module]}, self._calls[module])
                            small.run(index, recorder)
                            read, reached = recorder.inputs[module], recorder.outputs[module]
                        else:
                            read, reached = small.run_to(index, pause, to_sum=sums[module])
                        mask = part.batch.get("attention_mask")
                        goals = wanted[index].pop(module)
                        for goal, states, output, weights in zip(
                            goals, read, reached, part.weights[module], strict=True
                        ):
                            inputs = _with_ones(module, _real_tokens(states, mask))
                            missing = _real_tokens(goal - output, mask)
                            products[2].add(inputs, missing)
                            products[part.held_out].add(inputs * weights, missing * weights)
                    changed = self._changed(module, *products, has_run=pause is None)
                    for attribute, parameter in changed.items():
                        _put(module, attribute, parameter, undo)
                        found[f"{self._names[module]}.{attribute}"] = parameter
                    if pause is not None:
                        small.resume(pause)
                if layer is not None:
                    full.skip(self._twins[layer])
                    small.advance(layer)
            return found, self.logits_error(small)

    def _read(self, calibration: Calibration) -> list[_Part]:
        """Weigh the tokens of all batches.

        The square of a weight has a mean of about 1. It follows the squared gradient of one logit a text, less the mean
        of the logits where classes compete, for the original's output at the token.
        """
        parts: list[_Part] = []
        texts = 0
        for held_out, batches in enumerate((calibration.fit, calibration.held_out)):
            for batch in batches:
                parts.append(_Part(batch, bool(held_out), self._sensitivities(batch, texts)))
                texts += len(batch["input_ids"])
        for module in self._calls:
            mean = torch.cat([call for part in parts for call in part.weights[module]]).mean()
            known = bool(mean > 0) and bool(mean.isfinite())
            for part in parts:
                shares = [call / mean if known else torch.ones_like(call) for call in part.weights[module]]
                part.weights[module] = [(1 - _SENSITIVITY + _SENSITIVITY * share).sqrt() for share in shares]
        return parts

    def _sensitivities(self, batch: Batch, texts: int) -> dict[nn.Module, list[Tensor]]:
        """The squared gradients for the original's outputs of a batch that so many texts are before."""
        outputs: dict[nn.Module, list[Tensor]] = {module: [] for module in self._calls}
        if not outputs:  # only layers are dropped, of an architecture without a record
            return {}
        with ExitStack() as hooks, torch.enable_grad():
            for module, found in outputs.items():

                def follow(module: nn.Module, inputs: Any, output: Tensor, found: list[Tensor] = found) -> Tensor:
                    found.append(torch.zeros_like(output, requires_grad=True))
                    return output + found[-1]

                hooks.callback(self._twins[module].register_forward_hook(follow).remove)
            logits = PartialForward(self._original, [batch], []).logits(0)
            total = one_logit_per_text(logits, get_problem_type(self._original, "model"), texts).sum()
            leaves = [leaf for found in outputs.values() for leaf in found]
            gradients = iter(torch.autograd.grad(total, leaves, materialize_grads=True))
        mask = batch.get("attention_mask")
        return {
            module: [_real_tokens(next(gradients), mask).square().sum(1, keepdim=True) for _ in found]
            for module, found in outputs.items()
        }

    @property
    def _held_out(self) -> list[_Part]:
        return [part for part in self._parts if part.held_out]

    def _logits(self, runs: PartialForward) -> Tensor:
        return torch.cat([runs.logits(index).cpu().double() for index in runs.indices[-len(self._held_out) :]])

    def _steps(self) -> Iterator[tuple[nn.Module | None, list[nn.Module]]]:
        """The projections of each layer, with it; those of no layer, or called several times, by themselves."""
        inside = {module: layer for _, layer in self._layers[1] for module in layer.modules()}
        where = {module: inside.get(module) if calls == 1 else None for module, calls in self._calls.items()}
        for _, modules in groupby(self._calls, key=lambda module: where[module] or module):
            step = list(modules)
            yield where[step[0]], step

    def _run_original(
        self,
        full: PartialForward,
        index: int,
        modules: Sequence[nn.Module],
        sums: Mapping[nn.Module, bool],
        layer: nn.Module | None,
    ) -> dict[nn.Module, list[Tensor]]:
        """Run the original until there are the targets of these projections, and through their layer."""
        calls = sum(self._calls[module] for module in modules)
        recorder = OutputRecorder({self._twins[module]: sums[module] for module in modules}, calls)
        full.run(index, recorder, through=None if layer is None else self._twins[layer])
        return {module: recorder.outputs[self._twins[module]] for module in modules}

    def _no_products(self, module: Any) -> Products:
        inputs, outputs = (module.weight.shape[weight_axis(module, outputs=part)] for part in (False, True))
        return Products.zeros(inputs + (module.bias is not None), outputs, module.weight.device)

    def _changed(
        self, module: Any, fit: Products, held_out: Products, unweighted: Products, *, has_run: bool
    ) -> dict[str, nn.Parameter]:
        """Return a projection's new parameters in the dtype of its weight; none if its outputs' error does not fall.

        Where the projection has not run, what is missing are its targets, not only what its outputs lack of them.
        """
        axis = weight_axis(module, outputs=False)
        before = [module.weight.movedim(axis, 0)] + ([] if module.bias is None else [module.bias[None]])
        joined = torch.cat([part.to(fit.inputs.device).double() for part in before])
        rounding = (_ROUNDING * torch.finfo(module.weight.dtype).eps) ** 2 * float(unweighted.squares)
        if not has_run:
            fit, held_out, unweighted = (sums.without(joined) for sums in (fit, held_out, unweighted))
        dtype = self._dtypes[f"{self._names[module]}.weight"]
        after = (joined + best_change(fit, held_out, PENALTIES)).to(dtype).double()
        after[: len(before[0])][before[0].to(after.device) == 0] = 0  # pruned
        if not unweighted.gain(after - joined) > rounding:
            return {}
        values = {"weight": after[: len(before[0])].movedim(0, axis)}
        if module.bias is not None:
            values["bias"] = after[-1]
        return {
            name: nn.Parameter(value.to(module.weight).contiguous(), requires_grad=False)
            for name, value in values.items()
        }


def _projections(model: nn.Module, groups: Sequence[Group]) -> dict[nn.Module, str]:
    """Find the projections that read heads or neurons, but for those whose parameters another module has too."""
    found = list(groups)
    for kind in KINDS:
        with suppress(CompressionError):
            found += find_groups(model, kind)
    own = {m: [key for p in m._parameters.values() if p is not None for key in identities(p)] for m in model.modules()}
    counts = Counter(key for keys in own.values() for key in keys)
    names = dict.fromkeys(part.module for group in found for part in group.consumers)
    projections = {model.get_submodule(name): name for name in names}

    return {module: name for module, name in projections.items() if all(counts[key] == 1 for key in own[module])}


def _put(module: nn.Module, attribute: str, parameter: nn.Parameter, undo: ExitStack) -> None:
    undo.callback(setattr, module, attribute, getattr(module, attribute))
    setattr(module, attribute, parameter)


def _with_ones(module: Any, states: Tensor) -> Tensor:
    """Add the input of the bias, if there is one."""
    return states if module.bias is None else torch.cat([states, torch.ones_like(states[:, :1])], 1)


def _real_tokens(states: Tensor, mask: Tensor | None) -> Tensor:
    """Return the vectors of the tokens that the attention mask keeps, shape (tokens, width).

    Where the mask has another shape, as in a decoder, all are kept.
    """
    vectors = states.flatten(0, -2)
    if mask is None or bool(mask.all()) or mask.numel() != len(vectors):
        return vectors
    own = mask.T if states.shape[:2] == mask.T.shape != mask.shape else mask  # XLNet has the tokens first
    return vectors[own.flatten() != 0]
