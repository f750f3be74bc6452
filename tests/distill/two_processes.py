"""What takes two processes to show: shared caching, distillation, sharded weights. test_two_processes runs it once.

Run as ``accelerate launch --multi_gpu --num_processes 2 two_processes.py FOLDER``, which starts torchrun; without GPUs
the processes speak gloo. The first one writes what it found to ``FOLDER/two_processes.pt``.
"""

import gc
import sys
from pathlib import Path

import torch
from architectures import CAN_SHARD, arguments, batch, build, rows, texts, word_tokenizer
from datasets import Dataset
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

import hfcompress.distill.logits_cache
from hfcompress import (
    DistillationArguments,
    DistillationTrainer,
    KeepSparsity,
    cache_teacher_logits,
    prune_global_l1,
    sparsity_report,
)
from hfcompress.models.weights import select_matrices

# Distillation: the same in one process and in two


UPDATE = 8  # examples of a full update, over all processes and accumulated batches
# name: (examples, accumulated batches, step of the checkpoint to resume from). Streamed data are read by the first
# process, which hands the others their part (accelerate's dispatch_batches).
SCENARIOS = {
    "17 examples": (17, 1, None),
    "24 examples": (24, 1, None),
    "19 examples resumed": (19, 1, 1),
    "21 examples accumulated and resumed": (21, 2, 1),
    "19 examples of which 13 are drawn": (19, 1, None),
    "24 examples streamed": (24, 1, None),
    "19 examples streamed": (19, 1, None),
    "19 examples streamed, accumulated": (19, 2, None),
    "19 examples with layers, accumulated and resumed": (19, 2, 1),
    "21 examples weighted, accumulated and resumed": (21, 2, 1),
    "19 examples weighted, streamed, accumulated": (19, 2, None),
}
LAYERS = {"hidden_weight": 0.3, "relation_weight": 0.7}  # with a wider teacher: a projection learns beside the student
WEIGHTED = {"class_weights": [0.5, 3.0, 1.25], "label_loss": "cross_entropy"}


class Drawing(DistillationTrainer):
    """Trains on the first thirteen examples."""

    def _get_train_sampler(self, *args):
        return range(13)


class Gradients(TrainerCallback):
    """Notes the norm of the whole gradient before each update."""

    def __init__(self):
        self.norms = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        gradients = [p.grad.flatten() for p in kwargs["model"].parameters() if p.grad is not None]
        self.norms.append(float(torch.cat(gradients).norm()))


def distill(scenario, folder, processes):
    """Train two epochs and return gradient norms, weights, metrics and the number of zeros kept."""
    examples, accumulated, resume_from = SCENARIOS[scenario]
    with_layers = "layers" in scenario
    wider = {"hidden_size": 48, "num_attention_heads": 6} if with_layers else {}
    student, teacher = build(num_labels=3, seed=1), build(num_labels=3, seed=2, layers=3, **wider)
    prune_global_l1(student, 0.5)
    folder = Path(folder) / scenario.replace(" ", "_")

    data = batch(examples, num_labels=3)
    if "weighted" in scenario:
        data["weight"] = torch.linspace(0, 2, examples)
    data = rows(data)
    train_data = Dataset.from_list(data).to_iterable_dataset() if "streamed" in scenario else data

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
            max_steps=steps,
            save_strategy="steps" if resume_from else "no",
            save_steps=resume_from or 1,
            ddp_timeout=60,
            **(LAYERS if with_layers else {}),
            **(WEIGHTED if "weighted" in scenario else {}),
        )
        callbacks = [KeepSparsity(), gradients]
        kind = Drawing if "drawn" in scenario else DistillationTrainer
        return kind(
            model=model, args=args, teacher=teacher, train_dataset=train_data, eval_dataset=data, callbacks=callbacks
        )

    gradients = Gradients()
    checkpoint = None
    if resume_from:
        trainer(student, resume_from, gradients).train()
        student, checkpoint = build(num_labels=3, seed=3), str(folder / f"checkpoint-{resume_from}")
    final = trainer(student, 2 * -(-examples // UPDATE), gradients)  # a stream has no length of its own
    final.train(resume_from_checkpoint=checkpoint)
    metrics = {key: value for key, value in final.evaluate().items() if "second" not in key and "time" not in key}
    return {
        "norms": gradients.norms,
        "weights": {key: value.clone() for key, value in student.state_dict().items()},
        "metrics": metrics,
        "zeros": sparsity_report(student).zeros,
    }


# The teacher's logits: each process computes what the other does not


def share(folder):
    """Return how many forward passes each process took, and the logits that each has in the end."""
    hfcompress.distill.logits_cache._SHARD = 4
    teacher, rows = build(num_labels=3), []
    teacher.register_forward_hook(lambda module, inputs, output: rows.append(len(output.logits)))
    settings = {"processing_class": word_tokenizer(), "cache_dir": folder / "cache"}
    logits = torch.tensor(cache_teacher_logits(teacher, texts(), **settings)["teacher_logits"])
    found = [None, None]
    torch.distributed.all_gather_object(found, (sum(rows), logits))
    return found


# Sharded weights. ``Trainer(fsdp=...)`` on a CPU silently runs DDP, so the loop is written out.


def zeros_of(model):
    weights = {matrix.name: matrix.weight.detach() for matrix in select_matrices(model).matrices}
    assert all(isinstance(weight, DTensor) for weight in weights.values())
    return {name: weight.full_tensor() == 0 for name, weight in weights.items()}


def shard(architecture, keep_zeros):
    """Train a pruned, sharded model for five steps; return how many zeros there were and how many are lost."""
    model = build(architecture)
    prune_global_l1(model, 0.5)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.bert.encoder.layer if architecture == "bert" else model.transformer.h:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    before = zeros_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    keep = KeepSparsity()
    keep.read(model)
    inputs = batch(8, seed=torch.distributed.get_rank())
    for _ in range(5):
        model(**inputs).loss.backward()
        optimizer.step()
        if keep_zeros:
            keep.apply()
        optimizer.zero_grad()
    after = zeros_of(model)
    return {
        "zeros": sum(int(mask.sum()) for mask in before.values()),
        "lost": sum(int((mask & ~after[name]).sum()) for name, mask in before.items()),
    }


def main(folder):
    found = {
        "shared": share(folder),  # first: nothing has set up the processes' group yet
        "distilled": {scenario: distill(scenario, folder, processes=2) for scenario in SCENARIOS},
        "sharded": {one: shard(*one) for one in (("bert", True), ("gpt2", True), ("bert", False)) if CAN_SHARD},
    }
    if torch.distributed.get_rank() == 0:
        torch.save(found, folder / "two_processes.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()  # every Trainer collects garbage; what the imports made need not be looked at each time
    main(Path(sys.argv[1]))
