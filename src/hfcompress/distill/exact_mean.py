"""A Trainer whose loss is exactly the mean over the examples of an update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_pt_utils import find_batch_size
from typing_extensions import override

from hfcompress.errors import CompressionError

Terms = dict[str, tuple[float, Tensor]]  # by name, the weight of a term of the loss and its value for each example
EXAMPLE_WEIGHTS = "example_weights"  # added to each training batch: 0 for examples that are repeated, else 1
_EXAMPLES = "examples"


class ExactMeanTrainer(Trainer):
    """A Trainer whose updates do not depend on how their examples are split into batches.

    It counts the examples of an update over all its batches and processes; ``compute_loss`` of a subclass returns
    `mean_over_update`. The terms of the loss are logged too, unweighted, as means over the examples since the last log.
    """

    # The loss is already the mean over the full update, so nothing may divide it by the accumulated batches again.
    loss_is_scaled_for_ga = True  # read by transformers from 5.19

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # read instead before 5.19
        self._sums: dict[str, Tensor] = {}  # since the last log: each term's, and the number of examples
        self._begun: list[dict[str, Any]] = []  # batches of an update for which the data did not suffice

    @override
    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Begin to count anew: also where auto_find_batch_size begins again with smaller batches."""
        self._sums, self._begun = {}, []
        # From 5.2 to 5.5 transformers has accelerate divide too; all trainers share this state, so it is set here.
        self.accelerator.gradient_accumulation_steps = 1
        return super()._inner_training_loop(*args, **kwargs)

    @override
    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """Collect the batches of one update and count their examples over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches - len(self._begun), device)
        complete = len(self._begun) + len(batches) == num_batches
        weights = [torch.ones(find_batch_size(batch), device=device) for batch in batches]
        remainder = self._remainder(complete)
        if batches and remainder > 0:
            # The last global batch holds `remainder` examples; accelerate repeats others behind them to fill it up.
            first = self.accelerator.process_index * len(weights[-1])
            weights[-1][max(0, remainder - first) :] = 0
        batches = self._begun + [{**batch, EXAMPLE_WEIGHTS: one} for batch, one in zip(batches, weights, strict=True)]
        # Where a stream ends within an update, the Trainer takes no step: what was read begins the next update. So does
        # the short end of a resumed epoch before transformers 5.3, which asks for a full update there, then once more.
        self._begun, batches = ([], batches) if complete else (batches, [])
        if self._begun and self.state.global_step == 0:
            raise CompressionError(
                f"The streamed data end after {len(self._begun)} batches, before the first update has its "
                f"gradient_accumulation_steps={num_batches}; lower that, or stream more data."
            )
        count = sum((batch[EXAMPLE_WEIGHTS].sum() for batch in batches), torch.zeros((), device=device))
        return batches, self.accelerator.reduce(count, reduction="sum")

    def _remainder(self, complete: bool) -> int:
        """Count the examples of the global batch read last that are not repeated; 0 or less if none is repeated."""
        if self.accelerator.num_processes == 1 or self.args.dataloader_drop_last:
            return 0
        state, loader = self.accelerator.gradient_state, self.callback_handler.train_dataloader
        if complete and not state.end_of_dataloader:
            return 0
        with suppress(AttributeError, TypeError):  # streamed data have no length
            # accelerate's number counts the data, not what is drawn of them, and is lost in an epoch resumed half-way.
            sampler = loader.batch_sampler
            while hasattr(sampler, "batch_sampler"):
                sampler = sampler.batch_sampler
            return len(sampler.sampler) % int(loader.total_batch_size)
        # Where a stream has ended on the way, the state no longer knows its loader.
        return int(state.remainder if complete else getattr(loader, "remainder", 0))

    def mean_over_update(self, terms: Terms, weights: Tensor | None, num_items_in_batch: Tensor | int | None) -> Tensor:
        """Return what a batch contributes to the mean over its update, and add its terms to the next log.

        Args:
            terms: The terms of the loss.
            weights: The batch's ``example_weights``, shape (batch,); None outside of training.
            num_items_in_batch: Examples of the full update over all processes; those of this batch if None.

        Returns:
            A scalar in float32; its sum over the batches of an update, averaged over processes, is the update's mean.
        """
        losses = weighted_sum(terms)
        if weights is not None:
            with torch.no_grad():  # no .item(), which would make the CPU wait for the device at every step
                sums = {name: (values * weights).sum() for name, (_, values) in terms.items()}
                sums[_EXAMPLES] = weights.sum()
                self._sums = {name: self._sums.get(name, 0) + value for name, value in sums.items()}
        if num_items_in_batch is None:
            return losses.mean()
        weighted = losses if weights is None else losses * weights
        return weighted.sum() / num_items_in_batch * int(self.accelerator.num_processes)

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms of the loss, as means since the last log."""
        if "loss" in logs and self._sums:
            reduced = self.accelerator.reduce(torch.stack(list(self._sums.values())), reduction="sum")
            sums = dict(zip(self._sums, reduced.tolist(), strict=True))
            examples = sums.pop(_EXAMPLES)
            logs.update({name: value / examples for name, value in sums.items()})
            self._sums = {}
        super().log(logs, start_time)


def weighted_sum(terms: Terms) -> Tensor:
    """Return the loss of each example, shape (batch,)."""
    return torch.stack([weight * values for weight, values in terms.values()]).sum(0)
