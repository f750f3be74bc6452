"""Trainings that test_distillation runs in one process, and through torchrun in two: both must come to the same.

Run as ``python -m torch.distributed.run --nproc-per-node 2 two_processes.py FOLDER SCENARIO...``; the first process
writes what it found to ``FOLDER/two_processes.pt``.
"""

import gc
import sys
from pathlib import Path

import torch
from architectures import arguments, batch, build, rows
from transformers import TrainerCallback

from hfcompress import DistillationArguments, DistillationTrainer, KeepSparsity, prune_global_l1, sparsity_report

UPDATE = 8  # examples of a full update, over all processes and accumulated batches
# name: (examples, accumulated batches, step of the checkpoint to resume from)
SCENARIOS = {
    "17 examples": (17, 1, None),
    "19 examples": (19, 1, None),
    "19 examples accumulated": (19, 2, None),
    "21 examples accumulated": (21, 2, None),
    "24 examples": (24, 1, None),
    "19 examples resumed": (19, 1, 1),
    "21 examples accumulated and resumed": (21, 2, 1),
    "19 examples with layers, accumulated and resumed": (19, 2, 1),
}
LAYERS = {"hidden_weight": 0.3, "relation_weight": 0.7}  # with a wider teacher: a projection learns beside the student


class Gradients(TrainerCallback):
    """Notes the norm of the whole gradient before each update."""

    def __init__(self):
        self.norms = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        gradients = [p.grad.flatten() for p in kwargs["model"].parameters() if p.grad is not None]
        self.norms.append(float(torch.cat(gradients).norm()))


def run(scenario, folder, processes):
    """Train two epochs and return gradient norms, weights, metrics and the number of zeros kept."""
    examples, accumulated, resume_from = SCENARIOS[scenario]
    with_layers = "layers" in scenario
    wider = {"hidden_size": 48, "num_attention_heads": 6} if with_layers else {}
    student, teacher = build(num_labels=3, seed=1), build(num_labels=3, seed=2, layers=3, **wider)
    prune_global_l1(student, 0.5)
    folder = Path(folder) / scenario.replace(" ", "_")

    def trainer(model, steps, gradients):
        args = arguments(
            DistillationArguments,
            folder,
            per_device_train_batch_size=UPDATE // processes // accumulated,
            per_device_eval_batch_size=UPDATE // processes,
            gradient_accumulation_steps=accumulated,
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0.0,
            num_train_epochs=2,
            max_steps=steps,
            save_strategy="steps" if resume_from else "no",
            save_steps=resume_from or 1,
            ddp_timeout=60,
            **(LAYERS if with_layers else {}),
        )
        data = rows(batch(examples, num_labels=3))
        callbacks = [KeepSparsity(), gradients]
        return DistillationTrainer(
            model=model, args=args, teacher=teacher, train_dataset=data, eval_dataset=data, callbacks=callbacks
        )

    gradients = Gradients()
    checkpoint = None
    if resume_from:
        trainer(student, resume_from, gradients).train()
        student, checkpoint = build(num_labels=3, seed=3), str(folder / f"checkpoint-{resume_from}")
    final = trainer(student, -1, gradients)
    final.train(resume_from_checkpoint=checkpoint)
    metrics = {key: value for key, value in final.evaluate().items() if "second" not in key and "time" not in key}
    return {
        "norms": gradients.norms,
        "weights": {key: value.clone() for key, value in student.state_dict().items()},
        "metrics": metrics,
        "zeros": sparsity_report(student).zeros,
    }


if __name__ == "__main__":
    directory, *names = sys.argv[1:]
    torch.set_num_threads(1)
    gc.freeze()  # every Trainer collects garbage; what the imports made need not be looked at each time
    found = {name: run(name, directory, processes=2) for name in names}
    if torch.distributed.get_rank() == 0:
        torch.save(found, Path(directory) / "two_processes.pt")
    torch.distributed.destroy_process_group()
