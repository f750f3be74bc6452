"""Distillation written by hand, which the trainer is compared with."""

import copy

import torch
from architectures import arguments, batch, build, rows
from torch.nn.functional import cross_entropy, kl_div, one_hot
from transformers import TrainerCallback

from hfcompress import DistillationArguments, DistillationTrainer

LABELS = 3
DATA = batch(40, num_labels=LABELS)
# Of AdamW: keeps it from making steps of the rounding errors of gradients that are truly 0 (key biases).
EPSILON = 1e-3


def student_and_teacher(architecture="bert", **teacher):
    return build(architecture, LABELS, seed=1), build(architecture, LABELS, seed=2, **({"layers": 3} | teacher))


def make(student, teacher, directory, data=DATA, *, args=None, **kwargs):
    settings = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0} | (args or {})
    training = arguments(DistillationArguments, directory, **settings)
    data = rows(data) if isinstance(data, dict) else data
    kwargs = {"train_dataset": data, "eval_dataset": data} | kwargs
    return DistillationTrainer(model=student, args=training, teacher=teacher, **kwargs)


def model_inputs(tensors):
    return {key: tensors[key] for key in ("input_ids", "attention_mask")}


@torch.no_grad()
def compute_logits(model, tensors):
    model = copy.deepcopy(model).eval()
    return model(**model_inputs(tensors)).logits


def part(tensors, start, stop):
    return {key: value[start:stop] for key, value in tensors.items()}


def objective(logits, targets, labels, alpha=0.5, teacher="mse", label="mse", temperature=1.0):
    """The loss, written from its formula."""
    p, q = logits.softmax(-1), targets.softmax(-1)
    from_teacher = {
        "mse": lambda: ((p - q) ** 2).mean(),
        "mse_logits": lambda: ((logits - targets) ** 2).mean(),
        "kl": lambda: (
            temperature**2
            * kl_div((logits / temperature).log_softmax(-1), (targets / temperature).softmax(-1), reduction="batchmean")
        ),
    }
    from_labels = {
        "mse": lambda: ((p - one_hot(labels, logits.shape[-1])) ** 2).mean(),
        "cross_entropy": lambda: cross_entropy(logits, labels),
    }
    return alpha * from_teacher[teacher]() + (1 - alpha) * from_labels[label]()


def plain_training(student, targets, data, *, size=8, optimizer="sgd", rate=0.1, steps=None, **loss):
    """Train in the order of the data, an update a batch, and return the gradients of every update as one vector."""
    kind = {"sgd": torch.optim.SGD, "adamw_torch": torch.optim.AdamW}[optimizer]
    settings = {"weight_decay": 0.0, "eps": EPSILON} if optimizer == "adamw_torch" else {}
    update, gradients = kind(student.parameters(), lr=rate, **settings), []
    for start in range(0, len(data["labels"]), size)[:steps]:
        here = part(data, start, start + size)
        update.zero_grad()
        logits = student(**model_inputs(here)).logits
        objective(logits, targets[start : start + size], here["labels"], **loss).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
        update.step()
    return gradients


def assert_same_weights(one, other, tolerance=1e-5):
    for key, value in other.state_dict().items():
        torch.testing.assert_close(one.state_dict()[key], value, rtol=tolerance, atol=tolerance, msg=key)


class Gradients(TrainerCallback):
    """Notes the gradient of every update as one vector."""

    def __init__(self):
        self.found = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.found.append(torch.cat([p.grad.flatten() for p in kwargs["model"].parameters() if p.grad is not None]))


def name_labels(model, names):
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    return model
