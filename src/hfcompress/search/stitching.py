"""The loss of a plan on calibration rows, estimated without making the smaller model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfcompress.losses import TeacherLoss, teacher_loss
from hfcompress.models.classifier import evaluation_mode, get_logits, get_problem_type, in_float32
from hfcompress.models.heads_and_neurons import Group, weight_axis
from hfcompress.models.inputs import Batch
from hfcompress.models.padding import reading, without_padding
from hfcompress.models.surgery import remove
from hfcompress.models.tensors import float64_device
from hfcompress.search.loss_table import Plan
from hfcompress.search.structure import Structure, leave_out, share_weights

_PENALTY = 0.01  # of the least squares, as a multiple of the mean diagonal
_ROWS = 192  # on which a plan is evaluated, at least where there are so many


class StitchedModel:
    """A model of a plan, with the weights that read heads and neurons solved for one by one.

    The weights that read what a plan leaves solve for the outputs that the projection has in the full model (ZipLM
    stitches its models of such solutions): one pass over the rows gives all that it takes, and a solution is kept for
    the next plan that has it.

    Args:
        model: Which is not changed.
        structure: Its blocks.
        orders: Of each group the heads or neurons in the order in which they are removed.
        batches: Calibration rows, without padding.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        structure: Structure,
        orders: Mapping[Group, Sequence[int]],
        batches: Sequence[Batch],
    ) -> None:
        self._light, self._orders, self._structure = share_weights(model), orders, structure
        inputs = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
        self._batches = _spaced(inputs, _ROWS)
        problem = get_problem_type(model, "model")
        self._problem = problem
        self._kind: TeacherLoss = "mse" if problem == "regression" else "kl"
        names = dict.fromkeys(part.module for group in structure.groups for part in group.consumers)
        self._modules: dict[str, Any] = {name: self._light.get_submodule(name) for name in names}
        self._weights = {name: (module.weight, getattr(module, "bias", None)) for name, module in self._modules.items()}
        with in_float32(self._light):
            self._grams = self._sum_products(inputs)
            self._expected = self._logits()
        self._solved: dict[tuple[str, int], tuple[Tensor, Tensor | None]] = {}

    def loss(self, plan: Plan) -> float:
        """Return the mean divergence of the logits by a plan from the model's, on the calibration rows."""
        left: dict[Group, int] = {}
        for block, shape in zip(self._structure.blocks, plan, strict=True):
            if shape is not None:
                left |= dict.fromkeys(block.heads, shape[0]) | dict.fromkeys(block.neurons, shape[1])
        with in_float32(self._light), ExitStack() as undo:
            for group, count in left.items():
                if count < group.count:
                    kept = sorted(self._orders[group][group.count - count :])
                    remove(self._light, group, kept, undo)
                    for part in group.consumers:
                        undo.callback(self._put, part.module, self._weights[part.module])
                        self._put(part.module, self._solve(part.module, part.size, kept))
            leave_out(self._light, self._structure, [n for n, shape in enumerate(plan) if shape is not None], undo)
            pairs = zip(self._logits(), self._expected, strict=True)
            losses = [teacher_loss(found, expected, self._kind, problem=self._problem) for found, expected in pairs]
        return float(torch.cat(losses).mean())

    def _put(self, name: str, parameters: tuple[Tensor, Tensor | None]) -> None:
        weight, bias = parameters
        module = self._modules[name]
        module.weight = weight
        if bias is not None:
            module.bias = bias

    def _solve(self, name: str, size: int, kept: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Return a projection's weight and bias where these heads or neurons are left."""
        if (name, len(kept)) not in self._solved:
            module, gram = self._modules[name], self._grams.get(name)
            axis = weight_axis(module, outputs=False)
            weight, bias = (None if one is None else one.detach() for one in self._weights[name])
            assert weight is not None
            rows = (torch.tensor(kept)[:, None] * size + torch.arange(size)).flatten().to(weight.device)
            if gram is None:  # a block that is not used
                solved = weight.index_select(axis, rows)
            else:
                place = gram.device
                joined, rows = weight.movedim(axis, 0).to(place).double(), rows.to(place)
                if bias is not None:
                    joined = torch.cat([joined, bias.to(joined)[None]])
                    rows = torch.cat([rows, rows.new_tensor([len(gram) - 1])])
                damped = gram[rows][:, rows]
                damped.diagonal().add_(_PENALTY * gram.diagonal().mean().clamp_min(1e-30))
                rest = torch.cholesky_solve(gram[rows] @ joined, torch.linalg.cholesky(damped))
                if bias is not None:
                    bias, rest = rest[-1].to(bias), rest[:-1]
                solved = rest.movedim(0, axis).to(weight).contiguous()
            new = nn.Parameter(solved, requires_grad=False)
            self._solved[name, len(kept)] = new, None if bias is None else nn.Parameter(bias, requires_grad=False)
        return self._solved[name, len(kept)]

    def _sum_products(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Return by projection X'X over all tokens, with a column of ones where there is a bias, float64."""
        grams: dict[str, Tensor] = {}

        def follow(name: str, module: Any, states: Tensor) -> None:
            x = states.detach().flatten(0, -2).to(float64_device(states.device)).double()
            if getattr(module, "bias", None) is not None:
                x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
            gram = x.T @ x
            grams[name] = grams[name] + gram if name in grams else gram

        with ExitStack() as hooks:
            for name, module in self._modules.items():

                def hook(module: nn.Module, inputs: Any, name: str = name) -> None:
                    follow(name, module, inputs[0])

                hooks.callback(module.register_forward_pre_hook(hook).remove)
            self._run(batches)
        return grams

    def _logits(self) -> list[Tensor]:
        return self._run(self._batches)

    def _run(self, batches: Sequence[Batch]) -> list[Tensor]:
        found = []
        with evaluation_mode(self._light), without_padding(self._light):
            for batch in batches:
                with reading(self._light, batch):
                    found.append(get_logits(self._light(**batch)).float())
        return found


def _spaced(batches: Sequence[Batch], rows: int) -> list[Batch]:
    """Return evenly spaced batches with so many rows."""
    total = sum(len(batch["input_ids"]) for batch in batches)
    count = max(1, min(len(batches), round(len(batches) * rows / max(1, total))))
    return [batches[index * len(batches) // count] for index in range(count)]
