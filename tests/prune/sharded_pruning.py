"""What several processes find when they prune sharded weights. test_sharded starts it.

Run as ``sharded_pruning.py SIZE FOLDER``, which starts so many processes; they speak gloo. Each writes what it found to
``FOLDER/RANK.pt``. It does not use torchrun: a Trainer would see its processes and wrap the model once more.
"""

import copy
import gc
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from architectures import CAN_SHARD, batch, build
from global_pruning import reference, stack
from pruned_training import train
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.multiprocessing import start_processes
from torch.utils._python_dispatch import TorchDispatchMode

from hfcompress import CompressionError, GradualPruning, KeepSparsity, prune_global_l1, sparsity_report
from hfcompress.models.weights import select_matrices

ROW_SHARDS = (Shard(0),)
AMOUNTS = (0.2, 0.9, 3000)
ROWS = (19, 2, 1, 64, 7)  # of matrices of eleven columns: uneven over two and three processes, or empty
PATTERNS = {
    "bert": {"include": "*", "exclude": "*.layer.0"},  # the head included
    "gpt2": {"include": "score"},
    "deberta-v2": {"exclude": ["*attention*", "pooler"]},
    "albert": {"include": ["classifier", "*ffn*"]},
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def full(tensor):
    values = tensor.detach()
    return values.full_tensor() if isinstance(values, DTensor) else values


def weights_of(model):
    return [full(matrix.weight) for matrix in select_matrices(model).matrices]


def by_rows(model, mesh, placements=ROW_SHARDS, *, whole=()):
    """Shard the weights of a model, except those of these modules, without FSDP2."""
    for name, module in model.named_modules():
        if name not in whole:
            for key, parameter in module.named_parameters(recurse=False):
                module._parameters[key] = nn.Parameter(distribute_tensor(parameter.detach(), mesh, placements))
    return model


def fsdp(model, mesh, root=True):
    """Shard by FSDP2, layer by layer, and the rest with the root or not at all."""
    for module in reversed([*model.modules()]):
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh) if root else model


def outcome(model, sharded, amount, **patterns):
    """Prune a model and the same one sharded; return what differs: zeros or the report."""
    reports = [sparsity_report(sharded, **patterns), prune_global_l1(sharded, amount, **patterns)]
    expected = [sparsity_report(model, **patterns), prune_global_l1(model, amount, **patterns)]
    state, ours = model.state_dict(), {name: full(value) for name, value in sharded.state_dict().items()}
    differing = [name for name in state if not torch.equal(state[name], ours[name])]
    return {"differing": differing, "reports": reports == expected}


