"""Sizes, FLOPs and quality against independent counts."""

import copy
import json
import math

import pytest
import torch
from architectures import ARCHITECTURES, batch, build, same_bits, state_of
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from transformers import BatchEncoding

from hfcompress import Comparison, CompressionError, Measurement, compare, measure, prune_global_l1
from hfcompress.layers import select_matrices
from hfcompress.measure import wilson_interval

DATA = batch(19, num_labels=5)
INPUTS = {key: value for key, value in DATA.items() if key != "labels"}
QUICK = {"batch_size": 8, "repeats": 2}
everywhere = pytest.mark.parametrize("architecture", ARCHITECTURES)


@everywhere
@pytest.mark.parametrize("num_labels", [2, 5])
def test_size_is_what_can_be_counted_and_what_is_written(architecture, num_labels, tmp_path):
    model = build(architecture, num_labels)
    prune_global_l1(model, 0.25)
    result = measure(model)
    model.save_pretrained(tmp_path)
    file = (tmp_path / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(file[:8], "little")
    assert result.bytes == len(file) - header
    assert result.parameters == sum(parameter.numel() for parameter in model.parameters())
    matrices = [matrix.weight for matrix in select_matrices(model).matrices]
    assert result.zeros == sum(int((weight == 0).sum()) for weight in matrices)
    assert result.sparsity == result.zeros / sum(weight.numel() for weight in matrices)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_half_the_bytes(dtype):
    assert 2 * measure(build("bert").to(dtype)).bytes == measure(build("bert")).bytes


def test_a_shared_parameter_counts_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    result = measure(model)
    assert (result.parameters, result.bytes) == (16, 64)


def test_without_inputs_only_the_size_is_measured():
    result = measure(build("bert"))
    missing = ["flops", "latency_ms", "latency_iqr_ms", "batch_size", "examples", "accuracy", "accuracy_interval"]
    assert [getattr(result, name) for name in [*missing, "cross_entropy"]] == [None] * 8


def eager_flops(model, inputs):
    eager = copy.deepcopy(model).eval().requires_grad_(False)
    eager.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        eager(**inputs)
    return counter.get_total_flops()


@everywhere
def test_flops_are_those_of_written_out_attention(architecture):
    model = build(architecture, 5)
    first = {key: value[:8] for key, value in INPUTS.items()}
    assert measure(model, INPUTS, **QUICK).flops == eager_flops(model, first)


def test_flops_count_attention_which_grows_with_the_square_of_the_length():
    model = build("bert")
    lengths = [{"input_ids": torch.full((1, length), 7)} for length in (8, 16, 32)]
    short, middle, long = (measure(model, inputs, repeats=1).flops for inputs in lengths)
    # a + b n + c n^2 with a for pooler and head; 2 layers, 2 products of 2 * n * n * 32
    assert (long - middle) - 2 * (middle - short) == 2 * 2 * 2 * 32 * (32**2 - 3 * 16**2 + 2 * 8**2)


def test_zeros_are_multiplied_like_other_numbers():
    model = build("bert", 5)
    before = measure(model, INPUTS, **QUICK).flops
    prune_global_l1(model, 0.9)
    assert measure(model, INPUTS, **QUICK).flops == before


@everywhere
def test_quality_is_that_of_a_plain_loop_over_all_examples(architecture):
    model = build(architecture, 5, dropout=True)
    result = measure(model, DATA, **QUICK)
    with torch.no_grad():
        logits = torch.stack(
            [model.eval()(**{k: v[i : i + 1] for k, v in INPUTS.items()}).logits[0] for i in range(19)]
        )
    correct = int((logits.argmax(-1) == DATA["labels"]).sum())
    assert (result.examples, result.batch_size) == (19, 8)
    assert result.accuracy == correct / 19
    assert result.cross_entropy == pytest.approx(float(cross_entropy(logits, DATA["labels"])), rel=1e-5)
    assert result.accuracy_interval == pytest.approx(wilson_interval(correct, 19))


def test_without_labels_there_is_no_accuracy():
    result = measure(build("bert", 5), INPUTS, **QUICK)
    assert (result.examples, result.accuracy, result.cross_entropy) == (None, None, None)
    assert result.flops > 0


def test_times_are_positive_and_the_batch_is_no_larger_than_the_data():
    result = measure(build("bert", 5), INPUTS, batch_size=100, repeats=3)
    assert result.batch_size == 19
    assert result.latency_ms > 0
    assert result.latency_iqr_ms >= 0
    once = measure(build("bert", 5), INPUTS, batch_size=1, repeats=1)
    assert (once.batch_size, once.latency_iqr_ms) == (1, 0)
    assert once.latency_ms > 0


@given(st.data())
def test_the_interval_is_that_of_scipy(data):
    trials = data.draw(st.integers(1, 10_000))
    successes = data.draw(st.integers(0, trials))
    wanted = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_before(training):
    model = build("bert", 5, dropout=True).train(training)
    model.bert.pooler.train(not training)
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    modes, before = [module.training for module in model.modules()], state_of(model)
    implementation, random_state = model.config._attn_implementation, torch.get_rng_state()
    measure(model, DATA, **QUICK)
    assert [module.training for module in model.modules()] == modes
    assert same_bits(model.state_dict(), before)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model.classifier.weight.grad, torch.ones_like(model.classifier.weight))
    assert model.config._attn_implementation == implementation
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_mode_is_restored_where_the_model_fails():
    model = build("bert").train()
    with pytest.raises(IndexError):
        measure(model, {"input_ids": torch.full((2, 3), 10_000)}, repeats=1)
    assert all(module.training for module in model.modules())


