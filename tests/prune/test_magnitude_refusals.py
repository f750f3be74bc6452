"""What global pruning refuses; the model is then unchanged."""

import math
import re

import numpy as np
import pytest
import torch
from architectures import build, same_bits, state_of
from global_pruning import DTYPES, assert_refused, stack
from torch import nn
from torch.nn.utils import prune

from hfcompress import CompressionError, KeepSparsity, prune_global_l1, sparsity_report


@pytest.mark.parametrize(
    "amount", [-0.1, 1.0, 1.5, -1, math.nan, math.inf, -math.inf, True, False, "0.2", None, [0.2], np.True_, 1 + 0j]
)
def test_an_amount_out_of_range_is_refused_by_value(amount):
    assert_refused(build("bert"), re.escape(f"amount={amount!r} must be "), amount)


def test_an_amount_of_more_weights_than_there_are_is_refused():
    assert_refused(stack(torch.ones(2, 2)), "amount=5 is more than the 4 prunable weights", 5)
    assert_refused(build("bert"), "amount=1000000000 is more than the", 10**9)


@pytest.mark.parametrize("amount", [0, 0.0, 0.5, 10])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_by_place(bad, dtype, amount):
    model = stack(*(torch.randn(4, 4).to(dtype) for _ in range(3)))
    with torch.no_grad():
        model[2].weight[3, 3] = bad
    assert_refused(model, r"2\.weight contains NaN or infinity", amount)


def test_nan_outside_the_scope_is_ignored():
    model = build("bert")
    with torch.no_grad():
        model.classifier.weight.fill_(math.nan)
        model.bert.pooler.dense.weight.fill_(math.nan)
    assert prune_global_l1(model, 0.5, exclude="bert.pooler").sparsity == 0.5


@pytest.mark.filterwarnings("ignore:All weights of:UserWarning")
def test_the_largest_float16_beside_float64_is_not_infinite():
    model = stack(torch.full((2, 2), torch.finfo(torch.float16).max, dtype=torch.float16), torch.ones(2, 2).double())
    assert prune_global_l1(model, 4).zeros == 4


def test_an_infinite_float16_beside_float64_is_refused():
    model = stack(torch.full((2, 2), math.inf, dtype=torch.float16), torch.ones(2, 2).double())
    assert_refused(model, r"0\.weight contains")


def test_meta_weights_are_refused_by_place():
    with torch.device("meta"):
        model = build("bert")
    assert_refused(model, r"bert\.encoder\.layer\.0\.attention\.self\.query\.weight is on the meta device")


def test_quantized_weights_are_refused_by_place():
    model = stack(torch.ones(2, 2), torch.ones(2, 2))
    model[1].weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    assert_refused(model, r"1\.weight is quantized or sparse \(Parameter, torch\.int8, ")


class PackedLinear(nn.Module):
    """Holds its weights as GPTQ and AWQ do: in buffers of integers with scales."""

    def __init__(self, linear):
        super().__init__()
        self.register_buffer("qweight", torch.ones(linear.in_features // 8, linear.out_features, dtype=torch.int32))
        self.register_buffer("scales", torch.ones(1, linear.out_features))
        self.bias = linear.bias


@pytest.mark.parametrize(
    "prune", [lambda m: prune_global_l1(m, 0.5), sparsity_report, lambda m: KeepSparsity().read(m)]
)
def test_weights_that_gptq_has_packed_are_refused_by_place(prune):
    model = build("bert")
    for layer in model.bert.encoder.layer:
        layer.output.dense = PackedLinear(layer.output.dense)
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    before = state_of(model)
    with pytest.raises(
        CompressionError, match=r"bert\.encoder\.layer\.0\.output\.dense \(PackedLinear\) holds its .*ex"
    ):
        prune(model)
    assert same_bits(model.state_dict(), before)
    assert prune_global_l1(model, 0.5, exclude="*.output.dense").sparsity == 0.5  # what is not quantized


def test_a_quantization_that_left_the_weights_as_they_are_is_no_reason_to_refuse():
    model = build("bert")
    model.config.quantization_config = {"quant_method": "fp8", "dequantize": True}
    assert prune_global_l1(model, 0.5).sparsity == 0.5


def test_a_weight_of_a_tensor_subclass_is_refused_by_place():
    class Packed(torch.Tensor):
        pass

    model = stack(torch.ones(2, 2))
    model[0].weight = nn.Parameter(torch.ones(2, 2).as_subclass(Packed))
    with pytest.raises(CompressionError, match=r"0\.weight is quantized"):
        prune_global_l1(model, 0.5)
    assert torch.equal(model[0].weight.as_subclass(torch.Tensor), torch.ones(2, 2))


def test_weights_sharded_by_columns_are_refused_by_place(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        model = stack(torch.ones(2, 2))
        sharded = torch.distributed.tensor.distribute_tensor(
            torch.ones(2, 2), mesh, [torch.distributed.tensor.Shard(1)]
        )
        model[0].weight = nn.Parameter(sharded)
        with pytest.raises(CompressionError, match=r"0\.weight is sharded"):
            prune_global_l1(model, 0.5)
        assert torch.equal(model[0].weight.full_tensor(), torch.ones(2, 2))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.LazyLinear(4), r"0\.weight is not initialized yet"),
        (lambda: stack(torch.eye(4).to_sparse())[0], r"0\.weight is quantized or sparse"),
        (lambda: inference_linear(), r"0\.weight was created in torch\.inference_mode"),
    ],
    ids=["lazy", "sparse", "inference"],
)
def test_weights_that_cannot_be_written_are_refused_by_place(make, message):
    with pytest.raises(CompressionError, match=message):
        prune_global_l1(nn.Sequential(make()), 0.5)


def test_the_zeros_of_weights_that_cannot_be_written_are_counted():
    assert sparsity_report(nn.Sequential(inference_linear())).weights == 16


def inference_linear():
    with torch.inference_mode():
        return nn.Linear(4, 4)


def test_a_model_without_matrices_is_refused():
    assert_refused(nn.Sequential(nn.Embedding(3, 2), nn.LayerNorm(2)), "Sequential has no weight matrix")


def test_matrices_that_are_not_covered_are_named():
    assert_refused(nn.Sequential(nn.Conv2d(1, 1, 3)), r"not covered: 0\.weight")


def test_a_model_of_which_everything_is_excluded_is_refused():
    assert_refused(build("bert"), "BertForSequenceClassification has no weight matrix", exclude="bert")


@pytest.mark.parametrize(
    ("message", "patterns"),
    [
        ("include pattern 'decoder'", {"include": ["bert.pooler", "decoder"]}),
        ("exclude pattern 'decoder'", {"exclude": "decoder"}),
    ],
)
def test_patterns_that_match_nothing_are_refused(message, patterns):
    assert_refused(build("bert"), message, **patterns)


def test_a_parametrized_weight_is_refused_by_place():
    model = build("bert")
    prune.l1_unstructured(model.bert.pooler.dense, "weight", 0.5)
    assert_refused(model, r"'bert\.pooler\.dense' is computed from other parameters")