def tied(model):
    """Round the weights to one decimal, and set some to zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.round(decimals=1))
    return model


def layers_of(dtypes, seed, ties):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(rows, 11, generator=generator) for rows in ROWS]
    weights = [weight.round(decimals=1) if ties else weight for weight in weights]
    return stack(*(weight.to(dtypes[index % len(dtypes)]) for index, weight in enumerate(weights)))


def prune_stacks(mesh):
    """Matrices of all shapes, dtypes and ties, against the stable sort of the unsharded weights."""
    found = {}
    for dtypes in (*((dtype,) for dtype in DTYPES), DTYPES):
        for ties in (False, True):
            for amount in (0.3, 1, 700):
                model = layers_of(dtypes, 0, ties)
                expected = reference([layer.weight for layer in model], amount)
                for whole in ((), ("1", "3")):
                    sharded = by_rows(copy.deepcopy(model), mesh, whole=whole)
                    report = prune_global_l1(sharded, amount)
                    after = [weight.double().numpy() for weight in weights_of(sharded)]
                    zeros = [int((one == 0).sum()) for one in after]
                    same = all((one == other).all() for one, other in zip(after, expected, strict=True))
                    found[dtypes, ties, amount, whole] = same and [one.zeros for one in report.layers] == zeros
    return found


def prune_architectures(mesh):
    found = {}
    for architecture in ("bert", "gpt2", "deberta-v2", "albert"):
        for ties in (False, True):
            for amount in AMOUNTS:
                model = tied(build(architecture)) if ties else build(architecture)
                if amount == 0.9:
                    prune_global_l1(model, 0.6)
                root = ties or amount != 0.2  # without it, all processes hold the pooler
                found[architecture, ties, amount, root] = outcome(model, fsdp(copy.deepcopy(model), mesh, root), amount)
        sharded = fsdp(build(architecture), mesh)
        found[architecture, "some"] = outcome(build(architecture), sharded, 0.5, **PATTERNS[architecture])
    return found


def prune_after_a_forward_pass(mesh):
    """FSDP2 keeps the full weights of the root after it: what is written to those would be lost."""
    model, sharded = build("bert"), fsdp(build("bert"), mesh)
    with torch.no_grad():
        sharded(**batch(4))
    keep = KeepSparsity()
    found = outcome(model, sharded, 0.5)
    with torch.no_grad():
        logits = sharded(**batch(4)).logits
        keep.read(sharded)  # the full weights of the root are there again
        torch.testing.assert_close(logits, model(**batch(4)).logits)
    return found | {"kept are shards": all(isinstance(weight, DTensor) for _, weight, _ in keep._kept)}


# What is sent


class Sent(TorchDispatchMode):
    """Notes the operations that send something, and their bytes."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "c10d" in function.namespace:
            tensors = [one for one in torch.utils._pytree.tree_leaves(args) if isinstance(one, torch.Tensor)]
            self.calls.append((str(function), sum(one.numel() * one.element_size() for one in tensors)))
        return function(*args, **(kwargs or {}))


def note_what_is_sent(mesh):
    model = by_rows(stack(torch.randn(3000, 500), torch.randn(1000, 500)), mesh)
    with Sent() as sent:
        prune_global_l1(model, 0.5)
    return sent.calls


# What is refused, in all processes alike


def refusal(model, amount=0.5, verb=prune_global_l1, **patterns):
    """Return the sentence, and whether all that this process holds stayed as it was."""
    held = [p.detach() for p in model.parameters()]
    held = [value.to_local() if isinstance(value, DTensor) else value for value in held]
    before = [value.clone() for value in held]
    try:
        verb(model, amount, **patterns)
    except CompressionError as error:
        same = all(torch.equal(one.nan_to_num(7), other.nan_to_num(7)) for one, other in zip(held, before, strict=True))
        return str(error), same
    return None


def refuse(mesh, rank, size):
    def sharded(*placements, mesh=mesh):
        return by_rows(stack(torch.randn(12, 6), torch.randn(6, 12)), mesh, placements or ROW_SHARDS)

    def with_value(value, on, matrix=1):
        model = sharded()
        if rank == on:
            with torch.no_grad():
                model[matrix].weight.to_local()[0, 3] = value
        return model

    def placed(placement, mesh=mesh):
        model = sharded()
        local = torch.randn(6, 6)
        placements = placement if isinstance(placement, tuple) else (placement,)
        model[1].weight = nn.Parameter(DTensor.from_local(local, mesh, placements))
        return model

    flat = init_device_mesh("cpu", (size, 1), mesh_dim_names=("all", "one"))
    unequal = by_rows(stack(torch.randn(12, 6), torch.full((2, 2), 1.0 + rank)), mesh, whole=("1",))
    two_groups = sharded()
    two_groups[1].weight = nn.Parameter(distribute_tensor(torch.randn(6, 12), flat["one"], [Shard(0)]))
    return {
        "NaN in the first": refusal(with_value(float("nan"), 0)),
        "infinity in the last": refusal(with_value(float("-inf"), size - 1)),
        "NaN in a matrix that all hold, in the last": refusal(nan_in_the_last(mesh, rank, size)),
        "amount": refusal(sharded(), 1.5),
        "amount in the last": refusal(sharded(), 1.5 if rank == size - 1 else 0.5),
        "amount of no number in the first": refusal(sharded(), "half" if rank == 0 else 0.5),
        "too many": refusal(sharded(), 145),
        "amounts that differ": refusal(sharded(), 0.5 if rank else 0.4),
        "matrices that differ": refusal(sharded(), 10, exclude="0" if rank else "1"),
        "include in the last": refusal(sharded(), include="no such" if rank == size - 1 else "*"),
        "report of nothing in the last": refusal(
            sharded(),
            verb=lambda model, _: sparsity_report(model, include="no such" if rank == size - 1 else None),
        ),
        "equal nowhere": refusal(unequal),
        "columns": refusal(placed(Shard(1))),
        "partial": refusal(placed(Partial())),
        "partial, kept": refusal(placed(Partial()), verb=lambda model, _: KeepSparsity().read(model)),
        "strided": refusal(placed(_StridedShard(0, split_factor=2))),
        "two axes": refusal(placed((Shard(0), Shard(1)), mesh=flat)),
        "two axes of rows": refusal(placed((Shard(0), Shard(0)), mesh=flat)),
        "two groups": refusal(two_groups),
    }


