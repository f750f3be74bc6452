"""A Trainer whose model also learns from a teacher."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import EvalLoopOutput, default_compute_objective
from typing_extensions import Unpack, override

from hfcompress.distill.arguments import DistillationArguments, TrainerOptions, read_settings
from hfcompress.distill.exact_mean import EXAMPLE_WEIGHTS, ExactMeanTrainer, Terms, weighted_sum
from hfcompress.distill.label_check import LabelCheckingCollator
from hfcompress.distill.label_weights import LabelWeights, WeightCollator, make_label_weights
from hfcompress.distill.layer_losses import ForwardRecorder, LayerLosses, ModelOutputs
from hfcompress.distill.projection import ProjectionTrainer
from hfcompress.distill.teacher_inputs import TEACHER_LOGITS, TeacherCollator, choose_teacher_input, longest_text
from hfcompress.distill.teachers import Teachers
from hfcompress.distill.trainer_inputs import TRAINER_ORDER, check_trainer_inputs
from hfcompress.errors import CompressionError
from hfcompress.losses import check_label_loss, check_teacher_loss, label_loss, teacher_loss
from hfcompress.metrics import mean_metrics, per_example_metrics
from hfcompress.models.classifier import count_outputs, get_config, get_problem_type, input_names
from hfcompress.models.labels import LABELS, are_default_names, check_class_names, label_names
from hfcompress.models.padding import align_padding
from hfcompress.models.plain_weights import check_no_float32_alone, check_not_quantized
from hfcompress.models.tokenizers import check_tokenizer

_LABEL_WEIGHTS = "label_weights"  # added to each training batch


@dataclass(frozen=True)
class StudentBatch:
    """A batch taken apart."""

    inputs: dict[str, Any]  # what the student reads
    labels: Tensor | None
    weights: Tensor | None  # in training, 0 for examples that are repeated at the end of an epoch, else 1: (batch,)
    label_weights: Tensor | None  # in training, by example: over the mean of the update's, class weights included there
    teacher_logits: Tensor | None  # those in the data, in the order of the teacher's classes: (batch, classes)
    teacher_inputs: Mapping[str, Any] | None  # its own, or all in the batch; None where it can read neither


class DistillationTrainer(ProjectionTrainer, ExactMeanTrainer):
    """Train a student classifier on the labels and on a teacher's outputs.

    The loss of an update is ``alpha * teacher_loss + (1 - alpha) * label_loss``, averaged over exactly its examples:
    the same for one batch of 8, two accumulated batches of 4 or two processes with 4 each (the stock Trainer's is not).

    The teacher is frozen (``requires_grad_(False)``, in place), in eval mode at every step, moved to the student's
    device, and never part of ``trainer.model``, the optimizer or a checkpoint. It reads the student's ids, unless
    ``teacher_processing_class`` is another tokenizer than the student's: then it gets its own ids of the text column.
    Pass it whenever the two may differ: without it, only the sizes of the vocabularies are compared. A
    ``teacher_logits`` column in the data takes the teacher's place.

    ``evaluate`` reports ``eval_loss``, the cross-entropy, comparable between models however they were trained, and
    ``eval_accuracy``; where all that it needs is there, ``eval_distillation_loss``, the training objective; and with
    the teacher's outputs ``eval_agreement``, how often both predict the same. Examples whose class is -1 or -100 count
    only in what needs no label. ``predict`` returns the logits. The log has the terms too, not yet times
    ``alpha`` and the like, as means over the examples since the last log: ``teacher_term`` and ``label_term``
    (``hidden_term``, ``relation_term``).

    Class weights (``class_weights``) and example weights (``weight_column``) are for the label term alone: it is then
    the weighted mean over the examples of an update, in which a class of -1 or -100 has no weight. The evaluation is
    unweighted.

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

    args: DistillationArguments
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
        **kwargs: Unpack[TrainerOptions],
    ) -> None:
        args = DistillationArguments() if args is None else args
        if not isinstance(args, DistillationArguments):
            raise CompressionError(f"args must be DistillationArguments, not {type(args).__name__}.")
        check_trainer_inputs(model, teacher, dict(zip(TRAINER_ORDER, positional, strict=False)) | kwargs)
        check_tokenizer(teacher_processing_class, "teacher_processing_class")
        self._added: set[str] = set()  # names of metrics that are not the user's
        with warnings.catch_warnings():  # of several labels too, the label term is smoothed
            warnings.filterwarnings("ignore", "Label smoothing is not compatible")
            super().__init__(model, args, *positional, **kwargs)
        if self.compute_loss_func is not None:
            raise CompressionError("compute_loss_func cannot be used: alpha, teacher_loss and label_loss set the loss.")
        check_not_quantized(self.model, "trained")
        self._problem = get_problem_type(self.model, "student")
        if args.alpha > 0:
            check_teacher_loss(args.teacher_loss, self._problem)
        if args.alpha < 1:
            check_label_loss(args.label_loss, self._problem, args.label_smoothing_factor)
        self._metrics: dict[str, list[Tensor]] = {}  # of the batches evaluated so far
        teachers: list[Any] = list(teacher) if isinstance(teacher, list | tuple) else [teacher] * (teacher is not None)
        # All is checked before the teachers are frozen.
        self._teachers = Teachers(self.model, teachers, teacher_weights) if teachers else None
        self._check_names(self.train_dataset, "training")
        self._check_names(self.eval_dataset, "evaluation")
        self.teacher = self._teachers.module if self._teachers else None
        source = self.processing_class, teacher_processing_class, self.train_dataset, self._text_columns
        chosen = {choose_teacher_input(self.model, one, *source) for one in teachers}
        self._reads_text, self._reads_ids = "text" in chosen, chosen <= {"ids"}  # its own ids, or the student's
        self._teacher_only = frozenset[str]().union(*map(input_names, teachers)) - input_names(self.model)
        self._label_weights = self._make_label_weights()
        if args.teacher_dtype not in (None, "float32"):
            for one in teachers:
                check_no_float32_alone(one, f"teacher_dtype={args.teacher_dtype!r}")
        teacher_length = None
        if self._reads_text and teacher_processing_class is not None:
            teacher_length = longest_text(teachers, teacher_processing_class, args.teacher_max_length)
        self._build_layer_losses()
        if self._teachers is not None:
            self._teachers.freeze(args.device, getattr(torch, args.teacher_dtype) if args.teacher_dtype else None)
        self.data_collator = LabelCheckingCollator(self.data_collator, self._problem)
        if args.weight_column is not None:
            self.data_collator = WeightCollator(self.data_collator, args.weight_column)
        if self._reads_text:
            self.data_collator = TeacherCollator(
                self.data_collator, teacher_processing_class, self._text_columns, teacher_length
            )

    def _check_names(self, data: Any, which: str) -> None:
        """Refuse data whose own names of the classes are the student's, or the teacher's, in another order."""
        teachers = self._teachers.models if self._teachers else []
        unnamed = are_default_names(label_names(self.model, "student"))  # by which no teacher is put in order
        for part in data.values() if isinstance(data, dict) else [data]:
            check_class_names(f"the {which} data", self.model, part)
            for one in teachers if unnamed else []:
                check_class_names(f"the {which} data, as the teacher reads them,", one, part)

    @property
    def _text_columns(self) -> list[str]:
        return [name for name in (self.args.text_column, self.args.text_pair_column) if name is not None]

    def _build_layer_losses(self) -> None:
        """Compare layers as the arguments and the student are now; the trials of a search may change both."""
        args, losses, projection = self.args, None, None
        if args.compares_layers:
            teachers = self._teachers.models if self._teachers else []
            what = f"hidden_weight={args.hidden_weight}, relation_weight={args.relation_weight} compare layers"
            if len(teachers) != 1:
                raise CompressionError(f"{what}, which needs one teacher in the trainer; there are {len(teachers)}.")
            if not self._reads_ids:
                raise CompressionError(
                    f"{what} token by token, but the teacher reads other tokens than the student; set both to 0, or "
                    "take a teacher with the student's tokenizer."
                )
            projection = self._make_projection(teachers[0]) if args.hidden_weight > 0 else None
            losses = LayerLosses(self.model, teachers[0], args, projection)
        self._layer_losses, self._projection, self._layer_settings = losses, projection, args.layer_settings
        recorders = losses.recorders if losses else (ForwardRecorder(), ForwardRecorder())
        self._student_recorder, self._teacher_recorder = recorders

    @property
    def _weights_asked(self) -> tuple[Any, ...]:
        """What the weights of labels depend on, which the trials of a search may change."""
        return self.args.alpha, self.args.class_weights, self.args.weight_column

    @override
    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the optimizer, for the layers that are compared by now."""
        read_settings(self.args)
        if self._layer_settings != self.args.layer_settings or (self._layer_losses and self.model_init is not None):
            self._build_layer_losses()
        if self._weighed_by != self._weights_asked:
            self._label_weights = self._make_label_weights()
        return super().create_optimizer(*args, **kwargs)

    @override
    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the stock Trainer does, with the layers compared that the arguments name by now."""
        if self.model_init is None and not any(p.requires_grad for p in self.model.parameters()):
            raise CompressionError(
                "The student has no parameter to train; if it is a copy of a frozen teacher, call requires_grad_(True)."
            )
        read_settings(self.args)
        self._check_names(self.train_dataset, "training")
        self._label_weights = self._make_label_weights()  # of other data perhaps
        if self._layer_settings != self.args.layer_settings:
            self._build_layer_losses()
            if not self._optimizer_given:
                self.optimizer = self.lr_scheduler = None  # made anew, with the projection that there is now
        return super().train(*args, **kwargs)

    @override
    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return the batches to evaluate with, of data whose classes are in the student's order."""
        self._check_names(eval_dataset, "evaluation")
        batches: DataLoader[Any] = super().get_eval_dataloader(eval_dataset)
        return batches

    @override
    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Return the batches to predict, of data whose classes are in the student's order."""
        self._check_names(test_dataset, "test")
        batches: DataLoader[Any] = super().get_test_dataloader(test_dataset)
        return batches

    @override
    def hyperparameter_search(
        self, hp_space: Any = None, compute_objective: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Search as the stock Trainer does: by ``eval_loss``, or the sum of what ``compute_metrics`` returns.

        That sum would hold the metrics of this class too, an accuracy and a loss.
        """
        return super().hyperparameter_search(hp_space, compute_objective or self._objective, *args, **kwargs)

    def _objective(self, metrics: dict[str, float]) -> float:
        ours = {*self._added, *(name for name in metrics if name.endswith("_model_preparation_time"))}
        return float(default_compute_objective({name: metrics[name] for name in metrics if name not in ours}))

    @override
    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        # The Trainer overlooks the student's in a compiled model, or one without loss.
        own = ["labels", *input_names(self.model), TEACHER_LOGITS, *sorted(self._teacher_only)]
        texts = self._text_columns if self._reads_text else []
        weights = [self.args.weight_column] if self.args.weight_column is not None else []
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *own, *texts, *weights]))

    def _make_label_weights(self) -> LabelWeights:
        """Make the weights of the labels for the data that there are now."""
        args, column = self.args, self.args.weight_column
        names = *LABELS, TEACHER_LOGITS, *self._text_columns
        if column in names or column in input_names(self.model) | self._teacher_only:
            raise CompressionError(
                f"weight_column={column!r} names another input of the training; name the column with the examples' "
                "weights, or set it to None to weigh all examples the same."
            )
        classes, self._weighed_by = count_outputs(get_config(self.model)), self._weights_asked
        dataset = self.train_dataset if args.alpha < 1 else None
        return make_label_weights(args.class_weights, column, self._problem, classes, dataset, args.device)

    @override
    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], Tensor]:
        """Collect the batches of one update, count their examples over all processes, and weigh their labels."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        if self.args.alpha == 1:
            return batches, count
        for batch in batches:
            self._label_weights.check(batch)
        return self._weigh_labels(batches, count), count

    def _weigh_labels(self, batches: Sequence[dict[str, Any]], count: Tensor | None) -> list[dict[str, Any]]:
        """Add by example its weight over the mean weight of the update, so that the label term is the weighted mean.

        Args:
            batches: The batches of an update in this process.
            count: Examples of the update over all processes; if None the batches are an update by themselves.
        """
        found, total = [], torch.zeros((), device=self.args.device)
        examples = torch.zeros_like(total)
        for batch in batches:
            ones = torch.ones(find_batch_size(batch), device=total.device)
            labels, weights, with_class = self._label_weights.take(batch, ones)
            total = total + (with_class * batch.get(EXAMPLE_WEIGHTS, ones)).sum()
            examples = examples + ones.sum()
            found.append((batch if labels is None else batch | {"labels": labels}, weights))
        if count is not None:
            total, examples = self.accelerator.reduce(total, reduction="sum"), count
        scale = torch.where(total > 0, examples / total, 0.0)  # where all weights are 0, the label term is 0
        return [batch | {_LABEL_WEIGHTS: weights * scale} for batch, weights in found]

    def _take_apart(self, inputs: Mapping[str, Any]) -> StudentBatch:
        inputs = dict(inputs)
        if self.args.weight_column is not None:
            inputs.pop(self.args.weight_column, None)
        labels, weights = inputs.pop("labels", None), inputs.pop(EXAMPLE_WEIGHTS, None)
        label_weights = inputs.pop(_LABEL_WEIGHTS, None)
        cached, encoded = inputs.pop(TEACHER_LOGITS, None), inputs.pop("teacher_inputs", None)
        own = {name: value for name, value in inputs.items() if name not in self._teacher_only}
        return StudentBatch(
            inputs=align_padding(self.model, own),
            labels=labels,
            weights=weights,
            label_weights=label_weights,
            teacher_logits=cached if isinstance(cached, Tensor) else None,
            # The ids of another vocabulary would be noise to the teacher.
            teacher_inputs=encoded if encoded is not None or not self._reads_ids else inputs,
        )

    def teacher_outputs(self, batch: StudentBatch) -> ModelOutputs | None:
        """Return the teacher's outputs for a batch, from the data or computed; None where there are none."""
        teachers = self._teachers
        if batch.teacher_logits is not None and self._layer_losses is None:
            return ModelOutputs(batch.teacher_logits if teachers is None else teachers.reorder(batch.teacher_logits))
        if teachers is None or batch.teacher_inputs is None:
            return None
        with nullcontext() if self.args.teacher_dtype is not None else self.accelerator.autocast():
            return teachers.outputs(batch.teacher_inputs, self._teacher_recorder)

    @override
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return the objective of a batch, a scalar in float32 (see `mean_over_update`), and its logits if asked.

        Raises:
            CompressionError: Labels or the teacher's outputs are needed and missing.
        """
        if EXAMPLE_WEIGHTS not in inputs and self.args.alpha < 1:  # from elsewhere: an update by itself
            (inputs,) = self._weigh_labels([dict(inputs)], None)
        batch = self._take_apart(inputs)
        outputs = self._student_recorder(model, batch.inputs)
        teacher = self.teacher_outputs(batch) if self.args.needs_teacher else None
        loss = self.mean_over_update(self._terms(batch, outputs, teacher), batch.weights, num_items_in_batch)
        return (loss, {"logits": outputs.logits}) if return_outputs else loss

    def _terms(self, batch: StudentBatch, outputs: ModelOutputs, teacher: ModelOutputs | None) -> Terms:
        args = self.args
        terms: Terms = {}
        if teacher is None and args.needs_teacher:
            raise CompressionError(self._missing_teacher())
        if teacher is not None and args.alpha > 0:
            loss = teacher_loss(outputs.logits, teacher.logits, args.teacher_loss, args.temperature, self._problem)
            terms["teacher_term"] = (args.alpha, loss)
        if args.alpha < 1:
            if batch.labels is None:
                raise CompressionError(f"alpha={args.alpha} needs labels; a batch has none. Add them or set alpha=1.")
            by_class = None if batch.label_weights is None else self._label_weights.by_class
            smoothing = args.label_smoothing_factor
            loss = label_loss(
                outputs.logits, batch.labels, args.label_loss, smoothing, self._problem, class_weights=by_class
            )
            terms["label_term"] = (1 - args.alpha, loss if batch.label_weights is None else loss * batch.label_weights)
        if teacher is not None and self._layer_losses is not None:
            terms |= self._layer_losses(outputs, teacher, batch.inputs.get("attention_mask"))
        return terms

    def _missing_teacher(self) -> str:
        if self._teachers is None:
            return f"alpha={self.args.alpha} needs a teacher: pass teacher=, keep 'teacher_logits', or set alpha=0."
        columns = " and ".join(map(repr, self._text_columns))
        return (
            "The teacher cannot read the student's ids, and a batch has neither 'teacher_logits' nor the text: keep "
            f"the column {columns}, or name it with text_column=, and pass teacher_processing_class=."
        )

    @override
    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return cross-entropy, logits and labels of a batch, and keep what `evaluate` reports beside them."""
        batch = self._take_apart(self._prepare_inputs(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = self._student_recorder(model, batch.inputs)
            teacher = self.teacher_outputs(batch)

        def objective(labels: Tensor | None) -> Tensor:
            return weighted_sum(self._terms(replace(batch, labels=labels), outputs, teacher))

        found = per_example_metrics(
            outputs.logits,
            batch.labels,
            None if teacher is None else teacher.logits,
            self._problem,
            None if teacher is None and self.args.needs_teacher else objective,
            objective_needs_labels=self.args.alpha < 1,
        )
        for name, values in found.items():
            self._metrics.setdefault(name, []).append(self.accelerator.gather_for_metrics(values))
        loss = torch.tensor(mean_metrics({name: [one] for name, one in found.items()}).get("loss", 0.0))
        loss = loss.to(outputs.logits.device)  # in every process, whether its part has labels or not
        return (loss, None, None) if prediction_loss_only else (loss, outputs.logits, batch.labels)

    @override
    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Run the stock loop and add the means over the examples, exact also where the last batch is short."""
        self._metrics = {}
        output = super().evaluation_loop(*args, **kwargs)
        if self._metrics:
            means = mean_metrics(self._metrics)
            prefix = kwargs.get("metric_key_prefix", "eval")
            output.metrics.pop(f"{prefix}_loss", None)  # the loop's is rounded, and over all rows
            # A metric of the user's compute_metrics wins over ours.
            ours = {f"{prefix}_{name}": mean for name, mean in means.items()}
            self._added |= ours.keys() - output.metrics.keys() - {f"{prefix}_loss"}
            output.metrics.update(ours | output.metrics)
        return output
