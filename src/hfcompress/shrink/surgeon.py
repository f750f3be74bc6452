"""Scores of heads and neurons that count on the others being solved for afterwards: the structured brain surgeon.

What removing heads or neurons costs is estimated with the weights of the others in the same projection chosen anew, as
`prune_structured` does when it reconstructs outputs. A projection's weight W reads X, and g are the gradients of the
logits for its outputs. With the Kronecker factors H = X'X and G = E[gg'], the least squared change of the logits when
the columns u of W go is tr(G W_u (H⁻¹_uu)⁻¹ W_u'): Hassibi and Stork 1992 for single weights; van der Ouderaa et al.
2024 (https://arxiv.org/abs/2312.17244) for columns, with the factors of the loss; Kurtic et al. 2023
(https://arxiv.org/abs/2302.04089) for heads and neurons removed one after the other, with G = 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.losses import Problem
from hfcompress.models.classifier import check_model_kind, evaluation_mode, get_logits, get_problem_type, in_float32
from hfcompress.models.heads_and_neurons import Group, weight_axis
from hfcompress.models.inputs import Batch
from hfcompress.models.padding import reading, without_padding
from hfcompress.models.tensors import float64_device
from hfcompress.progress import track

_PENALTY = 0.01  # added to the diagonal of H, as a multiple of its mean
_STEPS = 32  # in which the neurons of a block are removed; heads one by one


@dataclass
class Curvature:
    """Kronecker factors of the logits' squared change with the weight of one projection.

    Attributes:
        inputs: X'X, the sum over all tokens, shape (inputs, inputs), float64.
        outputs: The sum of gg', shape (outputs, outputs), float64.
        tokens: How many.
    """

    inputs: Tensor
    outputs: Tensor
    tokens: int = 0


def obs_scores(model: nn.Module, groups: Sequence[Group], batches: Iterable[Batch]) -> list[Tensor]:
    """Score heads or neurons by how much the logits change when they are removed and the others are solved for again.

    Args:
        model: A classifier; left as it was.
        groups: Heads and neurons of several blocks.
        batches: What the model reads, without padding; labels are not read.

    Returns:
        For each group shape (count,), float64, on the CPU. They are those of a greedy removal, one after the other,
        each with those before it removed: the order of the scores is that of the removal.
    """
    check_model_kind(model)
    curvatures = _curvatures(model, [part.module for group in groups for part in group.consumers], batches)
    scores = []
    for group in track(groups, "ordering heads and neurons"):
        weights, inputs = [], []
        for part in group.consumers:
            module: Any = model.get_submodule(part.module)
            factors = curvatures.pop(part.module, None)  # which is not needed any more then
            if factors is None:  # a block that is not used
                continue
            weight = module.weight.detach().movedim(weight_axis(module, outputs=True), 0).to(factors.inputs)
            values, vectors = torch.linalg.eigh(factors.outputs / max(1, factors.tokens))
            weights.append((vectors * values.clamp_min(0).sqrt()).T @ weight)
            inputs.append(factors.inputs)
        at_once = 1 if group.kind == "heads" else -(-group.count // _STEPS)
        scores.append(removal_losses(inputs, weights, group.count, at_once))
    return scores


def removal_losses(grams: Sequence[Tensor], weights: Sequence[Tensor], count: int, at_once: int = 1) -> Tensor:
    """Remove units of matrices greedily, solving for the others each time, and return what each removal cost.

    Args:
        grams: For each matrix X'X of its inputs, shape (inputs, inputs), float64; a hundredth of its mean diagonal is
            added to the diagonal.
        weights: The matrices, of shape (outputs, inputs), float64. Unit u is the inputs from u * inputs / count on, in
            all of them together.
        count: How many units there are.
        at_once: How many to remove in a step, the cheapest then.

    Returns:
        Shape (count,), on the CPU: the rise of the sum of ||X(W - W')'||² where the unit goes alone, after those of the
        steps before; at least as much as any of theirs.
    """
    matrices = [weight.clone() for weight in weights]
    inverses = [_damped_inverse(gram) for gram in grams]
    losses, left, least = torch.zeros(count, dtype=torch.float64), torch.arange(count), 0.0
    while len(left):
        rises = torch.zeros(len(left), dtype=torch.float64)
        for inverse, matrix in zip(inverses, matrices, strict=True):
            size = matrix.shape[1] // len(left)
            blocks = inverse.view(len(left), size, len(left), size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            own = matrix.T.view(len(left), size, -1)
            rises += (own * torch.linalg.solve(blocks, own)).sum((1, 2)).cpu()
        chosen = rises.argsort(stable=True)[: min(at_once, len(left) - 1) or 1]
        # Rising by a trifle at least, so that sorting the scores gives the order of the removal.
        losses[left[chosen]] = rises[chosen].clamp_min(least * (1 + 1e-9))
        least = float(losses[left[chosen]].max())
        stays = torch.ones(len(left), dtype=torch.bool)
        stays[chosen] = False
        for index, (inverse, matrix) in enumerate(zip(inverses, matrices, strict=True)):
            kept = stays.repeat_interleave(matrix.shape[1] // len(left)).to(matrix.device)
            # The kept inputs compensate for the removed ones; the inverse becomes that of the kept block (elimination).
            change = torch.linalg.solve(inverse[~kept][:, ~kept], inverse[~kept][:, kept])
            matrices[index] = matrix[:, kept] - matrix[:, ~kept] @ change
            places = kept.nonzero()[:, 0]
            inverses[index] = inverse[places[:, None], places].addmm_(inverse[kept][:, ~kept], change, alpha=-1)
        left = left[stays]
    return losses


def one_logit_per_text(logits: Tensor, problem: Problem, texts: int) -> Tensor:
    """Return of each text one logit, of each class in turn, whose gradient stands for that of all of them.

    Args:
        logits: Shape (texts, classes). What all classes of a text share has no effect, where they exclude each other,
            and is subtracted.
        problem: The problem type.
        texts: How many came before.
    """
    if problem == "single_label_classification" and logits.shape[1] > 1:
        logits = logits - logits.mean(1, keepdim=True)
    chosen = (texts + torch.arange(len(logits), device=logits.device)) % logits.shape[1]
    return logits.gather(1, chosen[:, None])


def _damped_inverse(gram: Tensor) -> Tensor:
    """Return the inverse of a matrix whose diagonal is larger by a hundredth of its mean."""
    mean, damped = gram.diagonal().mean(), gram.clone()
    damped.diagonal().add_(_PENALTY * (mean if float(mean) > 0 else torch.ones_like(mean)))
    inverse: Tensor = torch.linalg.inv(damped)
    return inverse


def _curvatures(model: nn.Module, names: Sequence[str], batches: Iterable[Batch]) -> dict[str, Curvature]:
    """Compute the factors of projections, by one forward and backward pass."""
    found: dict[str, Curvature] = {}
    problem, texts = get_problem_type(model, "model"), 0
    with ExitStack() as hooks, in_float32(model), evaluation_mode(model), without_padding(model), torch.enable_grad():
        calls: list[tuple[str, Tensor, Tensor]] = []
        for name in names:

            def follow(module: nn.Module, inputs: tuple[Any, ...], output: Tensor, name: str = name) -> Tensor:
                calls.append((name, inputs[0].detach(), torch.zeros_like(output, requires_grad=True)))
                return output + calls[-1][2]

            hooks.callback(model.get_submodule(name).register_forward_hook(follow).remove)
        device = next(model.parameters()).device
        place = float64_device(device)
        for batch in track(batches, "ranking heads and neurons"):
            calls.clear()
            with reading(model, batch):
                logits = get_logits(model(**{name: value for name, value in batch.items() if name != "labels"}))
            one = one_logit_per_text(logits, problem, texts)
            texts += len(logits)
            leaves = [leaf for _, _, leaf in calls]
            made = torch.autograd.grad(one.sum(), leaves, materialize_grads=True)
            for (name, states, _), gradients in zip(calls, made, strict=True):
                parts = [part.flatten(0, -2).to(place).double() for part in (states, gradients)]
                if name not in found:
                    inputs, outputs = (part.new_zeros(part.shape[1], part.shape[1]) for part in parts)
                    found[name] = Curvature(inputs, outputs)
                for gram, part in zip((found[name].inputs, found[name].outputs), parts, strict=True):
                    gram.addmm_(part.T, part)
                found[name].tokens += len(parts[0])
    return found
