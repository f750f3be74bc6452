"""Trainer callbacks that prune while training goes on, and keep pruned weights at zero."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfcompress.errors import CompressionError
from hfcompress.models.weights import check_prunable, select_matrices
from hfcompress.prune.magnitude import check_amount, prune_global_l1
from hfcompress.prune.scan import INTEGER
from hfcompress.report.sparsity import sparsity_report

Schedule = Literal["cubic", "linear", "one-shot"]
_PRUNINGS = 100  # how often to prune where nobody said
_CHUNK = 1 << 20  # weights masked together


class KeepSparsity(TrainerCallback):
    """Keep every weight that is zero when training begins at zero until it ends.

    The zeros of the prunable weights (see `prune_global_l1`) are read when training begins, after a checkpoint was
    loaded, and written back after each optimizer step, whatever the optimizer, weight decay or momentum did. Costs one
    byte a weight of the matrices that have zeros, while training lasts. Biases, norms, embeddings, the head and
    adapters are never held. Weights sharded by FSDP2 are kept shard by shard.

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
        self._kept: list[tuple[str, nn.Parameter, Tensor]] = []
        self._batch_size: int | None = None  # of the training that goes on

    def read(self, model: nn.Module) -> None:
        """Remember which prunable weights are zero; once the model is on its devices, sharded if it is to be.

        Args:
            model: A model in training; the parameters themselves are remembered, not a copy.

        Raises:
            CompressionError: For the reasons of `sparsity_report`, but for sharded weights.
        """
        selection = select_matrices(model, self.include, self.exclude)
        check_prunable(model, selection, sharded=True)
        self._kept = []
        for matrix in selection.matrices:
            zeros = _values(matrix.weight) == 0
            if zeros.any():
                # All bits of a byte set where the weight is free, none where it is to be zero.
                self._kept.append((matrix.name, matrix.weight, zeros.to(torch.int8) - 1))

    @torch.no_grad()
    def apply(self) -> None:
        """Set the weights that were zero when `read` was called to zero again, in place."""
        for _, weight, free in self._kept:
            values = _values(weight)
            integer = INTEGER[values.dtype.itemsize]
            rows = max(1, _CHUNK * len(values) // values.numel())
            parts = zip(torch.split(values.view(integer), rows), torch.split(free, rows), strict=True)
            for part, mask in parts:
                # Unlike masked_fill_, torch does this many weights at a time on a CPU.
                part.bitwise_and_(mask.to(integer))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the zeros."""
        self._restore(args, state)
        self.read(kwargs["model"])
        if not self._kept:
            warnings.warn(
                "KeepSparsity has nothing to keep: no prunable weight is zero; prune the model before training.",
                stacklevel=2,
            )

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the zeros back."""
        self.apply()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write them back once more before the model is evaluated or saved: a callback before may have changed them."""
        if control.should_evaluate or control.should_save:
            self.apply()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The same at the end of an epoch."""
        self.on_step_end(args, state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check once more: some optimizers keep a copy of the weights and write it back at the end."""
        revived = {name: int((_values(weight)[free == 0]).count_nonzero()) for name, weight, free in self._kept}
        revived = {name: count for name, count in revived.items() if count}
        if revived:
            warnings.warn(
                f"{sum(revived.values())} pruned weights had come back at the end of training, first in "
                f"{next(iter(revived))}, and were set to zero again: the optimizer or a loaded checkpoint restored "
                "them, so the last steps were trained with other weights than the result has.",
                stacklevel=2,
            )
            self.apply()
        self._kept, self._batch_size = [], None

    def _restore(self, args: TrainingArguments, state: TrainerState) -> None:
        """Write the zeros back where the Trainer begins again with smaller batches: out of memory in an update."""
        before, self._batch_size = self._batch_size, state.train_batch_size
        if args.auto_find_batch_size and before and self._batch_size and self._batch_size < before:
            self.apply()


class GradualPruning(KeepSparsity):
    """Prune during training, a little at a time, and keep the zeros in between.

    The weights are pruned by `prune_global_l1` before the first training step of each pruning; n prunings are spread
    evenly from ``start`` to ``end`` (with ``every``, the last of them may come sooner). After the k-th the sparsity is

    - ``"cubic"``: ``amount * (1 - (1 - k / n) ** 3)``, much at first and ever less (Zhu & Gupta 2017,
      https://arxiv.org/abs/1710.01878, equation 1, from sparsity 0);
    - ``"linear"``: ``amount * k / n``, equal steps: iterative pruning;
    - ``"one-shot"``: ``amount``, in a single pruning at ``start``.

    The last pruning is to exactly ``amount``. The sparsity is added to the trainer's log history, and to the logs that
    callbacks behind this one receive (``"sparsity"``). A resumed training goes on with the same schedule. Until the
    last pruning no best metric is remembered, so that ``load_best_model_at_end`` and early stopping compare models of
    the final sparsity only.

    Args:
        amount: As for `prune_global_l1`: a fraction of the prunable weights in [0, 1), or a number of them.
        start: When to prune first, as a fraction of the training's optimizer steps.
        end: When to prune last; what remains of the training is for the final sparsity.
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
        if not (_is_number(start) and _is_number(end) and 0 <= start <= end <= 1):
            raise CompressionError(
                f"start={start!r} and end={end!r} must be fractions of the training, 0 <= start <= end <= 1."
            )
        steps = isinstance(every, Integral) and not isinstance(every, bool) and every >= 1
        if not (every is None or steps or (_is_number(every) and not isinstance(every, Integral) and 0 < every < 1)):
            raise CompressionError(
                f"every={every!r} must be a number of optimizer steps (an int of at least 1), or a fraction of the "
                "training (a float between 0 and 1)."
            )
        if schedule not in get_args(Schedule):
            raise CompressionError(f"schedule={schedule!r} must be one of {', '.join(get_args(Schedule))}.")
        self.amount = amount
        self.start = start
        self.end = end
        self.every = every
        self.schedule = schedule
        self._plan: list[tuple[int, float | int]] = []
        self._reached = 0  # prunings done
        self._sparsity: float | None = None

    def plan(self, max_steps: int) -> list[tuple[int, float | int]]:
        """Return the prunings of a training.

        Args:
            max_steps: Optimizer steps of the whole training.

        Returns:
            For each pruning, the number of optimizer steps before it and what `prune_global_l1` is asked for.
        """
        last = min(round(self.end * max_steps), max_steps - 1)
        first = min(round(self.start * max_steps), last)
        if self.schedule == "one-shot":
            return [(first, self.amount)]
        if self.every is None:
            gap = -(-(last - first) // (_PRUNINGS - 1))
        else:
            gap = int(self.every) if isinstance(self.every, Integral) else round(self.every * max_steps)
        steps = [*range(first, last, max(1, gap)), last]
        parts = [k / len(steps) for k in range(1, len(steps) + 1)]
        if self.schedule == "cubic":
            parts = [1 - (1 - part) ** 3 for part in parts]
        amounts = [self.amount * part for part in parts]
        whole = isinstance(self.amount, Integral)
        return [(step, round(amount) if whole else amount) for step, amount in zip(steps, amounts, strict=True)]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the model, make the plan, and read the zeros that are there."""
        self._restore(args, state)
        model = kwargs["model"]
        weights = prune_global_l1(model, 0, include=self.include, exclude=self.exclude).weights  # which only checks
        if isinstance(self.amount, Integral) and self.amount > weights:
            raise CompressionError(f"amount={self.amount} is more than the {weights} prunable weights of the model.")
        self._plan = self.plan(state.max_steps)
        self._reached = 0
        self._sparsity = None
        self.read(model)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prune, if it is time; after a resume, to what the plan asks for by now."""
        reached = bisect_right([step for step, _ in self._plan], state.global_step)
        if reached > self._reached:
            self._reached = reached
            self._prune(kwargs["model"], self._plan[reached - 1][1], state)
        if self._reached < len(self._plan):
            _forget_best(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the sparsity to what is logged."""
        if self._sparsity is not None:
            for entry in (logs, state.log_history[-1] if state.log_history else None):
                if entry is not None:
                    entry["sparsity"] = self._sparsity

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See that the model ends with the sparsity asked, also if training was stopped early."""
        super().on_train_end(args, state, control, **kwargs)
        zeros = sparsity_report(kwargs["model"], include=self.include, exclude=self.exclude).zeros
        report = prune_global_l1(kwargs["model"], self.amount, include=self.include, exclude=self.exclude)
        if report.zeros > zeros:
            warnings.warn(
                f"{report.zeros - zeros} weights were pruned only after training had ended, to reach amount="
                f"{self.amount}: it was stopped at step {state.global_step} of {state.max_steps}, and the last pruning "
                f"was planned for step {self._plan[-1][0]}. Train on with KeepSparsity, or let it end earlier.",
                stacklevel=2,
            )
        self._sparsity = None

    def _prune(self, model: nn.Module, amount: float | int, state: TrainerState) -> None:
        self.apply()  # whatever another callback did to the zeros
        before = sparsity_report(model, include=self.include, exclude=self.exclude).zeros
        report = prune_global_l1(model, amount, include=self.include, exclude=self.exclude)
        self._sparsity = report.sparsity
        self.read(model)
        if report.zeros > before:
            state.log_history.append(
                {"sparsity": report.sparsity, "epoch": state.epoch or 0.0, "step": state.global_step}
            )
            _forget_best(state)


def _forget_best(state: TrainerState) -> None:
    state.best_metric = state.best_global_step = state.best_model_checkpoint = None


def _values(weight: nn.Parameter) -> Tensor:
    """The weights that this process holds, sharing memory with the parameter."""
    values = weight.detach()
    return values.to_local() if isinstance(values, DTensor) else values


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
