"""The arguments of a training that distills."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import EvalPrediction, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from typing_extensions import TypedDict, override

from hfcompress.compat import mixed_precision
from hfcompress.distill.label_weights import WEIGHT_COLUMN, read_class_weights
from hfcompress.errors import CompressionError
from hfcompress.losses import LabelLoss, TeacherLoss, check_label_loss, check_teacher_loss
from hfcompress.validation import check_choice, check_count, check_fraction, check_number

_DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass
class DistillationArguments(TrainingArguments):
    """`transformers.TrainingArguments` and what distillation adds.

    The loss is ``alpha * teacher_loss + (1 - alpha) * label_loss``, and where layers are compared too ``+ hidden_weight
    * hidden_state_loss + relation_weight * relation_loss``; see `hfcompress.losses`.

    Attributes:
        alpha: Weight of the teacher's term, in [0, 1]. With 0 no teacher is needed.
        teacher_loss: ``"mse"`` of the probabilities, ``"mse_logits"`` or ``"kl"``; see `hfcompress.losses`.
        label_loss: ``"mse"`` of the probabilities or ``"cross_entropy"``.
        temperature: Softens both distributions of ``"kl"``; positive.
        teacher_dtype: Dtype to which the teacher is converted, in place, and in which it computes, for example
            ``"bfloat16"`` where the device computes it natively. If None it keeps its own, under autocast where the
            student is.
        text_column: Column with the raw text, read where the teacher has a tokenizer of its own.
        text_pair_column: Column with the second text of a pair, or None.
        teacher_max_length: Tokens at most of a text encoded for such a teacher; if None, as many as its tokenizer makes
            and it reads.
        hidden_weight: Weight of the hidden states' term: TinyBERT's. Where student and teacher differ in width, the
            student's are projected by a matrix that learns with it and stays with the trainer.
        layer_map: Which of the teacher's hidden states each of the student's is compared with, 0 being the embeddings;
            a dict, or that as JSON. If None evenly spaced: with 2 and 6 layers ``{0: 0, 1: 3, 2: 6}``.
        relation_weight: Weight of the attention relations' term (MiniLMv2): those among queries, among keys and among
            values of the student's last layer.
        relation_layer: The teacher's layer for it; in large teachers better an upper middle one (MiniLMv2, section 4).
        relation_heads: Into how many relation heads the attention is split; a divisor of its width in both models. If
            None the greatest that also divides the teacher's attention heads.
        class_weights: Weights of the classes in the label term, in the student's order: a list, that as JSON, or
            ``"balanced"``, the number of labelled examples / (classes * examples of the class). An update's label term
            is the weighted mean of its examples' losses. Of a multi-label head the weights are those of the labels.
        weight_column: Column with the examples' weights in the label term, by which those of their classes are
            multiplied; without such a column all are 1. None, or an empty text, reads none.

    Raises:
        CompressionError: A value is out of range or unknown.

    Warns:
        UserWarning: ``bf16`` or ``teacher_dtype="bfloat16"`` where training runs on a processor without native
            bfloat16.

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
    text_pair_column: str | None = field(default=None, metadata={"help": "Column with the second text of a pair."})
    teacher_max_length: int | None = field(default=None, metadata={"help": "Tokens at most for the teacher."})
    hidden_weight: float = field(default=0.0, metadata={"help": "Weight of the hidden states' loss."})
    layer_map: dict[int, int] | str | None = field(default=None, metadata={"help": "Student's to teacher's layers."})
    relation_weight: float = field(default=0.0, metadata={"help": "Weight of the attention relations' loss."})
    relation_layer: int = field(default=-1, metadata={"help": "The teacher's layer whose relations are learned."})
    relation_heads: int | None = field(default=None, metadata={"help": "Relation heads."})
    class_weights: list[float] | str | None = field(
        default=None, metadata={"help": "Weights of the classes in the label term: balanced, or a list as JSON."}
    )
    weight_column: str | None = field(
        default=WEIGHT_COLUMN, metadata={"help": "Column with the examples' weights in the label term."}
    )

    @override
    def __post_init__(self) -> None:
        read_settings(self)
        super().__post_init__()
        if self.device.type == "cpu":
            if self.bf16 or self.bf16_full_eval:
                warn_if_bfloat16_is_slow("bf16=True" if self.bf16 else "bf16_full_eval=True", stacklevel=3)
            if self.teacher_dtype == "bfloat16":
                warn_if_bfloat16_is_slow("teacher_dtype='bfloat16'", stacklevel=3)

    @property
    def needs_teacher(self) -> bool:
        """Whether some term of the loss is about the teacher."""
        return self.alpha > 0 or self.compares_layers

    @property
    def compares_layers(self) -> bool:
        """Whether some term of the loss is about the layers between the inputs and the logits."""
        return self.hidden_weight > 0 or self.relation_weight > 0

    @property
    def layer_settings(self) -> tuple[Any, ...]:
        """All settings of the comparison of layers."""
        return self.hidden_weight, self.layer_map, self.relation_weight, self.relation_layer, self.relation_heads


