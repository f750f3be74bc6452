"""A Trainer whose model also learns from a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import EvalLoopOutput

from hfcompress.distill.arguments import DistillationArguments
from hfcompress.distill.layer_losses import ForwardRecorder, IntermediateTerms, ModelOutputs
from hfcompress.distill.teachers import TeacherCollator, Teachers, reading_of
from hfcompress.errors import CompressionError
from hfcompress.losses import check_label_loss, check_teacher_loss, label_loss, teacher_loss
from hfcompress.metrics import mean_metrics, per_example_metrics
from hfcompress.models.classifier import get_problem_type, input_names

_WEIGHTS = "example_weights"  # added to each training batch: 0 for examples repeated to fill up an epoch's last batch
_PROJECTION = "projection.safetensors"  # beside optimizer.pt in checkpoints; not a part of the student


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
    training, the terms are logged apart, unweighted, as ``teacher_term`` and ``label_term`` (``hidden_term``,
    ``relation_term``), each a mean over the examples since the last log.

    In evaluation, examples whose class is -1 or -100 count as unlabelled: they have a part in what needs no label.

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
    optimizer: Any
    lr_scheduler: Any
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
        self._optimizer_given = self.optimizer is not None
        self._problem = get_problem_type(self.model, "student")
        if args.alpha > 0:
            check_teacher_loss(args.teacher_loss, self._problem)
        if args.alpha < 1:
            check_label_loss(args.label_loss, self._problem, args.label_smoothing_factor)
        self._sums: dict[str, Tensor] = {}  # since the last log: each term's, and the number of examples
        self._begun: list[dict[str, Any]] = []  # batches of an update for which the stream did not suffice
        self._updating = False  # whether a whole update was read
        self._evaluated: dict[str, list[Tensor]] = {}
        listed: list[Any] = list(teacher) if isinstance(teacher, list | tuple) else [teacher] * (teacher is not None)
        self._teachers: Teachers | None = None
        self._teacher_only: frozenset[str] = frozenset()  # what the student does not take: segments, DistilBERT's
        self._reencode = False  # whether the teacher reads the text with a tokenizer of its own
        self._other_ids = False  # whether it cannot read the student's ids
        if listed:
            # All is checked before the teachers are frozen.
            self._teachers = Teachers(self.model, listed, teacher_weights)
            tokenizers = self.processing_class, teacher_processing_class
            read = [reading_of(self.model, one, *tokenizers, self.train_dataset, self._text_columns) for one in listed]
            self._reencode, self._other_ids = "text" in read, read != ["ids"] * len(read)
            self._teacher_only = self._teachers.inputs - input_names(self.model)
        self.teacher = self._teachers.module if self._teachers else None
        self._build_layer_terms()
        if self._teachers is not None:
            self._teachers.freeze(args.device, getattr(torch, args.teacher_dtype) if args.teacher_dtype else None)
            if self._reencode:
                self.data_collator = TeacherCollator(
                    self.data_collator, teacher_processing_class, self._text_columns, args.teacher_max_length
                )

    @property
    def _text_columns(self) -> list[str]:
        pair = self.args.text_pair_column
        return [self.args.text_column, *([] if pair is None else [pair])]

    def _build_layer_terms(self) -> None:
        """Compare layers as the arguments and the student say by now; the trials of a search may change both."""
        between = self._compare_layers() if self.args.compares_layers else None
        plain = ForwardRecorder(self.model, hidden=False, layer=None)
        self._watch, self._teacher_watch = (plain, plain) if between is None else (between.student, between.teacher)
        self._between, self._layer_settings = between, self.args.layer_settings

    def _compare_layers(self) -> IntermediateTerms:
        args = self.args
        teachers = self._teachers.models if self._teachers else []
        what = f"hidden_weight={args.hidden_weight}, relation_weight={args.relation_weight} compare layers"
        if len(teachers) != 1:
            raise CompressionError(f"{what}, which needs one teacher in the trainer; there are {len(teachers)}.")
        if self._other_ids:
            raise CompressionError(
                f"{what} token by token, but the teacher reads other tokens than the student (another tokenizer); set "
                "both to 0, or take a teacher with the student's tokenizer."
            )
        between = IntermediateTerms(
            self.model,
            teachers[0],
            hidden_weight=args.hidden_weight,
            layer_map=args.layer_map,
            relation_weight=args.relation_weight,
            relation_layer=args.relation_layer,
            relation_heads=args.relation_heads,
            device=args.device,
            seed=args.seed,
        )
        if between.projection is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise CompressionError(
                f"{what} of different widths with a projection, which FSDP and DeepSpeed would not train; use "
                "relation_weight alone, which needs none."
            )
        if between.projection is not None and self._optimizer_given:
            raise CompressionError(
                f"{what} of different widths with a projection, which the optimizer given with optimizers= would not "
                "train; let the Trainer make it (optim=, optimizer_cls_and_kwargs=), or use relation_weight alone."
            )
        return between

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the optimizer, the projection of the hidden states in it."""
        if self._layer_settings != self.args.layer_settings or (self._between and self.model_init is not None):
            self._build_layer_terms()
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if self._projection is not None and id(self._projection.weight) not in trained:
            optimizer.add_param_group({"params": [self._projection.weight], "weight_decay": self.args.weight_decay})
        return optimizer

    @property
    def _projection(self) -> nn.Linear | None:
        return None if self._between is None else self._between.projection

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take the stock step; average the projection's gradient over the processes, as DDP does the student's."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if self._projection is not None and self.accelerator.sync_gradients:
            weight = self._projection.weight
            weight.grad = self.accelerator.reduce(weight.grad, reduction="mean")
        return loss

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._projection is not None and self.args.should_save:
            save_model(self._projection, str(Path(output_dir) / _PROJECTION))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and (Path(checkpoint) / "optimizer.pt").exists():
            saved = (Path(checkpoint) / _PROJECTION).exists()
            if saved is not (self._projection is not None):
                raise CompressionError(
                    f"The training of {checkpoint} had {'a' if saved else 'no'} projection of hidden states, this one "
                    f"has {'none' if saved else 'one'}; go on with the same hidden_weight and teacher."
                )
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._projection is not None and checkpoint is not None and (Path(checkpoint) / _PROJECTION).exists():
            load_model(self._projection, str(Path(checkpoint) / _PROJECTION))

    def _clip_grad_norm(self, model: nn.Module) -> Tensor | float | None:
        norm: Tensor | float | None = super()._clip_grad_norm(model)
        if self._projection is not None:  # by itself: it is no part of the model whose norm is logged
            nn.utils.clip_grad_norm_(self._projection.parameters(), self.args.max_grad_norm)
        return norm

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        own = [
            "labels",
            *input_names(self.model),
        ]  # which the Trainer overlooks in a compiled model, or one without loss
        extra = ["teacher_logits", *sorted(self._teacher_only), *(self._text_columns if self._reencode else [])]
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *own, *extra]))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the stock Trainer does."""
        if self.model_init is None and not any(p.requires_grad for p in self.model.parameters()):
            raise CompressionError(
                "The student has no parameter that can be trained; if it is a copy of a teacher, which is frozen, call "
                "student.requires_grad_(True)."
            )
        if self._layer_settings != self.args.layer_settings:
            self._build_layer_terms()
            if not self._optimizer_given:
                self.optimizer = self.lr_scheduler = None  # made anew, with the projection that there is now
        return super().train(*args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Begin to count anew: also where auto_find_batch_size begins again with smaller batches."""
        self._sums, self._begun, self._updating = {}, [], False
        return super()._inner_training_loop(*args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """Collect the batches of one update and count their examples over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches - len(self._begun), device)
        if self._projection is not None:
            self._projection.weight.grad = None  # an update begins; the Trainer clears the model's alone
        weights = [torch.ones(_batch_size(batch), device=device) for batch in batches]
        ended, remainder = self._end_of_epoch(complete=len(self._begun) + len(batches) == num_batches)
        if batches and ended and remainder > 0:
            # The last global batch holds `remainder` examples; accelerate repeats others behind them to fill it up.
            first = self.accelerator.process_index * len(weights[-1])
            weights[-1][max(0, remainder - first) :] = 0
        batches = self._begun + [{**batch, _WEIGHTS: one} for batch, one in zip(batches, weights, strict=True)]
        # Where a stream ends within an update, the Trainer takes no step: what was read begins the next update.
        self._begun = batches if len(batches) < num_batches else []
        batches = batches[len(self._begun) :]
        self._updating |= bool(batches)
        if not self._updating and self._begun:
            raise CompressionError(
                f"The streamed data end after {len(self._begun)} batches, before the first update has its "
                f"gradient_accumulation_steps={num_batches}; lower that, or stream more data."
            )
        counts = [batch[_WEIGHTS].sum() for batch in batches]
        count = torch.stack(counts).sum() if counts else torch.zeros((), device=device)
        return batches, self.accelerator.reduce(count, reduction="sum")

    def _end_of_epoch(self, *, complete: bool) -> tuple[bool, int]:
        """Whether the last global batch was reached, and how many of its examples are no repetitions, if not all."""
        state = self.accelerator.gradient_state
        ended, remainder = state.end_of_dataloader, state.remainder
        if self.accelerator.num_processes == 1 or self.args.dataloader_drop_last:
            return ended, 0  # nothing is ever repeated
        loader = self.callback_handler.train_dataloader
        if not complete:  # a stream has ended on the way, and the state no longer tells of its loader
            return True, getattr(loader, "remainder", 0)
        with suppress(AttributeError, TypeError):  # streamed data have no length
            # Not accelerate's own number: it goes by the data, not by what is drawn of them, and is lost in an epoch
            # that is resumed half-way.
            sampler = loader.batch_sampler
            while hasattr(sampler, "batch_sampler"):
                sampler = sampler.batch_sampler
            remainder = len(sampler.sampler) % loader.total_batch_size
        return ended, remainder

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
        inputs, labels, weights, teach = self._split(inputs)
        answer = self._watch(model, inputs)
        taught = teach() if self.args.needs_teacher else None
        terms = self._terms(answer, labels, taught, inputs.get("attention_mask"))
        losses = _weighted(terms)
        if weights is not None:
            self._add_up(terms, weights)
        if num_items_in_batch is None:
            loss = losses.mean()
        else:
            weighted = losses if weights is None else losses * weights
            loss = weighted.sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, {"logits": answer.logits}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return cross-entropy, logits and labels of a batch, and note what `evaluate` reports beside them."""
        inputs, labels, _, teach = self._split(self._prepare_inputs(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            answer = self._watch(model, inputs)
            taught = teach()
        args: DistillationArguments = self.args

        def objective(given: Tensor | None) -> Tensor:
            return _weighted(self._terms(answer, given, taught, inputs.get("attention_mask")))

        told = taught is not None or not args.needs_teacher
        answered = None if taught is None else taught.logits
        found = per_example_metrics(
            answer.logits,
            labels,
            answered,
            self._problem,
            objective if told else None,
            objective_needs_labels=args.alpha < 1,
        )
        for name, values in found.items():
            self._evaluated.setdefault(name, []).append(self.accelerator.gather_for_metrics(values))
        loss = torch.tensor(mean_metrics({name: [one] for name, one in found.items()}).get("loss", 0.0))
        loss = loss.to(answer.logits.device)  # in every process, whether its part has labels or not
        return (loss, None, None) if prediction_loss_only else (loss, answer.logits, labels)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Run the stock loop and add the means over the examples, exact also where the last batch is short."""
        self._evaluated = {}
        output = super().evaluation_loop(*args, **kwargs)
        if self._evaluated:
            means = mean_metrics(self._evaluated)
            prefix = kwargs.get("metric_key_prefix", "eval")
            output.metrics.pop(f"{prefix}_loss", None)  # the loop's is rounded, and over all rows
            # A metric of the user's compute_metrics wins over ours.
            output.metrics.update({f"{prefix}_{name}": mean for name, mean in means.items()} | output.metrics)
        self._evaluated = {}
        return output

    def _split(
        self, inputs: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Tensor | None, Tensor | None, Callable[[], ModelOutputs | None]]:
        """Take a batch apart: the student's inputs, labels, weights, and how to get the teacher's answer."""
        inputs = dict(inputs)
        labels, weights = inputs.pop("labels", None), inputs.pop(_WEIGHTS, None)
        cached, own_inputs = inputs.pop("teacher_logits", None), inputs.pop("teacher_inputs", None)

        def teach() -> ModelOutputs | None:
            if isinstance(cached, Tensor) and self._between is None:
                return ModelOutputs(cached if self._teachers is None else self._teachers.in_order(cached))
            if self._teachers is None or (own_inputs is None and self._other_ids):
                return None  # the student's ids would be noise to it
            own_dtype = self.args.teacher_dtype is not None
            with nullcontext() if own_dtype else self.accelerator.autocast():
                return self._teachers.answer(inputs if own_inputs is None else own_inputs, self._teacher_watch)

        own = {name: value for name, value in inputs.items() if name not in self._teacher_only}
        return own, labels, weights, teach

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms of the loss, as means since the last log."""
        if "loss" in logs and self._sums:
            sums = self.accelerator.reduce(torch.stack(list(self._sums.values())), reduction="sum").tolist()
            *terms, examples = sums
            logs.update({name: term / examples for name, term in zip(self._sums, terms, strict=False)})
            self._sums = {}
        super().log(logs, start_time)

    def _add_up(self, terms: Mapping[str, tuple[float, Tensor]], weights: Tensor) -> None:
        """Note the terms for the log; no .item() here, which would make the CPU wait for the device at every step."""
        with torch.no_grad():
            sums = {name: (values * weights).sum() for name, (_, values) in terms.items()} | {"": weights.sum()}
            self._sums = {name: self._sums.get(name, 0) + value for name, value in sums.items()}

    def _terms(
        self, answer: ModelOutputs, labels: Tensor | None, taught: ModelOutputs | None, mask: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        """The terms of the loss by name: the weight of each, and its value for each example."""
        args: DistillationArguments = self.args
        logits = answer.logits
        terms: dict[str, tuple[float, Tensor]] = {}
        if args.needs_teacher and taught is None:
            if self._teachers is not None:
                columns = " and ".join(map(repr, self._text_columns))
                raise CompressionError(
                    "The teacher cannot read the student's ids, and a batch has neither 'teacher_logits' nor the text "
                    f"as its own tokenizer reads it: keep the column {columns}, or name it with text_column= (and "
                    "text_pair_column=), and pass teacher_processing_class=."
                )
            raise CompressionError(
                f"alpha={args.alpha} needs a teacher: pass teacher=, keep a 'teacher_logits' column in the data, "
                "or set alpha=0."
            )
        if args.alpha > 0 and taught is not None:
            loss = teacher_loss(logits, taught.logits, args.teacher_loss, args.temperature, self._problem)
            terms["teacher_term"] = (args.alpha, loss)
        if args.alpha < 1:
            if labels is None:
                raise CompressionError(
                    f"alpha={args.alpha} needs labels and the batch has no 'labels'; label the data or set alpha=1."
                )
            loss = label_loss(logits, labels, args.label_loss, args.label_smoothing_factor, self._problem)
            terms["label_term"] = (1 - args.alpha, loss)
        if self._between is not None and taught is not None:
            terms |= self._between(answer, taught, mask)
        return terms


def _weighted(terms: Mapping[str, tuple[float, Tensor]]) -> Tensor:
    return torch.stack([weight * values for weight, values in terms.values()]).sum(0)


def _batch_size(batch: Mapping[str, Any]) -> int:
    return next(len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim())
