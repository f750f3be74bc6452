"""How much each attention head or intermediate neuron matters: scores, one a unit, to be compared with each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from hfcompress.blocks import Units, masked
from hfcompress.errors import CompressionError
from hfcompress.losses import LabelLoss, label_loss
from hfcompress.probe import evaluating
from hfcompress.teacher import problem_of

Importance = Literal["l1", "taylor", "fisher"]
IMPORTANCES: tuple[str, ...] = get_args(Importance)


def l1_scores(model: nn.Module, units: Units) -> Tensor:
    """The sum of the magnitudes of all weights of each head or neuron (Li et al. 2017, for filters).

    Args:
        model: In which the units were found.
        units: The heads or neurons of a block.

    Returns:
        Shape (count,), float64, on the CPU.
    """
    scores = torch.zeros(units.count, dtype=torch.float64)
    for part in units.parts:
        module: Any = model.get_submodule(part.module)
        weight = module.weight.detach()
        # With what the heads or neurons run along first: nn.Linear stores outputs first, others inputs first.
        if part.outputs != isinstance(module, nn.Linear):
            weight = weight.T
        sums = weight.abs().sum(1, dtype=torch.float64).cpu()
        scores += sums.view(part.repeats, units.count, part.size).sum((0, 2))
    return scores


def mask_gradients(model: nn.Module, units: Sequence[Units], batches: Iterable[Mapping[str, Tensor]]) -> list[Tensor]:
    """The gradient of each example's loss for a mask of ones on what the heads or neurons say.

    Args:
        model: A classifier; left as it was. The loss is the cross-entropy, in regression the squared error.
        units: Heads and neurons of several blocks.
        batches: What the model reads, with ``labels``.

    Returns:
        For each units shape (examples, count), float32, on the CPU.
    """
    found: list[list[Tensor]] = [[] for _ in units]
    problem = problem_of(model, "model")
    kind: LabelLoss = "mse" if problem == "regression" else "cross_entropy"
    with evaluating(model):
        for batch in batches:
            inputs = dict(batch)
            labels = inputs.pop("labels")
            masks = [torch.ones(len(labels), 1, one.count, device=labels.device, requires_grad=True) for one in units]
            with torch.enable_grad(), masked(model, list(zip(units, masks, strict=True))):
                loss = label_loss(model(**inputs).logits, labels, kind, problem=problem).sum()
            for gradients, gradient in zip(found, torch.autograd.grad(loss, masks), strict=True):
                gradients.append(gradient[:, 0].cpu())
    return [torch.cat(gradients) for gradients in found]


def importance_scores(
    model: nn.Module, units: Sequence[Units], kind: Importance, batches: Iterable[Mapping[str, Tensor]] | None
) -> list[Tensor]:
    """Score heads or neurons.

    Args:
        model: Left as it was.
        units: Heads or neurons of several blocks.
        kind: ``"l1"``: `l1_scores`. ``"taylor"``: the mean magnitude of the mask's gradient, the loss's first-order
            change when the unit is removed (Michel et al. 2019, https://arxiv.org/abs/1905.10650, eq. 2). ``"fisher"``:
            its mean square, the diagonal of the empirical Fisher information (Kwon et al. 2022,
            https://arxiv.org/abs/2204.09656, section 4.2).
        batches: Labelled batches; for ``"l1"`` None.

    Returns:
        For each units shape (count,), float64, on the CPU.
    """
    if kind == "l1":
        return [l1_scores(model, one) for one in units]
    assert batches is not None
    gradients = [gradient.double() for gradient in mask_gradients(model, units, batches)]
    return [(one.abs() if kind == "taylor" else one.square()).mean(0) for one in gradients]


def batches_of(model: nn.Module, dataset: Any, batch_size: int) -> list[dict[str, Tensor]]:
    """Put the rows of a data set into padded batches on the model's device.

    Args:
        model: What reads them.
        dataset: Rows with ``input_ids``, ``labels`` and other inputs, as a Trainer takes them; or batches of tensors
            already.
        batch_size: Rows in a batch.

    Raises:
        CompressionError: There are no rows, or no labels.
    """
    device = next(model.parameters()).device
    rows = [dict(row) for row in ([dataset] if isinstance(dataset, Mapping) else dataset)]
    names = {name for row in rows for name in row}
    if batch_size < 1:
        raise CompressionError(f"batch_size={batch_size} must be at least 1.")
    if not rows or any("labels" not in row or "input_ids" not in row for row in rows):
        raise CompressionError(
            f"dataset must hold rows with 'input_ids' and 'labels', as a Trainer takes them; found {len(rows)} rows "
            f"with {', '.join(sorted(names)) or 'nothing'}."
        )
    if isinstance(rows[0]["input_ids"], Tensor) and rows[0]["input_ids"].dim() == 2:
        return [{name: value.to(device) for name, value in row.items() if isinstance(value, Tensor)} for row in rows]
    config = getattr(model, "config", None)
    pad, limit = getattr(config, "pad_token_id", None), getattr(config, "max_position_embeddings", None)
    longest = max(len(row["input_ids"]) for row in rows)
    if limit is not None and longest > limit:
        raise CompressionError(f"A row of dataset has {longest} tokens, the model reads {limit}; truncate the texts.")
    made = []
    size = 1 if pad is None else batch_size  # without a token for padding, some models read one text at a time
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        try:
            batch = {"labels": torch.as_tensor([row["labels"] for row in chosen])}
        except (TypeError, ValueError, RuntimeError) as error:
            raise CompressionError(f"The labels of dataset are no numbers: {error}") from error
        for row in chosen:
            row.setdefault("attention_mask", [1] * len(row["input_ids"]))
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            if name in chosen[0]:
                values = [torch.as_tensor(row[name], dtype=torch.long) for row in chosen]
                padding = (pad or 0) if name == "input_ids" else 0
                batch[name] = pad_sequence(values, batch_first=True, padding_value=padding)
        made.append({name: value.to(device) for name, value in batch.items()})
    return made
