"""Trainer callbacks that keep pruned weights at zero while training goes on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfcompress.layers import check_prunable, select_matrices


class KeepSparsity(TrainerCallback):
    """Keep every weight that is zero when training begins at zero until it ends.

    The zeros of the prunable weights (see `prune_global_l1`) are read when training begins, after a checkpoint was
    loaded, and written back after each optimizer step, whatever the optimizer, weight decay or momentum did. Costs one
    byte a weight of the matrices that have zeros, while training lasts. Biases, norms, embeddings, the head and
    adapters are never held.

    Args:
        include: Shell patterns over module names, as given to `prune_global_l1`.
        exclude: Shell patterns for modules to leave out.

    Raises:
        CompressionError: When training begins, for the reasons of `sparsity_report`.

    Example:
        ``Trainer(model=pruned, args=args, train_dataset=data, callbacks=[KeepSparsity()])``
    """

    def __init__(
        self, *, include: Sequence[str] | str | None = None, exclude: Sequence[str] | str | None = None
    ) -> None:
        self.include = include
        self.exclude = exclude
        self._zeros: list[tuple[str, nn.Parameter, Tensor]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the zeros."""
        model = kwargs["model"]
        selection = select_matrices(model, self.include, self.exclude)
        check_prunable(model, selection)
        zeros = ((matrix.name, matrix.weight, matrix.weight.detach() == 0) for matrix in selection.matrices)
        self._zeros = [(name, weight, mask) for name, weight, mask in zeros if mask.any()]
        if not self._zeros:
            warnings.warn(
                "KeepSparsity has nothing to keep: no prunable weight is zero; prune the model before training.",
                stacklevel=2,
            )

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the zeros back."""
        self._write_back()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check once more: some optimizers keep a copy of the weights and write it back at the end."""
        revived = {name: int(weight.detach()[mask].count_nonzero()) for name, weight, mask in self._zeros}
        revived = {name: count for name, count in revived.items() if count}
        if revived:
            warnings.warn(
                f"{sum(revived.values())} pruned weights had come back at the end of training, first in "
                f"{next(iter(revived))}, and were set to zero again: the optimizer or a loaded checkpoint restored "
                "them, so the last steps were trained with other weights than the result has.",
                stacklevel=2,
            )
            self._write_back()
        self._zeros = []

    @torch.no_grad()
    def _write_back(self) -> None:
        for _, weight, mask in self._zeros:
            weight.masked_fill_(mask, 0)
