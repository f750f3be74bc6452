"""compat.mixed_precision: what it asks of torch, and what it says of simulated devices."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from hfcompress import compat
from hfcompress.compat import mixed_precision

# What torch says of x86 processors: that oneDNN computes bfloat16, AVX-512 BF16, AMX; and what follows.
PROCESSORS = {
    "AVX2": (False, False, False, "no", "10 to 15 times (a forward pass 3 to 4 times) as long"),
    "AVX-512, which oneDNN emulates it with": (True, False, False, "no", "about 2 times as long"),
    "AVX-512 BF16": (True, True, False, "bf16", "natively"),
    "AMX": (True, False, True, "bf16", "natively"),
}


def simulate_processor(monkeypatch, machine, onednn, *features):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    operators = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: onednn)
    monkeypatch.setattr(torch.ops, "mkldnn", operators, raising=False)
    for name, value in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), features, strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda value=value: value)


@pytest.mark.parametrize("name", PROCESSORS)
def test_x86_trains_in_bf16_only_where_it_is_native(name, monkeypatch):
    *answers, expected, reason = PROCESSORS[name]
    simulate_processor(monkeypatch, "x86_64", *answers)
    assert mixed_precision("cpu").name == expected
    assert reason in mixed_precision("cpu").reason


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "no")])
def test_arm_trains_in_bf16_only_where_it_is_native(native, expected, monkeypatch):
    simulate_processor(monkeypatch, "aarch64", native, False, False)
    assert mixed_precision("cpu").name == expected


def test_without_onednn_a_processor_trains_in_float32(monkeypatch):
    simulate_processor(monkeypatch, "arm64", True, False, False)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert mixed_precision("cpu").name == "no"


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_that_only_emulates_bf16_trains_in_fp16(native, expected, monkeypatch):
    # Turing has no bfloat16, but torch says that it is supported where emulation counts.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert mixed_precision("cuda").name == expected


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "no")])
def test_xpu_is_asked_too(native, expected, monkeypatch):
    monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda: native)  # torch 2.6 takes no argument
    assert mixed_precision("xpu").name == expected


@pytest.mark.parametrize("device", ["mps", "another"])
def test_devices_that_cannot_be_asked_train_in_float32(device):
    assert mixed_precision(device).name == "no"


def test_without_a_device_the_accelerator_is_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    simulate_processor(monkeypatch, "x86_64", False, False, False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert compat.current_accelerator() == torch.device("cuda")
    assert mixed_precision().name == "bf16"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)  # a build for CUDA, without a GPU
    assert compat.current_accelerator() is None
    assert mixed_precision().name == "no"


def test_features_are_those_that_torch_finds(monkeypatch):
    simulate_processor(monkeypatch, "x86_64", True, True, False)
    for name in ("_is_avx2_supported", "_is_avx512_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: True)
    monkeypatch.delattr(torch.cpu, "_is_vnni_supported")
    assert compat.processor_features() == ["AVX2", "AVX-512", "AVX-512 BF16"]


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="the limits are for x86")
def test_a_processor_limited_to_avx2_trains_in_float32():
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    program = "from hfcompress.compat import mixed_precision; print(*mixed_precision('cpu'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | limits)
    assert "10 to 15 times (a forward pass 3 to 4 times) as long as float32" in done.stdout, done.stderr
