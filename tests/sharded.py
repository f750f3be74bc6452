"""What test_training runs through torchrun: a loop over a model that FSDP2 shards over two processes.

``Trainer(fsdp=...)`` on a CPU silently runs DDP, so the loop is written out. The first process writes what it found to
the file that is named.
"""

import sys

import torch
from architectures import batch, build
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hfcompress import CompressionError, KeepSparsity, prune_global_l1
from hfcompress.layers import select_matrices


def zeros_of(model):
    weights = {matrix.name: matrix.weight.detach() for matrix in select_matrices(model).matrices}
    assert all(isinstance(weight, DTensor) for weight in weights.values())
    return {name: weight.full_tensor() == 0 for name, weight in weights.items()}


def run(architecture, keep_zeros):
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
    try:
        prune_global_l1(model, 0.6)
        refusal = None
    except CompressionError as error:
        refusal = str(error)
    return {
        "zeros": sum(int(mask.sum()) for mask in before.values()),
        "lost": sum(int((mask & ~after[name]).sum()) for name, mask in before.items()),
        "refusal": refusal,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    found = {(name, keep): run(name, keep) for name in ("bert", "gpt2") for keep in (True, False)}
    if torch.distributed.get_rank() == 0:
        torch.save(found, sys.argv[1])
    torch.distributed.destroy_process_group()