def test_inputs_may_come_straight_from_a_tokenizer():
    model = build("bert", 5)
    found = measure(model, BatchEncoding(dict(DATA)), **QUICK)
    assert found.accuracy == measure(model, DATA, **QUICK).accuracy


def test_models_are_measured_as_they_are_alone():
    models = {"one": build("bert", 5), "other": build("gpt2", 5)}
    both = compare(models, DATA, **QUICK)
    assert list(both.rows) == ["one", "other"]
    for name, model in models.items():
        alone = measure(model, DATA, **QUICK)
        for field in ("parameters", "bytes", "flops", "accuracy", "accuracy_interval", "cross_entropy", "examples"):
            assert getattr(both.rows[name], field) == getattr(alone, field), field


def test_each_model_may_have_inputs_of_its_own():
    models = {"wide": build("bert", 5), "narrow": build("bert", 5, vocab_size=20)}
    own = {"wide": DATA, "narrow": batch(11, length=4, num_labels=5, vocabulary=20)}
    result = compare(models, own, **QUICK)
    assert (result.rows["wide"].examples, result.rows["narrow"].examples) == (19, 11)
    assert result.rows["narrow"].flops == measure(models["narrow"], own["narrow"], **QUICK).flops


@pytest.mark.parametrize(
    ("models", "inputs", "numbers", "message"),
    [
        ({}, None, {}, "models is empty"),
        ({"a": "bert"}, DATA, {"batch_size": 0}, "batch_size=0"),
        ({"a": "bert"}, DATA, {"repeats": 0}, "repeats=0"),
        ({"a": "bert"}, {}, {}, "inputs for 'a'"),
        ({"a": "bert"}, {"labels": DATA["labels"]}, {}, "inputs for 'a'"),
        ({"a": "bert"}, {key: value[:0] for key, value in DATA.items()}, {}, "inputs for 'a'.*'input_ids': 0"),
        ({"a": "bert"}, DATA | {"labels": DATA["labels"][:3]}, {}, "inputs for 'a'.*'labels': 3"),
        ({"a": "bert"}, {"input_ids": DATA["input_ids"].tolist()}, {}, "inputs for 'a'"),
        ({"a": "bert", "b": "bert"}, {"a": DATA}, {}, "inputs has none for 'b'; it has 'a'"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(models, inputs, numbers, message):
    with pytest.raises(CompressionError, match=message):
        compare({name: build(kind, 5) for name, kind in models.items()}, inputs, **numbers)


ROWS = Comparison(
    {
        "BERT": Measurement(
            22_700_000, 0, 0.0, 90_800_000, 5_000_000_000, 20.0, 1.0, 16, 800, 0.84, (0.813, 0.864), 0.4
        ),
        "pruned": Measurement(22_700_000, 2, 0.2, 90_800_000),
        "small": Measurement(100, 0, 0.0, 400, 10, 5.0, 1.0, 16),
    }
)


def test_printing_shows_an_aligned_row_a_model():
    lines = str(ROWS).splitlines()
    squeezed = [" ".join(line.split()) for line in lines]
    assert len(lines) == 4
    assert squeezed[0] == "model parameters sparsity MB GFLOPs ms a batch speed-up accuracy 95 % interval"
    assert squeezed[1] == "BERT 22,700,000 0.0% 90.8 5.00 20.0 1.00x 0.840 0.813 to 0.864"
    assert squeezed[2] == "pruned 22,700,000 20.0% 90.8 - - - - -"
    assert squeezed[3] == "small 100 0.0% 0.0 0.00 5.0 4.00x - -"
    assert len({len(line) for line in lines}) == 1


def test_columns_of_what_was_not_measured_are_left_out():
    table = str(Comparison({"a": Measurement(100, 0, 0.0, 400), "b": Measurement(50, 0, 0.0, 200)}))
    assert table.splitlines()[0].split() == ["model", "parameters", "sparsity", "MB"]
    assert "-" not in table


def test_markdown_has_as_many_columns_in_every_row():
    lines = ROWS.to_markdown().splitlines()
    assert lines[1] == "|---" + "|---:" * 8 + "|"
    assert {line.count("|") for line in lines} == {10}
    assert lines[2].startswith("| BERT | 22,700,000 | 0.0% | 90.8 |")


def test_json_holds_everything():
    found = json.loads(ROWS.to_json())
    assert list(found) == ["BERT", "pruned", "small"]
    assert found["BERT"]["accuracy_interval"] == [0.813, 0.864]
    assert found["pruned"]["latency_ms"] is None
    assert ROWS.to_dict()["small"] == ROWS.rows["small"].to_dict()


def test_a_real_measurement_prints_and_is_json():
    result = measure(build("bert", 5), DATA, **QUICK)
    assert f"{result.parameters:,}" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["cross_entropy"] == result.cross_entropy
    assert math.isfinite(result.cross_entropy)
    assert result.examples == 19