def read_settings(args: DistillationArguments) -> None:
    """Refuse values out of range, and read those that are given as JSON; a search may have set others since."""
    check_fraction("alpha", args.alpha, "the weight of the teacher's loss", one=True)
    check_teacher_loss(args.teacher_loss)
    check_label_loss(args.label_loss)
    check_number("temperature", args.temperature, zero=False)
    check_choice("teacher_dtype", args.teacher_dtype, (None, *_DTYPES))
    check_number("hidden_weight", args.hidden_weight)
    check_number("relation_weight", args.relation_weight)
    if args.relation_heads is not None:
        check_count("relation_heads", args.relation_heads)
    args.layer_map = read_layer_map(args.layer_map)
    args.class_weights = read_class_weights(args.class_weights)
    args.weight_column = args.weight_column or None  # a command line gives text alone
    check_fraction("label_smoothing_factor", args.label_smoothing_factor, "the share that is spread", one=True)
    if args.label_names not in (None, ["labels"]):
        raise CompressionError(
            f"label_names={args.label_names!r} would not be read: the labels are the column 'labels' (or 'label'); "
            "leave label_names=None, and rename the column: dataset.rename_column(name, 'labels')."
        )


class TrainerOptions(TypedDict, total=False):
    """The keyword arguments of `transformers.Trainer` that `DistillationTrainer` passes on."""

    data_collator: Callable[[list[Any]], dict[str, Any]] | None
    train_dataset: Any
    eval_dataset: Any
    processing_class: PreTrainedTokenizerBase | None
    model_init: Callable[..., nn.Module] | None
    compute_loss_func: None  # the loss is set by the arguments
    compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None
    callbacks: list[TrainerCallback] | None
    optimizers: tuple[Optimizer | None, LRScheduler | None]
    optimizer_cls_and_kwargs: tuple[type[Optimizer], dict[str, Any]] | None
    preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None


def warn_if_bfloat16_is_slow(setting: str, stacklevel: int) -> None:
    """Warn where a setting means bfloat16 on a processor that does not compute it natively."""
    precision = mixed_precision("cpu")
    if precision.name != "bf16":
        warnings.warn(f"{setting} on the processor: {precision.reason}.", UserWarning, stacklevel=stacklevel + 1)


def read_layer_map(given: Any) -> dict[int, int] | None:
    """Read the map of layers, which the command line and files give as JSON."""
    try:
        read = json.loads(given) if isinstance(given, str) else given
        # As text, because int() would truncate 1.9 to 1.
        return None if read is None else {int(str(student)): int(str(teacher)) for student, teacher in read.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise CompressionError(
            f"layer_map={given!r} must be a dict of layer numbers, or that as JSON, for example {{0: 0, 1: 3, 2: 6}}."
        ) from error
