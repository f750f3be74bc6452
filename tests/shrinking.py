"""What the tests of surgery and of shrinking share: inputs, logits, and what must hold of a refused call."""

import copy

import pytest
import torch
from architectures import SHRINKABLE, WITH_NEURONS, batch, rows, same_bits, state_of
from transformers.pytorch_utils import Conv1D

from hfcompress import CompressionError, prune_structured

LABELLED = rows(batch(16, 10, num_labels=2))
everywhere = pytest.mark.parametrize("architecture", SHRINKABLE)
with_neurons = pytest.mark.parametrize("architecture", WITH_NEURONS)


def inputs(examples=5, length=10):
    data = batch(examples, length)
    data.pop("labels")
    return data


@torch.no_grad()
def logits(model):
    return copy.deepcopy(model).eval()(**inputs()).logits


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def silence(model, group, removed):
    """Zero the weights that consume heads or neurons, by hand."""
    for part in group.slices:
        if part.outputs:
            continue
        module = model.get_submodule(part.module)
        weight = module.weight.data if isinstance(module, Conv1D) else module.weight.data.T
        for unit in removed:
            weight[unit * part.size : (unit + 1) * part.size] = 0


def refused(model, match, **settings):
    before, config, mode = state_of(model), copy.deepcopy(model.config.to_dict()), model.training
    with pytest.raises(CompressionError, match=match):
        prune_structured(model, **settings)
    assert same_bits(before, model.state_dict())
    assert model.config.to_dict() == config
    assert model.training is mode