def nan_in_the_last(mesh, rank, size):
    model = by_rows(stack(torch.randn(12, 6), torch.ones(2, 2)), mesh, whole=("1",))
    if rank == size - 1:
        with torch.no_grad():
            model[1].weight[0, 0] = float("nan")
    return model


# In a stock Trainer


def begin_with_zeros_in_one_process(mesh):
    """Return what KeepSparsity warns of in this process when training begins."""
    model = stack(torch.ones(12, 6))
    with torch.no_grad():
        model[0].weight[0] = 0
    by_rows(model, mesh)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        args, state = SimpleNamespace(auto_find_batch_size=False), SimpleNamespace(train_batch_size=2)
        KeepSparsity().on_train_begin(args, state, None, model=model)
    return [str(one.message) for one in caught]


def prune_in_training(mesh, folder):
    """Return the log and the zeros of a gradual pruning, of the model as it is and sharded."""
    found = []
    for sharded in (False, True):
        model = build("bert")
        if sharded:
            fsdp(model, mesh)
        gradual = GradualPruning(0.6, start=0.2, end=0.8, every=0.2, schedule="linear")
        trainer = train(model, folder, gradual, max_steps=10, max_grad_norm=0.0, optim="sgd")
        log = [entry for entry in trainer.state.log_history if set(entry) == {"sparsity", "epoch", "step"}]
        report = sparsity_report(model)
        found.append({"log": log, "report": report, "zeros": sum(int((w == 0).sum()) for w in weights_of(model))})
    return found


def prune_replicated(mesh):
    """HSDP: two times two processes."""
    model = build("bert")
    found = {"bert": outcome(model, fsdp(build("bert"), mesh), 0.5)} if CAN_SHARD else {}
    stacked = layers_of((torch.float32,), 0, ties=True)
    for amount in (0.3, 700):
        sharded = by_rows(copy.deepcopy(stacked), mesh, (Replicate(), Shard(0)), whole=("3",))
        found[amount] = outcome(copy.deepcopy(stacked), sharded, amount)
    model = by_rows(stack(torch.randn(12, 6)), mesh, (Replicate(), Shard(0)))
    if dist.get_rank() == 2:
        with torch.no_grad():
            model[0].weight.to_local()[0, 0] = float("nan")
    return found, refusal(model)


def main(rank, size, folder):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    found = {}
    if size == 4:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
        found["replicated"], found["replicated refused"] = prune_replicated(mesh)
    else:
        mesh = init_device_mesh("cpu", (size,))
        found["stacks"] = prune_stacks(mesh)
        found["sent"] = note_what_is_sent(mesh)
        found["refused"] = refuse(mesh, rank, size)
        found["warned"] = begin_with_zeros_in_one_process(mesh)
        if CAN_SHARD:
            found["architectures"] = prune_architectures(mesh)
            found["after a forward pass"] = prune_after_a_forward_pass(mesh)
            found["training"] = prune_in_training(mesh, folder / str(rank))
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()
    processes, out = int(sys.argv[1]), Path(sys.argv[2])
    start_processes(main, (processes, out), nprocs=processes, start_method="fork")  # what is imported, is in each
