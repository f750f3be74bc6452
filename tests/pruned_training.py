"""Pruned classifiers, trained by a stock Trainer, that the tests share."""

import torch
from architectures import arguments, batch, build, rows
from transformers import Trainer, TrainerCallback, TrainingArguments

from hfcompress import prune_global_l1
from hfcompress.models.weights import select_matrices

DATA = rows(batch(40))


def pruned(architecture="bert", amount=0.5, **sizes):
    """Return a random classifier, pruned."""
    model = build(architecture, **sizes)
    prune_global_l1(model, amount)
    return model


def zero_masks(model, **patterns):
    """Return the places of the zeros of each matrix, by its name."""
    return {matrix.name: matrix.weight.detach() == 0 for matrix in select_matrices(model, **patterns).matrices}


def train(model, directory, *callbacks, resume=None, **overrides):
    """Train with weight decay for twenty steps; return the Trainer."""
    settings = {"optim": "adamw_torch", "weight_decay": 0.1, "per_device_train_batch_size": 2} | overrides
    args = arguments(TrainingArguments, directory, **settings)
    trainer = Trainer(model=model, args=args, train_dataset=DATA, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def train_with_evaluation(model, directory, *callbacks, compute_metrics=None, **overrides):
    """Train with an evaluation and a checkpoint after each step, and load the best model; return the Trainer."""
    settings = {
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "logging_steps": 1,
        "load_best_model_at_end": True,
        "per_device_train_batch_size": 4,
    } | overrides
    args = arguments(TrainingArguments, directory, **settings)
    data = {"train_dataset": DATA, "eval_dataset": DATA[:8]}
    trainer = Trainer(model=model, args=args, callbacks=list(callbacks), compute_metrics=compute_metrics, **data)
    trainer.train()
    return trainer


def count_revived(model, zeros):
    """Return how many weights that were zero are nonzero."""
    weights = {matrix.name: matrix.weight for matrix in select_matrices(model).matrices}
    return sum(int(weights[name].detach()[mask].count_nonzero()) for name, mask in zeros.items())


class Disturber(TrainerCallback):
    """Changes every weight after every step, so that those that were zero are not small."""

    def on_step_end(self, args, state, control, **kwargs):
        with torch.no_grad():
            for parameter in kwargs["model"].parameters():
                parameter.add_(1.0)
