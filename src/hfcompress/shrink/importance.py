"""How much each attention head or feed-forward neuron matters: scores to be compared with each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from hfcompress.errors import CompressionError
from hfcompress.losses import LabelLoss, label_loss
from hfcompress.models.classifier import (
    check_model_kind,
    evaluation_mode,
    get_config,
    get_logits,
    get_problem_type,
    in_float32,
)
from hfcompress.models.heads_and_neurons import Group
from hfcompress.models.inputs import Batch, read_examples
from hfcompress.models.labels import LABELS
from hfcompress.models.padding import reading
from hfcompress.models.surgery import masked
from hfcompress.models.tensors import float64_device
from hfcompress.progress import track
from hfcompress.shrink.surgeon import obs_scores
from hfcompress.validation import check_count

Importance = Literal["l1", "taylor", "fisher", "obs"]
IMPORTANCES: tuple[str, ...] = get_args(Importance)


def l1_scores(model: nn.Module, group: Group) -> Tensor:
    """The sum of the magnitudes of all weights of each head or neuron (Li et al. 2017, for filters).

    Args:
        model: In which the group was found.
        group: Heads or neurons.

    Returns:
        Shape (count,), float64, on the CPU.
    """
    check_model_kind(model, classifier=False)
    scores = torch.zeros(group.count, dtype=torch.float64)
    for part in group.slices:
        module: Any = model.get_submodule(part.module)
        weight = module.weight.detach()
        weight = weight.to(float64_device(weight.device))
        # With what the heads or neurons run along first: nn.Linear stores outputs first, others inputs first.
        if part.outputs != isinstance(module, nn.Linear):
            weight = weight.T
        sums = weight.abs().sum(1, dtype=torch.float64).cpu()
        scores += sums.view(part.repeats, group.count, part.size).sum((0, 2))
    return scores


def mask_gradients(model: nn.Module, groups: Sequence[Group], batches: Iterable[Batch]) -> list[Tensor]:
    """The gradient of each example's loss for a mask of ones on the outputs of heads or neurons.

    Args:
        model: A classifier; left as it was. The loss is the cross-entropy, in regression the squared error.
        groups: Heads and neurons of several blocks.
        batches: What the model reads, with ``labels``.

    Returns:
        For each group shape (examples, count), float32, on the CPU.
    """
    check_model_kind(model)
    found: list[list[Tensor]] = [[] for _ in groups]
    problem = get_problem_type(model, "model")
    kind: LabelLoss = "mse" if problem == "regression" else "cross_entropy"
    with in_float32(model), evaluation_mode(model):  # in float16 gradients of a loss near 0 are 0
        for batch in track(batches, "ranking heads and neurons"):
            inputs = dict(batch)
            labels = inputs.pop("labels")
            masks = [torch.ones(len(labels), 1, one.count, device=labels.device, requires_grad=True) for one in groups]
            with torch.enable_grad(), masked(model, list(zip(groups, masks, strict=True))):
                with reading(model, inputs):
                    logits = get_logits(model(**inputs))
                loss = label_loss(logits, labels, kind, problem=problem).sum()
            made = torch.autograd.grad(loss, masks, materialize_grads=True)  # 0 of a block that is not used
            for gradients, gradient in zip(found, made, strict=True):
                gradients.append(gradient[:, 0].cpu())
    return [torch.cat(gradients) for gradients in found]


def importance_scores(
    model: nn.Module, groups: Sequence[Group], kind: Importance, batches: Iterable[Batch] | None
) -> list[Tensor]:
    """Score heads or neurons.

    Args:
        model: Left as it was.
        groups: Heads and neurons of several blocks.
        kind: ``"l1"``: `l1_scores`. ``"taylor"``: the mean magnitude of the mask's gradient, the loss's first-order
            change when the head or neuron is removed (Michel et al. 2019, https://arxiv.org/abs/1905.10650, eq. 2).
            ``"fisher"``: its mean square, the diagonal of the empirical Fisher information (Kwon et al. 2022,
            https://arxiv.org/abs/2204.09656, section 4.2). ``"obs"``: `obs_scores`.
        batches: Labelled batches; for ``"obs"`` labels are not read, and for ``"l1"`` None.

    Returns:
        For each group shape (count,), float64, on the CPU.
    """
    check_model_kind(model, classifier=kind != "l1")
    if kind == "l1":
        return [l1_scores(model, one) for one in groups]
    assert batches is not None
    if kind == "obs":
        return obs_scores(model, groups, batches)
    gradients = [gradient.double() for gradient in mask_gradients(model, groups, batches)]
    return [(one.abs() if kind == "taylor" else one.square()).mean(0) for one in gradients]


def labelled_batches(
    model: nn.Module, dataset: Any, batch_size: int, *, needs_labels: bool = True, name: str = "dataset"
) -> list[Batch]:
    """Put the rows of a data set into batches on the model's device, those of one length together.

    Args:
        model: What reads them.
        dataset: Rows with ``input_ids``, ``labels`` and other inputs, as a Trainer takes them; or batches of tensors
            already.
        batch_size: Rows in a batch.
        needs_labels: Whether rows without labels are refused; otherwise the batches have none.
        name: What an error message calls the data set.

    Raises:
        CompressionError: There are no rows, or no labels, or a row is longer than the model reads.
    """
    check_count("batch_size", batch_size)
    rows = [dataset] if isinstance(dataset, Mapping) else list(dataset)
    check_columns(rows, name, needs_labels=needs_labels)
    can_pad = getattr(get_config(model), "pad_token_id", None) is not None  # else some models read one text at a time
    batches = []
    for part in rows if are_batches(rows) else [rows]:
        examples = read_examples(name, model, part)
        if examples.labels is None and needs_labels:
            raise CompressionError(f"The labels of {name} must be tensors, as its input_ids are.")
        count = len(examples.lengths)
        size = 1 if not can_pad else count if are_batches(rows) else batch_size
        for indices, batch in examples.batches(size):
            batches.append(batch if examples.labels is None else batch | {"labels": examples.labels[indices]})
    return batches


def check_columns(rows: Sequence[Any], name: str, *, needs_labels: bool) -> None:
    """Refuse rows, or batches, that do not all have token ids, of one text a row, or labels if those are needed."""
    names = [set(row) if isinstance(row, Mapping) else set() for row in rows]
    shared = set.intersection(*names) if rows else set()
    if "input_ids" not in shared or (needs_labels and not shared & set(LABELS)):
        wanted = "'input_ids' and 'labels'" if needs_labels else "'input_ids'"
        raise CompressionError(
            f"{name} must hold rows with {wanted}, as a Trainer takes them; found {len(rows)} rows "
            f"with {', '.join(sorted(map(str, set().union(*names)))) or 'nothing'}."
        )
    is_right = _is_batch if are_batches(rows) else _is_text
    wrong = next((n for n, row in enumerate(rows) if not is_right(row["input_ids"])), None)
    if wrong is not None:
        raise CompressionError(
            f"{name} must hold rows with the token ids of one text each, or only batches of tensors, and row {wrong} "
            "does not: pass one row a text, as a Trainer takes them, or tensors (return_tensors='pt', padding=True)."
        )


def are_batches(rows: Sequence[Any]) -> bool:
    """Whether these are batches of tensors, not rows."""
    return _is_batch(rows[0]["input_ids"])


def _is_batch(ids: object) -> bool:
    return isinstance(ids, Tensor) and ids.dim() == 2


def _is_text(ids: Any) -> bool:
    if isinstance(ids, Tensor | np.ndarray):
        return ids.ndim == 1
    return isinstance(ids, Sequence) and not isinstance(ids, str) and not any(map(_is_nested, ids[:1]))


def _is_nested(one: Any) -> bool:
    return isinstance(one, Sequence) or getattr(one, "ndim", 0) > 0
