"""Trainer callbacks that keep pruned weights at zero during training, and that prune during training."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import check_model_kind
from hfcompress.models.sharded import local_values, shards_of_model
from hfcompress.models.weights import check_prunable, select_matrices
from hfcompress.prune.magnitude import check_amount, prune_global_l1, zeros_asked
from hfcompress.prune.scan import INTEGER_DTYPES
from hfcompress.report.sparsity import SparsityReport, sparsity_report
from hfcompress.validation import check_choice, check_count, check_fraction, is_integer

Schedule = Literal["cubic", "linear", "one-shot"]
_MAX_PRUNINGS = 100  # by default
_CHUNK = 1 << 20  # weights masked together


class KeepSparsity(TrainerCallback):
    """Keep every weight that is zero when training begins at zero until it ends.

    The zeros of the prunable weights (see `prune_global_l1`) are read when training begins, after a checkpoint was
    loaded, and written back after each optimizer step, whatever the optimizer, weight decay or momentum did. Takes one
    byte per weight of the matrices that have zeros, during training. Biases, norms, embeddings, the head and adapters
    are trained freely. Weights sharded by FSDP2 are kept shard by shard.

    Args:
        include: Shell patterns over module names, as given to `prune_global_l1`.
        exclude: Shell patterns for modules to leave out.

    Raises:
        CompressionError: When training begins, for the reasons of `sparsity_report`.

    Example:
        ``Trainer(model=pruned, args=args, train_dataset=data, callbacks=[KeepSparsity()])``, or in a loop of one's own:

        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hfcompress import prune_global_l1, sparsity_report
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
        >>> model = BertForSequenceClassification(config)
        >>> _ = prune_global_l1(model, 0.2)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> keep = KeepSparsity()
        >>> keep.read(model)
        >>> for _ in range(3):
        ...     model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([1])).loss.backward()
        ...     optimizer.step()
        ...     keep.apply()
        ...     optimizer.zero_grad()
        >>> sparsity_report(model).zeros
        1843
    """

    def __init__(
        self, *, include: Sequence[str] | str | None = None, exclude: Sequence[str] | str | None = None
    ) -> None:
        self.include = include
        self.exclude = exclude
        self._kept: list[tuple[str, nn.Parameter, Tensor]] = []  # name, weight, mask
        self._batch_size: int | None = None  # of the current training

    def read(self, model: nn.Module) -> None:
        """Remember which prunable weights are zero; call it once the model is on its devices and sharded, if at all.

        Args:
            model: The model to be trained. The parameters themselves are remembered, not copies.

        Raises:
            CompressionError: For the reasons of `sparsity_report`, except that sharded weights are allowed.
        """
        check_model_kind(model, classifier=False)
        selection = select_matrices(model, self.include, self.exclude)
        check_prunable(model, selection, sharded=True)
        self._kept = []
        for matrix in selection.matrices:
            zeros = local_values(matrix.weight) == 0
            if zeros.any():
                # A bit mask: all bits of a byte are set where the weight is trained, none where it is kept at zero.
                self._kept.append((matrix.name, matrix.weight, zeros.to(torch.int8) - 1))

    @torch.no_grad()
    def apply(self) -> None:
        """Set the weights that were zero when `read` was called to zero again, in place."""
        for _, weight, mask in self._kept:
            values = local_values(weight)
            integer = INTEGER_DTYPES[values.dtype.itemsize]
            rows = max(1, _CHUNK * len(values) // values.numel())
            for part, bits in zip(torch.split(values.view(integer), rows), torch.split(mask, rows), strict=True):
                # Unlike masked_fill_, torch does this with vector instructions on a CPU.
                part.bitwise_and_(bits.to(integer))

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the zeros."""
        self._apply_after_restart(args, state)
        self.read(kwargs["model"])
        if not shards_of_model(kwargs["model"]).sum([len(self._kept)]):
            warnings.warn(
                "KeepSparsity has nothing to keep: no prunable weight is zero; prune the model before training.",
                stacklevel=2,
            )

    @override
    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Write the zeros back."""
        self.apply()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the zeros back before an evaluation or a checkpoint: another callback may have changed them."""
        if control.should_evaluate or control.should_save:
            self.apply()

    @override
    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Write the zeros back before an evaluation or a checkpoint at the end of an epoch."""
        self.on_step_end(*args, **kwargs)

    @override
    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Write the zeros back, with a warning: some optimizers restore a copy of the weights at the end."""
        counts = {name: int(local_values(weight)[mask == 0].count_nonzero()) for name, weight, mask in self._kept}
        revived = [name for name, count in counts.items() if count]
        if revived:
            warnings.warn(
                f"{sum(counts.values())} pruned weights were nonzero at the end of training, first in {revived[0]}, "
                "and were set to zero again: the optimizer or a loaded checkpoint restored them, so the last steps "
                "were trained with other weights than those of the final model.",
                stacklevel=2,
            )
            self.apply()
        self._kept, self._batch_size = [], None

    def _apply_after_restart(self, args: TrainingArguments, state: TrainerState) -> None:
        """Write the zeros back if the Trainer ran out of memory in an update and restarts with smaller batches."""
        previous, self._batch_size = self._batch_size, state.train_batch_size
        if args.auto_find_batch_size and previous and self._batch_size and self._batch_size < previous:
            self.apply()


