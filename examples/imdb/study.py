"""What the studies share: one training, tested on reviews that were used for nothing else, and noted in a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, set_seed

import hfcompress as hfc
from examples.imdb.data import Reviews, encode
from examples.imdb.models import Pair
from examples.imdb.report import interval
from examples.imdb.systems import machine_arguments, write_json

MAX_LENGTH, LEARNING_RATE, SEED = 64, 5e-5, 0


def train_and_test(
    file: Path,
    make: Callable[[], Pair],
    reviews: Reviews,
    epochs: int,
    *,
    seed: int = SEED,
    callbacks: Sequence[TrainerCallback] = (),
    teacher: PreTrainedModel | None = None,
    save: Path | None = None,
    **losses: Any,
) -> dict[str, Any]:
    """Train, test and note the result, or read what was noted before.

    Args:
        file: The result, JSON.
        make: Makes the starting model and its tokenizer.
        reviews: To train and to test on.
        epochs: How many; 0 to test the model as it is.
        seed: Of the head, the order of the reviews and dropout.
        callbacks: Of the Trainer.
        teacher: A teacher with the same tokenizer, or None.
        save: Folder for the trained model, or None.
        **losses: Arguments of `hfcompress.DistillationArguments`; by default the labels' cross-entropy alone.

    Returns:
        Accuracy and cross-entropy on the test reviews, how many those are, and the sparsity.
    """
    if file.exists():
        return dict(json.loads(file.read_text()))
    print(file.stem, file=sys.stderr)
    set_seed(seed)
    model, tokenizer = make()
    objective: dict[str, Any] = {"alpha": 0.0, "label_loss": "cross_entropy"} | losses
    arguments = hfc.DistillationArguments(
        output_dir=str(file.with_suffix("")),
        num_train_epochs=epochs,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=32,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="linear",
        bf16=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        seed=seed,
        **machine_arguments(),
        **objective,
    )
    trainer = hfc.DistillationTrainer(
        model=model,
        args=arguments,
        teacher=teacher,
        train_dataset=encode(reviews.train, tokenizer, MAX_LENGTH),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    if epochs:
        trainer.train()
    assert reviews.test is not None
    tested = trainer.predict(encode(reviews.test, tokenizer, MAX_LENGTH)).metrics
    if save:
        model.save_pretrained(save)
        tokenizer.save_pretrained(save)
    result = {
        "sparsity": hfc.sparsity_report(model).sparsity,
        "accuracy": tested["test_accuracy"],
        "cross_entropy": tested["test_loss"],
        "reviews": len(reviews.test),
    }
    write_json(file, result)
    return result


def test_interval(run: dict[str, Any]) -> tuple[float, float]:
    """Wilson's 95 % interval of a run's test accuracy."""
    return interval(run["accuracy"], run["reviews"])
