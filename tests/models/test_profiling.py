"""FLOPs and peak memory against arithmetic by hand, and memory against torch's own profiler."""

import gc
import os
import platform
import subprocess
import sys
import weakref

import pytest
import torch
from architectures import batch, build
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import MixtralConfig, MixtralForSequenceClassification
from transformers.integrations import moe

from hfcompress.models.inputs import dummy_inputs
from hfcompress.models.profiling import count_flops, peak_bytes
from hfcompress.models.tensors import memory_bytes

ROWS, WIDE, NARROW = 7, 300, 50


def linear(inputs, outputs):
    return inputs * outputs + outputs


def test_a_linear_layer_takes_its_weights_inputs_and_outputs():
    assert peak_bytes(nn.Linear(NARROW, WIDE), {"input": torch.ones(ROWS, NARROW)}) == 4 * (
        linear(NARROW, WIDE) + ROWS * NARROW + ROWS * WIDE
    )


def test_half_precision_takes_half():
    inputs = torch.ones(ROWS, NARROW)
    full = peak_bytes(nn.Linear(NARROW, WIDE), {"input": inputs})
    assert 2 * peak_bytes(nn.Linear(NARROW, WIDE).bfloat16(), {"input": inputs.bfloat16()}) == full


def test_what_was_freed_is_not_counted_at_the_peak():
    layers = [nn.Linear(NARROW, WIDE), nn.ReLU(), nn.Linear(WIDE, NARROW), nn.ReLU(), nn.Linear(NARROW, WIDE)]
    weights = 2 * linear(NARROW, WIDE) + linear(WIDE, NARROW)
    # Worst after the first ReLU, while its input is still there; and again after the last layer with less.
    wanted = 4 * (weights + ROWS * NARROW + 2 * ROWS * WIDE)
    assert peak_bytes(nn.Sequential(*layers), {"input": torch.ones(ROWS, NARROW)}) == wanted


def test_views_and_changes_in_place_take_nothing():
    layers = [nn.Linear(NARROW, WIDE), nn.ReLU(inplace=True), nn.Flatten(0), nn.Unflatten(0, (WIDE, ROWS))]
    wanted = 4 * (linear(NARROW, WIDE) + ROWS * NARROW + ROWS * WIDE)
    assert peak_bytes(nn.Sequential(*layers), {"input": torch.ones(ROWS, NARROW)}) == wanted


def test_it_grows_with_the_batch_and_is_the_same_again():
    model = build("bert")
    small, large = ({k: v for k, v in batch(n, 32).items() if k != "labels"} for n in (4, 8))
    first = peak_bytes(model, small)
    assert memory_bytes(model.parameters()) < first < peak_bytes(model, large) < 2 * first
    assert peak_bytes(model, small) == first


def test_a_classifier_takes_what_the_profiler_saw():
    model = build("bert").eval()
    inputs = {k: v for k, v in batch(32, 64).items() if k != "labels"}
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        model(**inputs)
    live = peak = 0
    for event in sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    held = memory_bytes(model.parameters()) + sum(tensor.nbytes for tensor in inputs.values())
    assert peak > 0
    assert peak_bytes(model, inputs) - held == pytest.approx(peak, rel=0.1)  # the profiler sees scratch memory too


def test_shared_memory_counts_once_and_a_view_as_all_behind_it():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.detach())
    assert memory_bytes([*model.parameters(), *model.buffers()]) == 64
    model[1].weight = nn.Parameter(torch.zeros(100, 4)[:4])
    assert memory_bytes([*model.parameters(), *model.buffers()]) == 64 + 1600
    model.register_buffer("table", torch.zeros(10), persistent=False)
    assert memory_bytes([*model.parameters(), *model.buffers()]) == 64 + 1600 + 40


def test_nothing_is_held_afterwards():
    model, inputs = nn.Linear(4, 4), torch.ones(2, 4)
    peak_bytes(model, {"input": inputs})
    weights = weakref.ref(model.weight)
    del model
    gc.collect()
    assert weights() is None


@pytest.mark.parametrize("products", ["default", "fallback", "batched_mm", "eager"])
def test_the_flops_of_experts_are_counted_however_they_are_run(products, monkeypatch):
    """Neither torch's product of all experts at once nor transformers' fallback for it is counted by torch."""
    hidden, layers, tokens, experts_of_a_token = 32, 2, 12, 2
    if products == "fallback":  # from transformers 5.3, where torch's does not run; nothing else is run before
        monkeypatch.setattr(moe, "_can_use_grouped_mm", lambda *_: False, raising=False)

    def flops(width):
        config = MixtralConfig(
            vocab_size=100,
            hidden_size=hidden,
            intermediate_size=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
            num_experts_per_tok=experts_of_a_token,
        )
        if products in ("batched_mm", "eager"):
            config._experts_implementation = products
        model = MixtralForSequenceClassification(config)
        return count_flops(model, dummy_inputs(model, tokens))

    matrices = 3  # gate, up and down
    assert flops(64) - flops(16) == 2 * tokens * experts_of_a_token * matrices * hidden * (64 - 16) * layers


FAULTS = """
import resource, statistics, sys
import torch
from transformers import BertConfig, BertForSequenceClassification
import hfcompress as hfc
from hfcompress.search.clock import Clock

faults, shape = [], dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=99)
model, small = (BertForSequenceClassification(BertConfig(**shape, intermediate_size=n)) for n in (4096, 64))
now = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
model.register_forward_pre_hook(lambda *_: faults.append(-now()))
model.register_forward_hook(lambda *_: faults.append(faults.pop() + now()))
if sys.argv[1] == "compare":
    hfc.compare({"full": model, "small": small}, length=32)
elif sys.argv[1] == "clock":
    Clock(model, None, "torch", 16, 32).share(small)
else:
    torch.set_grad_enabled(False)
    for _ in range(20):
        model.eval()(input_ids=torch.ones(16, 32, dtype=torch.long))
print(int(statistics.median(faults)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do not wait for a larger block")
def test_a_timed_model_finds_the_memory_that_it_freed():
    """Layers of 8 MiB: 4096 page faults a pass if they come from the system each time."""

    def count(how):
        tuned = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")  # which fix what a large block would change
        environment = {name: value for name, value in os.environ.items() if not name.startswith(tuned)}
        command = [sys.executable, "-W", "ignore", "-c", FAULTS, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)

    assert count("alone") > 5
    assert count("compare") <= 5
    assert count("clock") <= 5