class GradualPruning(KeepSparsity):
    """Prune in several steps during training, and keep the zeros in between.

    `prune_global_l1` is called n times, before optimizer steps spread evenly from ``start`` to ``end`` of the training
    (with ``every``, the last pruning may come sooner). The sparsity after the k-th pruning is

    - ``"cubic"``: ``amount * (1 - (1 - k / n) ** 3)``, rising fast at first and ever more slowly (Zhu & Gupta 2017,
      https://arxiv.org/abs/1710.01878, equation 1, from sparsity 0);
    - ``"linear"``: ``amount * k / n``, equal steps: iterative pruning;
    - ``"one-shot"``: ``amount``, in a single pruning at ``start``.

    The last pruning is to exactly ``amount``. The sparsity is added to the trainer's log history, and to the logs that
    later callbacks receive (``"sparsity"``). A resumed training continues the same schedule. No best metric is stored
    until the last pruning: ``load_best_model_at_end`` and early stopping only compare models of the final sparsity.

    Args:
        amount: As for `prune_global_l1`: a fraction of the prunable weights in [0, 1), or a number of them.
        start: The first pruning, as a fraction of the training's optimizer steps.
        end: The last pruning, likewise; the rest of the training has the final sparsity.
        every: Optimizer steps from one pruning to the next; a float below 1 is a fraction of the training. By default
            there are up to 100 prunings.
        schedule: ``"cubic"``, ``"linear"`` or ``"one-shot"``.
        include: Shell patterns over module names, as for `prune_global_l1`.
        exclude: Shell patterns for modules to leave out.

    Raises:
        CompressionError: At once for a wrong argument; when training begins, for the reasons of `prune_global_l1`.

    Example:
        Five per cent at a time to twenty, with a fifth of the training after each pruning and two fifths at the end:
        ``callbacks=[GradualPruning(0.2, schedule="linear", start=0.0, end=0.6, every=0.2)]``.

        >>> GradualPruning(0.2, schedule="linear", start=0.0, end=0.6, every=0.2).plan(max_steps=1000)
        [(0, 0.05), (200, 0.1), (400, 0.15000000000000002), (600, 0.2)]
    """

    def __init__(
        self,
        amount: float | int,
        *,
        start: float = 0.0,
        end: float = 0.7,
        every: float | int | None = None,
        schedule: Schedule = "cubic",
        include: Sequence[str] | str | None = None,
        exclude: Sequence[str] | str | None = None,
    ) -> None:
        super().__init__(include=include, exclude=exclude)
        check_amount(amount)
        check_fraction("start", start, "a fraction of the training", one=True)
        check_fraction("end", end, "a fraction of the training", one=True)
        if start > end:
            raise CompressionError(f"start={start!r} must not be above end={end!r}.")
        if is_integer(every):
            check_count("every", every)
        elif every is not None:
            check_fraction("every", every, "a fraction of the training; an int counts optimizer steps", zero=False)
        check_choice("schedule", schedule, get_args(Schedule))
        self.amount = amount
        self.start, self.end, self.every, self.schedule = start, end, every, schedule
        self._plan: list[tuple[int, float | int]] = []
        self._prunings_done = 0
        self._sparsity: float | None = None

    def plan(self, max_steps: int) -> list[tuple[int, float | int]]:
        """Return when and to what amount the model is pruned.

        Args:
            max_steps: Optimizer steps of the full training.

        Returns:
            For each pruning, the number of optimizer steps before it and the amount for `prune_global_l1`.
        """
        last = min(round(self.end * max_steps), max_steps - 1)
        first = min(round(self.start * max_steps), last)
        if self.schedule == "one-shot":
            return [(first, self.amount)]
        if self.every is None:
            gap = -(-(last - first) // (_MAX_PRUNINGS - 1))
        else:
            gap = int(self.every) if is_integer(self.every) else round(self.every * max_steps)
        steps = [*range(first, last, max(1, gap)), last]
        parts = [k / len(steps) for k in range(1, len(steps) + 1)]
        if self.schedule == "cubic":
            parts = [1 - (1 - part) ** 3 for part in parts]
        amounts = [self.amount * part for part in parts]
        return list(zip(steps, map(round, amounts) if is_integer(self.amount) else amounts, strict=True))

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the model, plan the prunings, and read the zeros that are there."""
        self._apply_after_restart(args, state)
        # Prunes nothing, but refuses a model that cannot be pruned.
        checked = prune_global_l1(kwargs["model"], 0, include=self.include, exclude=self.exclude)
        zeros_asked(self.amount, checked.weights)
        self._plan, self._prunings_done, self._sparsity = self.plan(state.max_steps), 0, None
        self.read(kwargs["model"])

    @override
    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prune if a pruning is due; after a resume, to the amount planned by now."""
        due, new_zeros = bisect_right([step for step, _ in self._plan], state.global_step), 0
        if due > self._prunings_done:
            self.apply()  # another callback may have changed the zeros
            report, new_zeros = self._prune(kwargs["model"], self._plan[due - 1][1])
            self._prunings_done, self._sparsity = due, report.sparsity
            self.read(kwargs["model"])
            if new_zeros:
                entry = {"sparsity": report.sparsity, "epoch": state.epoch or 0.0, "step": state.global_step}
                state.log_history.append(entry)
        if new_zeros or due < len(self._plan):
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    @override
    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the sparsity to the logs."""
        if self._sparsity is not None:
            for entry in (kwargs.get("logs"), *state.log_history[-1:]):
                if entry is not None:
                    entry["sparsity"] = self._sparsity

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prune to the amount if training was stopped early, with a warning."""
        super().on_train_end(args, state, control, **kwargs)
        _, new_zeros = self._prune(kwargs["model"], self.amount)
        if new_zeros:
            warnings.warn(
                f"{new_zeros} weights were pruned only after training had ended, to reach amount={self.amount}: it was "
                f"stopped at step {state.global_step} of {state.max_steps}, and the last pruning was planned for step "
                f"{self._plan[-1][0]}. Train on with KeepSparsity, or choose a smaller end.",
                stacklevel=2,
            )
        self._sparsity = None

    def _prune(self, model: nn.Module, amount: float | int) -> tuple[SparsityReport, int]:
        """Prune to an amount; return the report and the number of new zeros."""
        before = sparsity_report(model, include=self.include, exclude=self.exclude).zeros
        report = prune_global_l1(model, amount, include=self.include, exclude=self.exclude)
        return report, report.zeros - before
