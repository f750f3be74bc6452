"""What the stock Trainer does to the gradient of a classifier under accumulation, and what puts it right.

The pages say this, so it is measured: one step of SGD without momentum or clipping is the gradient times the rate.
"""

import copy

import pytest
import torch
from architectures import build
from transformers import Trainer, TrainingArguments

import hfcompress as hfc

ROWS = [{"input_ids": [2, 5 + n, 7, 3], "labels": n % 2} for n in range(8)]
SETTINGS = {"max_steps": 1, "learning_rate": 1.0, "lr_scheduler_type": "constant", "optim": "sgd", "max_grad_norm": 0.0}
SETTINGS |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "save_strategy": "no"}
SETTINGS |= {"report_to": "none", "disable_tqdm": True, "use_cpu": True}


def gradient_share(model, make):
    """Return how many times the gradient of the mean loss of all rows a step of a trainer is."""
    batch = {name: torch.tensor([row[name] for row in ROWS]) for name in ROWS[0]}
    expected = copy.deepcopy(model)
    expected(**batch).loss.backward()
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    make(model).train()
    pairs = [(before[name] - one.detach(), expected.get_parameter(name).grad) for name, one in model.named_parameters()]
    step, gradient = (torch.cat([part.flatten() for part in parts]) for parts in zip(*pairs, strict=True))
    assert torch.cosine_similarity(step, gradient, dim=0) > 0.999
    return float(step.norm() / gradient.norm())


def stock(model):
    return Trainer(model=model, args=TrainingArguments("unused", **SETTINGS), train_dataset=ROWS)


def stock_put_right(model):
    trainer = stock(model)
    trainer.model_accepts_loss_kwargs = False
    trainer.accelerator.gradient_accumulation_steps = 1  # transformers 5.2 to 5.5 alone need it
    return trainer


def ours(model):
    args = hfc.DistillationArguments("unused", alpha=0.0, label_loss="cross_entropy", **SETTINGS)
    return hfc.DistillationTrainer(model, args, train_dataset=ROWS)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra"])
@pytest.mark.parametrize(("make", "share"), [(stock, 4.0), (stock_put_right, 1.0), (ours, 1.0)])
def test_the_gradient_of_a_step_that_accumulates(make, share, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert gradient_share(build(name), make) == pytest.approx(share, rel=1e-3)
