"""What a trainer is given, refused by name where it is of another kind: the stock Trainer fails on it later, or raw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hfcompress.models.classifier import check_model_kind
from hfcompress.models.inputs import check_dataset
from hfcompress.models.tokenizers import check_tokenizer

TRAINER_ORDER = ("data_collator", "train_dataset", "eval_dataset", "processing_class", "model_init")


def check_trainer_inputs(model: Any, teacher: Any, given: Mapping[str, Any]) -> None:
    """Refuse models, data and tokenizers that are none.

    Args:
        model: The student; may be None where ``model_init`` makes it.
        teacher: One teacher, a list of them, or None.
        given: The arguments of `transformers.Trainer` by name.

    Raises:
        CompressionError: One of them is a name, a class, or of another kind.
    """
    if model is not None or given.get("model_init") is None:
        check_model_kind(model)
    for one in teacher if isinstance(teacher, list | tuple) else [teacher]:
        if one is not None or isinstance(teacher, list | tuple):
            check_model_kind(one, "teacher", needed="a model or a list of models")
    check_tokenizer(given.get("processing_class"))
    train, evaluation = given.get("train_dataset"), given.get("eval_dataset")
    if train is not None:
        check_dataset(train, "train_dataset", batch=False)
    for one in evaluation.values() if isinstance(evaluation, Mapping) else [evaluation]:
        if one is not None:
            check_dataset(one, "eval_dataset", batch=False)
