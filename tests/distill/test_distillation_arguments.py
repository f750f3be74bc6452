"""DistillationArguments: what is refused, and how they are read."""

import json
import math
import warnings

import pytest
import torch
from architectures import arguments
from transformers import HfArgumentParser

import hfcompress.distill.arguments
from hfcompress import CompressionError, DistillationArguments, compat

SLOW = compat.MixedPrecision("no", "bf16 is slow here")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("alpha", value) for value in (-0.1, 1.1, float("nan"))),
        *(("temperature", value) for value in (0.0, -1.0, float("nan"), float("inf"))),
        ("teacher_loss", "cosine"),
        ("label_loss", "kl"),
        ("teacher_dtype", "int8"),
    ],
)
def test_arguments_out_of_range_are_refused_by_value(name, value, tmp_path):
    with pytest.raises(CompressionError, match=f"{name}={value!r}"):
        arguments(DistillationArguments, tmp_path, **{name: value})


@pytest.mark.parametrize("given", ["[1, 2]", "no json", {"a": 1}, {1.9: 1}, 3])
def test_a_layer_map_that_is_not_a_map_is_refused_by_value(given, tmp_path):
    with pytest.raises(CompressionError, match="layer_map="):
        DistillationArguments(output_dir=str(tmp_path), layer_map=given)


@pytest.mark.parametrize("name", ["hidden_weight", "relation_weight"])
@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan, "much"])
def test_weights_out_of_range_are_refused_by_value(name, value, tmp_path):
    with pytest.raises(CompressionError, match=f"{name}={value!r}"):
        DistillationArguments(output_dir=str(tmp_path), **{name: value})


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_relation_heads_that_are_not_a_count_are_refused(value, tmp_path):
    with pytest.raises(CompressionError, match=f"relation_heads={value}"):
        DistillationArguments(output_dir=str(tmp_path), relation_heads=value)


def test_arguments_are_read_from_a_command_line_and_json(tmp_path):
    (args,) = HfArgumentParser(DistillationArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--alpha", "0.7", "--hidden_weight", "1", "--layer_map", '{"0": 0, "2": 6}']
    )
    assert args.layer_map == {0: 0, 2: 6}
    assert json.loads(args.to_json_string())["layer_map"] == {"0": 0, "2": 6}
    again = DistillationArguments(output_dir=str(tmp_path), layer_map=json.loads(args.to_json_string())["layer_map"])
    assert again.layer_map == args.layer_map


@pytest.fixture
def slow_bfloat16(monkeypatch):
    monkeypatch.setattr(hfcompress.distill.arguments, "mixed_precision", lambda device: SLOW)


@pytest.mark.parametrize("setting", [{"bf16": True}, {"bf16_full_eval": True}, {"teacher_dtype": "bfloat16"}])
def test_bfloat16_on_a_processor_without_it_warns(setting, slow_bfloat16, tmp_path):
    ((name, value),) = setting.items()
    with pytest.warns(UserWarning, match=f"^{name}={value!r} on the processor: bf16 is slow here.$") as warned:
        DistillationArguments(output_dir=str(tmp_path), use_cpu=True, **setting)
    assert len(warned) == 1
    assert warned[0].filename == __file__  # the caller's line


@pytest.mark.parametrize("setting", [{}, {"teacher_dtype": "float16"}])
def test_other_precisions_do_not_warn(setting, slow_bfloat16, tmp_path):
    DistillationArguments(output_dir=str(tmp_path), use_cpu=True, **setting)


def test_native_bfloat16_does_not_warn(monkeypatch, tmp_path):
    native = compat.MixedPrecision("bf16", "native")
    monkeypatch.setattr(hfcompress.distill.arguments, "mixed_precision", lambda device: native)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DistillationArguments(output_dir=str(tmp_path), use_cpu=True, bf16=True, teacher_dtype="bfloat16")


def test_an_accelerator_does_not_warn(slow_bfloat16, monkeypatch, tmp_path):
    monkeypatch.setattr(DistillationArguments, "device", torch.device("cuda"))
    DistillationArguments(output_dir=str(tmp_path), teacher_dtype="bfloat16")
