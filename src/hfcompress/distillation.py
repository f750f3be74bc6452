"""A Trainer whose model also learns from a teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from hfcompress.errors import CompressionError
from hfcompress.losses import (
    LabelLoss,
    Problem,
    TeacherLoss,
    check_label_loss,
    check_teacher_loss,
    label_loss,
    teacher_loss,
)
from hfcompress.teacher import TeacherCollator, Teachers, config_of, inputs_of, logits_of, problem_of, same_tokenizer

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_WEIGHTS = "example_weights"  # added to each training batch: 0 for examples repeated to fill up an epoch's last batch


@dataclass
class DistillationArguments(TrainingArguments):
    """`transformers.TrainingArguments` and what distillation adds: ``alpha * teacher_loss + (1 - alpha) * label_loss``.

    Attributes:
        alpha: Weight of the teacher's term, in [0, 1]. With 0 no teacher is needed.
        teacher_loss: ``"mse"`` of the probabilities, ``"mse_logits"`` or ``"kl"``; see `hfcompress.losses`.
        label_loss: ``"mse"`` of the probabilities or ``"cross_entropy"``.
        temperature: Softens both distributions of ``"kl"``; positive.
        teacher_dtype: To which the teacher is converted, in place, and in which it computes, for example
            ``"bfloat16"``. If None it keeps its own, under autocast where the student is.
        text_column: Column with the raw text, read where the teacher has a tokenizer of its own.
        teacher_max_length: Tokens at most of a text encoded for such a teacher; its tokenizer's limit if None.

    Raises:
        CompressionError: A value is out of range or unknown.

    Example:
        >>> args = DistillationArguments(output_dir="out", alpha=0.7, teacher_loss="kl", temperature=2.0)
        >>> args.alpha, args.label_loss
        (0.7, 'mse')
    """

    alpha: float = field(default=0.5, metadata={"help": "Weight of the teacher's loss, in [0, 1]."})
    teacher_loss: TeacherLoss = field(default="mse", metadata={"help": "mse, mse_logits or kl."})
    label_loss: LabelLoss = field(default="mse", metadata={"help": "mse or cross_entropy."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of kl."})
    teacher_dtype: str | None = field(default=None, metadata={"help": "For example bfloat16."})
    text_column: str = field(default="text", metadata={"help": "Column with the raw text."})
    teacher_max_length: int | None = field(default=None, metadata={"help": "Tokens at most for the teacher."})

    def __post_init__(self) -> None:
        if not (isinstance(self.alpha, Real) and 0 <= self.alpha <= 1):
            raise CompressionError(f"alpha={self.alpha!r} must be in [0, 1]: the weight of the teacher's loss.")
        check_teacher_loss(self.teacher_loss)
        check_label_loss(self.label_loss)
        if not (isinstance(self.temperature, Real) and 0 < self.temperature < math.inf):
            raise CompressionError(f"temperature={self.temperature!r} must be a positive, finite number.")
        if self.teacher_dtype not in (None, *_DTYPES):
            raise CompressionError(
                f"teacher_dtype={self.teacher_dtype!r} is unknown; choose one of {', '.join(_DTYPES)}."
            )
        super().__post_init__()


class DistillationTrainer(Trainer):
    """Train a student classifier on the labels and on a teacher's answers.

    The loss of an update is ``alpha * teacher_loss + (1 - alpha) * label_loss``, averaged over exactly the examples of
    that update: the same for one batch of 8, two accumulated batches of 4 or two processes with 4 each, also where the
    last batch is short (the stock Trainer's is not).

    The teacher is frozen (``requires_grad_(False)``, in place), in eval mode at every step, moved to the student's
    device, and never part of ``trainer.model``, the optimizer or a checkpoint. It reads the student's ids, unless
    ``teacher_processing_class`` is another tokenizer than the student's: then it gets its own ids of the text column.
    Pass it whenever the two may differ: vocabularies of one size can hold different words, and only their sizes are
    compared without it. A ``teacher_logits`` column in the data takes the teacher's place.

    ``evaluate`` gives ``eval_loss``, the cross-entropy, comparable between models however they were trained, and
    ``eval_accuracy``; where all that it needs is at hand ``eval_distillation_loss``, the training objective; and
    with the teacher's answers ``eval_agreement``, how often both say the same. ``predict`` returns the logits. While
    training, the two terms are logged apart as ``teacher_term`` and ``label_term``, each a mean over the examples since
    the last log.

    With several labels an example (``problem_type="multi_label_classification"``) the probabilities are sigmoids,
    ``eval_loss`` is the binary cross-entropy, and accuracy and agreement count labels. With a regression head both
    losses are the squared error, as is ``eval_loss``; there is no accuracy.

    Args:
        model: The student: a sequence classifier.
        args: `DistillationArguments`.
        teacher: A sequence classifier with the same labels. Not needed where ``alpha`` is 0, the data have
            ``teacher_logits``, or for evaluation. Or a list of them, whose probabilities are averaged.
        teacher_processing_class: The teacher's tokenizer; of several, that of all.
        teacher_weights: What each of several teachers counts for in the mean, positive; all the same if None.
        **kwargs: As for `transformers.Trainer`.

    Raises:
        CompressionError: Student and teacher do not fit: labels, problem, vocabulary, shared parameters; a loss has no
            meaning for the problem; or the arguments are not `DistillationArguments`.

    Example:
        ``DistillationTrainer(model=student, teacher=teacher, args=args, train_dataset=data).train()``
    """

    # The loss below is already the mean over the whole update, so the Trainer must not divide it again.
    loss_is_scaled_for_ga = True
    data_collator: Any
    _signature_columns: list[str]

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: DistillationArguments | None = None,
        *positional: Any,
        teacher: PreTrainedModel | nn.Module | Sequence[PreTrainedModel | nn.Module] | None = None,
        teacher_processing_class: PreTrainedTokenizerBase | None = None,
        teacher_weights: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        args = DistillationArguments() if args is None else args
        if not isinstance(args, DistillationArguments):
            raise CompressionError(f"args must be DistillationArguments, not {type(args).__name__}.")
        super().__init__(model, args, *positional, **kwargs)
        if self.compute_loss_func is not None:
            raise CompressionError(
                "compute_loss_func cannot be used: the loss is set by alpha, teacher_loss and label_loss."
            )
        self._problem = problem_of(self.model, "student")
        if args.alpha > 0:
            check_teacher_loss(args.teacher_loss, self._problem)
        if args.alpha < 1:
            check_label_loss(args.label_loss, self._problem, args.label_smoothing_factor)
        self._terms: Tensor | None = None  # sums since the last log: the teacher's term, the labels', examples
        teachers: list[Any] = list(teacher) if isinstance(teacher, Sequence) else [] if teacher is None else [teacher]
        self._teachers: Teachers | None = None
        self._teacher_only: frozenset[str] = (
            frozenset()
        )  # inputs that the student does not take: segments, DistilBERT's
        self._reencode = False
        if teachers:
            # Checked before the teachers are frozen.
            self._reencode = True in {self._needs_own_ids(one, teacher_processing_class) for one in teachers}
            dtype = getattr(torch, args.teacher_dtype) if args.teacher_dtype else None
            self._teachers = Teachers(self.model, teachers, teacher_weights, args.device, dtype)
            self._teacher_only = self._teachers.inputs - inputs_of(self.model)
            if self._reencode:
                self.data_collator = TeacherCollator(
                    self.data_collator, teacher_processing_class, args.text_column, args.teacher_max_length
                )
        self.teacher = self._teachers.module if self._teachers else None
        self._evaluated: list[Tensor] = []

    def _needs_own_ids(self, teacher: nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> bool:
        columns = getattr(self.train_dataset, "column_names", None)
        cached = columns is not None and "teacher_logits" in columns
        sizes = [getattr(config_of(m), "vocab_size", None) for m in (self.model, teacher)]
        if tokenizer is None:
            if sizes[0] != sizes[1] and not cached:
                raise CompressionError(
                    f"The student's vocabulary has {sizes[0]} tokens, the teacher's {sizes[1]}, so the teacher cannot "
                    "read the student's ids; pass teacher_processing_class= and keep the text column in the data."
                )
            return False
        if self.processing_class is not None and same_tokenizer(self.processing_class, tokenizer):
            return False
        column = self.args.text_column
        if columns is not None and column not in columns and not cached:
            raise CompressionError(
                f"The teacher has a tokenizer of its own and needs the text, but the training data have no column "
                f"{column!r} (they have {', '.join(columns)}); keep it, or name it with text_column=."
            )
        return True

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        extra = ["teacher_logits", *sorted(self._teacher_only), *([self.args.text_column] if self._reencode else [])]
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *extra]))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the stock Trainer does."""
        self._terms = None
        return super().train(*args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """Collect the batches of one update and count their examples over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        weights = [torch.ones(_batch_size(batch), device=device) for batch in batches]
        state = self.accelerator.gradient_state
        remainder = state.remainder
        if remainder < 0 and not self.args.dataloader_drop_last:
            # An epoch resumed half-way: accelerate's skip_first_batches loses the number.
            with suppress(AttributeError, TypeError):  # streamed data have no length
                loader = self.callback_handler.train_dataloader
                remainder = len(loader.dataset) % loader.total_batch_size
        if batches and state.end_of_dataloader and remainder > 0:
            # The last global batch holds `remainder` examples; accelerate repeats others behind them to fill it up.
            first = self.accelerator.process_index * len(weights[-1])
            weights[-1][max(0, remainder - first) :] = 0
        count = torch.stack([weight.sum() for weight in weights]).sum() if weights else torch.zeros((), device=device)
        batches = [{**batch, _WEIGHTS: weight} for batch, weight in zip(batches, weights, strict=True)]
        return batches, self.accelerator.reduce(count, reduction="sum")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return the objective of a batch, and its logits if asked.

        Args:
            model: The student, wrapped or not.
            inputs: The batch.
            return_outputs: Also return ``{"logits": logits}``.
            num_items_in_batch: Examples of the whole update over all processes; those of this batch if None.

        Returns:
            A scalar in float32; its sum over the batches of an update, averaged over processes, is the update's mean.

        Raises:
            CompressionError: Labels or the teacher's answers are needed and missing.
        """
        inputs, labels, weights, teacher_logits = self._split(inputs)
        logits = logits_of(model(**inputs))
        losses = self._objective(logits, labels, teacher_logits(), weights)
        if num_items_in_batch is None:
            loss = losses.mean()
        else:
            weighted = losses if weights is None else losses * weights
            loss = weighted.sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, {"logits": logits}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return cross-entropy, logits and labels of a batch, and note what `evaluate` reports beside them."""
        inputs, labels, _, teacher_logits = self._split(self._prepare_inputs(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = logits_of(model(**inputs))
            taught = teacher_logits()
        columns = {}
        if labels is not None:
            kind: LabelLoss = "mse" if self._problem == "regression" else "cross_entropy"
            columns["loss"] = label_loss(logits, labels, kind, problem=self._problem)
            if self._problem != "regression":
                answer = _answer(logits, self._problem)
                columns["accuracy"] = _same(answer, labels.reshape(answer.shape))
        if (taught is not None or self.args.alpha == 0) and (labels is not None or self.args.alpha == 1):
            columns["distillation_loss"] = self._objective(logits, labels, taught)
            columns.setdefault("loss", columns["distillation_loss"])
        if taught is not None and self._problem != "regression":
            columns["agreement"] = _same(_answer(logits, self._problem), _answer(taught, self._problem))
        if columns:
            self._evaluated_columns = list(columns)
            table = torch.stack(list(columns.values()), dim=1)
            self._evaluated.append(self.accelerator.gather_for_metrics(table))
        loss = columns["loss"].mean() if "loss" in columns else None
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Run the stock loop and add the means over the examples, exact also where the last batch is short."""
        self._evaluated = []
        output = super().evaluation_loop(*args, **kwargs)
        if self._evaluated:
            means = torch.cat(self._evaluated).double().mean(0).tolist()
            prefix = kwargs.get("metric_key_prefix", "eval")
            found = {f"{prefix}_{name}": mean for name, mean in zip(self._evaluated_columns, means, strict=True)}
            # A metric of the user's compute_metrics wins over ours, except for the loss, which the loop rounds.
            output.metrics.update({k: v for k, v in found.items() if k == f"{prefix}_loss" or k not in output.metrics})
        self._evaluated = []
        return output

    def _split(
        self, inputs: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Tensor | None, Tensor | None, Callable[[], Tensor | None]]:
        """Take a batch apart: the student's inputs, labels, weights, and how to get the teacher's logits."""
        inputs = dict(inputs)
        labels, weights = inputs.pop("labels", None), inputs.pop(_WEIGHTS, None)
        cached, own_inputs = inputs.pop("teacher_logits", None), inputs.pop("teacher_inputs", None)

        def teacher_logits() -> Tensor | None:
            if self._teachers is None or isinstance(cached, Tensor):
                return cached if self._teachers is None else self._teachers.in_order(cached)
            own_dtype = self.args.teacher_dtype is not None
            with nullcontext() if own_dtype else self.accelerator.autocast():
                return self._teachers.logits(inputs if own_inputs is None else own_inputs)

        own = {name: value for name, value in inputs.items() if name not in self._teacher_only}
        return own, labels, weights, teacher_logits

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the two terms of the loss, as means since the last log."""
        if "loss" in logs and self._terms is not None:
            teacher, label, examples = self.accelerator.reduce(self._terms, reduction="sum").tolist()
            if self.args.alpha > 0:
                logs["teacher_term"] = teacher / examples
            if self.args.alpha < 1:
                logs["label_term"] = label / examples
            self._terms = None
        super().log(logs, start_time)

    def _objective(
        self, logits: Tensor, labels: Tensor | None, teacher_logits: Tensor | None, log_weights: Tensor | None = None
    ) -> Tensor:
        """The loss of each example; with weights, its terms are added up for the log."""
        args: DistillationArguments = self.args
        taught = labelled = torch.zeros(len(logits), device=logits.device)
        if args.alpha > 0:
            if teacher_logits is None:
                raise CompressionError(
                    f"alpha={args.alpha} needs a teacher: pass teacher=, keep a 'teacher_logits' column in the data, "
                    "or set alpha=0."
                )
            taught = teacher_loss(logits, teacher_logits, args.teacher_loss, args.temperature, self._problem)
        if args.alpha < 1:
            if labels is None:
                raise CompressionError(
                    f"alpha={args.alpha} needs labels and the batch has no 'labels'; label the data or set alpha=1."
                )
            labelled = label_loss(logits, labels, args.label_loss, args.label_smoothing_factor, self._problem)
        if log_weights is not None:
            with torch.no_grad():
                # No .item() here: it would make the CPU wait for the device at every step.
                sums = torch.stack([(taught * log_weights).sum(), (labelled * log_weights).sum(), log_weights.sum()])
                self._terms = sums if self._terms is None else self._terms + sums
        return args.alpha * taught + (1 - args.alpha) * labelled


def _batch_size(batch: Mapping[str, Any]) -> int:
    return next(len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim())


def _answer(logits: Tensor, problem: Problem) -> Tensor:
    """The class, or for each label whether it holds."""
    return logits.argmax(-1) if problem == "single_label_classification" else (logits > 0).to(logits.dtype)


def _same(one: Tensor, other: Tensor) -> Tensor:
    """By example, whether the answers are the same, or for what share of the labels."""
    same = (one == other).float()
    return same if same.dim() == 1 else same.mean(-1)
