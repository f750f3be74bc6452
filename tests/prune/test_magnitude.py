"""Global pruning against an independent NumPy reference: which weights go, how many, and what is never touched."""

import copy
import math
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, build, same_bits, state_of
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

import hfcompress.prune.magnitude
import hfcompress.prune.scan
from hfcompress import CompressionError, prune_global_l1, sparsity_report
from hfcompress.models.weights import select_matrices

# Here matrices are pruned until nothing is left of them, and of very different scale.
pytestmark = pytest.mark.filterwarnings("ignore:Nothing is left of:UserWarning")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def stack(*weights):
    """Return a model of linear layers that hold these very tensors."""
    layers = []
    for weight in weights:
        layers.append(nn.Linear(1, 1, bias=False))
        layers[-1].weight = nn.Parameter(weight)
    return nn.Sequential(*layers)


def matrices(model):
    return [matrix.weight for matrix in select_matrices(model).matrices]


def reference(weights, amount):
    """The weights after pruning, in float64: a stable sort by magnitude, then by order of the matrix and position."""
    arrays = [weight.detach().double().numpy().copy() for weight in weights]
    flat = np.concatenate([array.reshape(-1) for array in arrays])
    count = amount if isinstance(amount, int) else round(amount * flat.size)
    flat[np.argsort(np.abs(flat), kind="stable")[:count]] = 0.0
    ends = np.cumsum([array.size for array in arrays])[:-1]
    return [part.reshape(array.shape) for part, array in zip(np.split(flat, ends), arrays, strict=True)]


def assert_pruned_like_the_reference(model, amount):
    weights = matrices(model)
    expected = reference(weights, amount)
    total = sum(weight.numel() for weight in weights)
    zeros_before = sum(int((weight == 0).sum()) for weight in weights)
    report = prune_global_l1(model, amount)
    for weight, array in zip(weights, expected, strict=True):
        assert np.array_equal(weight.detach().double().numpy(), array)
    asked = amount if isinstance(amount, int) else round(amount * total)
    assert report.zeros == sum(int((weight == 0).sum()) for weight in weights) == max(zeros_before, asked)
    assert report.weights == total


def values(dtype):
    """Numbers of a dtype: many ties, zeros of both signs, denormals, the largest, and anything finite."""
    limits = torch.finfo(dtype)
    smallest = limits.smallest_normal
    special = [0.0, -0.0, 0.5, -0.5, 0.25, smallest, -smallest, smallest / 4, -smallest / 8, limits.max, limits.min]
    return st.one_of(st.sampled_from(special), st.floats(-2, 2))


@st.composite
def weight_tensors(draw, dtype=None):
    dtype = dtype or draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from([(0, 3), (3, 0), (1, 1), (1, 7), (7, 1), (2, 5), (4, 4)]))
    size = math.prod(shape)
    kind = draw(st.sampled_from(["any", "constant", "sparse"]))
    numbers = draw(st.lists(values(dtype), min_size=size, max_size=size))
    if kind == "constant":
        numbers = numbers[:1] * size
    elif kind == "sparse":
        numbers = [0.0 if index % 2 else number for index, number in enumerate(numbers)]
    tensor = torch.tensor(numbers, dtype=torch.float64).to(dtype).reshape(shape)
    layout = draw(st.sampled_from(["plain", "transposed", "strided"]))
    if layout == "transposed":
        return tensor.t().contiguous().t()
    if layout == "strided":
        return torch.zeros(shape[0], 2 * shape[1], dtype=dtype)[:, ::2].copy_(tensor)
    return tensor


fractions = st.one_of(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.999]), st.floats(0, 1, exclude_max=True))


@given(st.lists(weight_tensors(), min_size=1, max_size=4), fractions)
def test_a_fraction_zeroes_the_weights_that_a_stable_sort_names(weights, amount):
    assert_pruned_like_the_reference(stack(*weights), amount)


@given(st.lists(weight_tensors(), min_size=1, max_size=4), st.data())
def test_a_count_zeroes_the_weights_that_a_stable_sort_names(weights, data):
    total = sum(weight.numel() for weight in weights)
    assert_pruned_like_the_reference(stack(*weights), data.draw(st.integers(0, total)))


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_each_dtype_alone_follows_the_reference(dtype, data):
    weights = [data.draw(weight_tensors(dtype)) for _ in range(2)]
    assert_pruned_like_the_reference(stack(*weights), data.draw(fractions))


@given(st.lists(weight_tensors(), min_size=1, max_size=3), fractions)
def test_pruning_twice_changes_nothing(weights, amount):
    model = stack(*weights)
    first = prune_global_l1(model, amount)
    before = state_of(model)
    assert prune_global_l1(model, amount) == first
    assert same_bits(state_of(model), before)


@given(st.lists(weight_tensors(), min_size=2, max_size=3), fractions, st.data())
def test_how_the_weights_are_read_does_not_matter(weights, amount, data):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_PIECE", "_CHUNK", "_RUN", "_LISTED", "_BIN_BITS"):
            patch.setattr(hfcompress.prune.scan, name, data.draw(st.integers(1, 5), label=name))
        patch.setattr(hfcompress.prune.magnitude, "_SAMPLE", (1, data.draw(st.integers(1, 20), label="_SAMPLE")))
        assert_pruned_like_the_reference(stack(*weights), amount)


@given(
    st.lists(weight_tensors(), min_size=1, max_size=3), fractions, st.floats(0, 1), st.floats(0, 1), st.integers(1, 8)
)
def test_a_misleading_sample_costs_time_but_not_exactness(weights, amount, start, width, bin_bits):
    def guess(keys, total, rank, infinity):
        low = int(start * (infinity - 1))
        return low, low + 1 + int(width * (infinity - 1 - low))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hfcompress.prune.magnitude, "_guess", guess)
        patch.setattr(hfcompress.prune.scan, "_BIN_BITS", bin_bits)
        assert_pruned_like_the_reference(stack(*weights), amount)


@pytest.mark.parametrize(
    ("dtype", "amount"),
    [*((torch.float32, amount) for amount in (0.0001, 0.5, 0.9999)), *((dtype, 0.2) for dtype in DTYPES)],
)
def test_millions_of_weights_of_different_scale(dtype, amount):
    """Larger than the sample, with columns, rows and matrices of very different size, and many zeros already."""
    generator = torch.Generator().manual_seed(0)
    weights = []
    for rows, columns, scale in ((1000, 600, 1.0), (400, 1024, 0.01), (77, 3, 5.0)):
        weight = torch.randn(rows, columns, generator=generator) * scale
        weight *= torch.logspace(-3, 0, columns) * torch.logspace(0, -2, rows)[:, None]
        weights.append(weight.masked_fill(torch.rand(weight.shape, generator=generator) < 0.03, 0).to(dtype))
    assert_pruned_like_the_reference(stack(*weights), amount)


def test_the_number_of_threads_does_not_matter():
    weights = [torch.randn(300, 500).round(decimals=2), torch.randn(500, 200).round(decimals=2)]
    models = [stack(*copy.deepcopy(weights)) for _ in range(2)]
    before = torch.get_num_threads()
    try:
        for model, threads in zip(models, (1, 2), strict=True):
            torch.set_num_threads(threads)
            assert prune_global_l1(model, 0.3).zeros == 75_000
    finally:
        torch.set_num_threads(before)
    assert same_bits(state_of(models[0]), state_of(models[1]))


def test_a_tie_goes_by_matrix_and_then_row_by_row():
    model = stack(torch.ones(2, 2), torch.ones(2, 2))
    prune_global_l1(model, 5)
    assert model[0].weight.tolist() == [[0, 0], [0, 0]]
    assert model[1].weight.tolist() == [[0, 1], [1, 1]]


def test_a_tie_in_a_transposed_matrix_goes_row_by_row_too():
    model = stack(torch.ones(3, 2).t())
    prune_global_l1(model, 2)
    assert model[0].weight.tolist() == [[0, 0, 1], [1, 1, 1]]


def test_neighbouring_floats_are_told_apart():
    one = torch.tensor(1.0, dtype=torch.float64)
    above = torch.nextafter(one, torch.tensor(2.0, dtype=torch.float64))
    model = stack(torch.stack([above, one, above, above]).reshape(2, 2))
    prune_global_l1(model, 1)
    assert model[0].weight.tolist() == [[float(above), 0], [float(above), float(above)]]


def test_dtypes_are_compared_by_value():
    model = stack(
        torch.tensor([[0.5, 3.0]], dtype=torch.bfloat16),
        torch.tensor([[1.0], [0.25]], dtype=torch.float16),
        torch.tensor([[0.75]], dtype=torch.float64),
    )
    prune_global_l1(model, 3)
    assert [layer.weight.flatten().tolist() for layer in model] == [[0, 3], [1, 0], [0]]


def test_a_tenth_and_then_a_fifth_is_a_fifth():
    model = build("bert")
    total = sparsity_report(model).weights
    assert prune_global_l1(model, 0.1).zeros == round(0.1 * total)
    assert prune_global_l1(model, 0.2).zeros == round(0.2 * total)
    assert prune_global_l1(model, 0.1).zeros == round(0.2 * total)


def test_weights_that_are_zero_already_count_first():
    model = stack(torch.tensor([[0.0, 1.0, -0.0, 2.0]]))
    assert prune_global_l1(model, 1).zeros == 2
    assert prune_global_l1(model, 3).zeros == 3
    assert model[0].weight.tolist() == [[0, 0, 0, 2]]


def test_an_amount_may_be_a_numpy_number():
    assert prune_global_l1(stack(torch.ones(2, 2)), np.float32(0.5)).zeros == 2
    assert prune_global_l1(stack(torch.ones(2, 2)), np.int64(3)).zeros == 3


def test_one_means_one_weight_and_all_weights_can_be_asked_for_by_number():
    model = stack(torch.ones(2, 2))
    assert prune_global_l1(model, 1).zeros == 1
    assert prune_global_l1(model, 4).zeros == 4


def test_the_report_says_what_was_asked():
    model = build("bert")
    assert prune_global_l1(model, 0.2).amount == 0.2
    assert prune_global_l1(model, 2000).amount == 2000
    assert sparsity_report(model).amount is None


@pytest.mark.parametrize(
    "tie", [lambda weight: weight.data, lambda weight: weight.data.t()], ids=["same", "transposed"]
)
def test_parameters_on_one_storage_count_once(tie):
    first = nn.Linear(3, 3, bias=False)
    second = nn.Linear(3, 3, bias=False)
    second.weight = nn.Parameter(tie(first.weight))
    report = prune_global_l1(nn.Sequential(first, second), 0.34)
    assert (report.weights, report.zeros, report.whole_model.weights) == (9, 3, 9)
    assert int((first.weight == 0).sum()) == 3


def test_wrappers_that_copy_to_several_devices_do_not_bring_the_head_into_scope():
    model = build("bert")
    wrapped = nn.DataParallel(model)
    head = model.classifier.weight.clone()
    assert prune_global_l1(wrapped, 0.5).weights == sparsity_report(model).weights
    assert torch.equal(model.classifier.weight, head)


def test_a_tied_matrix_counts_once():
    model = stack(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    model[1].weight = model[0].weight
    assert prune_global_l1(model, 0.5).zeros == 1
    assert model[1].weight.tolist() == [[0, 2]]


@pytest.mark.parametrize("num_labels", [2, 5])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_pruned_like_the_reference(architecture, num_labels):
    assert_pruned_like_the_reference(build(architecture, num_labels), 0.2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_where_nothing_ties_the_result_is_that_of_torch(architecture):
    ours, theirs = build(architecture), build(architecture)
    prune_global_l1(ours, 0.2)
    modules = dict(theirs.named_modules())
    chosen = [(modules[matrix.name], "weight") for matrix in select_matrices(theirs).matrices]
    prune.global_unstructured(chosen, prune.L1Unstructured, amount=0.2)
    for module, name in chosen:
        prune.remove(module, name)
    expected = theirs.state_dict()
    for key, value in ours.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_but_matrices_of_the_body_changes(architecture):
    model = build(architecture)
    before = state_of(model)
    modules = [name for name, _ in model.named_modules()]
    prune_global_l1(model, 0.5)
    after = state_of(model)
    assert list(after) == list(before)
    assert [name for name, _ in model.named_modules()] == modules
    body = {f"{matrix.name}.weight" for matrix in select_matrices(model).matrices}
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == body
    spared = {name for name, module in model.named_modules() if not isinstance(module, nn.Linear | Conv1D)}
    assert not any(key.rpartition(".")[0] in spared for key in changed)
    assert not any(key.startswith(("classifier", "score")) or key.endswith("bias") for key in changed)


def test_parameters_stay_the_same_objects_with_their_settings():
    model = build("bert")
    model.bert.pooler.dense.weight.requires_grad_(False)
    before = {name: (parameter, parameter.requires_grad) for name, parameter in model.named_parameters()}
    prune_global_l1(model, 0.3)
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0]
        assert parameter.requires_grad == before[name][1]
        assert parameter.grad is None


def test_include_prunes_the_named_matrices_only():
    model = build("bert")
    before = state_of(model)
    report = prune_global_l1(model, 0.5, include=["classifier", "bert.encoder.layer.0"])
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{layer.name}.weight" for layer in report.layers}
    assert "classifier.weight" in changed
    assert all(key.startswith(("classifier", "bert.encoder.layer.0.")) for key in changed)


def test_exclude_leaves_the_named_matrices_alone():
    model = build("bert")
    before = state_of(model)
    report = prune_global_l1(model, 0.5, exclude="*attention*")
    assert report.zeros == round(0.5 * report.weights)
    for key, value in model.state_dict().items():
        assert "attention" not in key or torch.equal(value, before[key])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pruned_model_can_be_copied_saved_and_loaded(architecture, tmp_path):
    model = build(architecture)
    report = prune_global_l1(model, 0.2)
    assert same_bits(copy.deepcopy(model).state_dict(), model.state_dict())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert same_bits(OrderedDict(sorted(loaded.state_dict().items())), OrderedDict(sorted(model.state_dict().items())))
    assert sparsity_report(loaded).zeros == report.zeros


def assert_refused(model, match, amount=0.5, **patterns):
    before = state_of(model)
    with pytest.raises(CompressionError, match=match):
        prune_global_l1(model, amount, **patterns)
    assert same_bits(model.state_dict(), before)


@pytest.mark.parametrize(
    "amount",
    [-0.1, 1.0, 1.5, -1, math.nan, math.inf, -math.inf, True, False, "0.2", None, [0.2], np.True_, 1 + 0j, 10**9],
)
def test_an_amount_out_of_range_is_refused_by_value(amount):
    assert_refused(build("bert"), rf"amount={str(amount) if amount == 10**9 else ''}", amount)


@pytest.mark.parametrize("amount", [0, 0.0, 0.5, 10])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_by_place(bad, dtype, amount):
    model = stack(*(torch.randn(4, 4).to(dtype) for _ in range(3)))
    with torch.no_grad():
        model[2].weight[3, 3] = bad
    assert_refused(model, r"2\.weight contains NaN or infinity", amount)


def test_nan_outside_the_scope_is_nobodys_business():
    model = build("bert")
    with torch.no_grad():
        model.classifier.weight.fill_(math.nan)
        model.bert.pooler.dense.weight.fill_(math.nan)
    assert prune_global_l1(model, 0.5, exclude="bert.pooler").sparsity == 0.5


def test_a_largest_number_beside_infinity_in_a_smaller_dtype_is_still_found():
    model = stack(torch.full((2, 2), torch.finfo(torch.float16).max, dtype=torch.float16), torch.ones(2, 2).double())
    assert prune_global_l1(model, 4).zeros == 4
    with torch.no_grad():
        model[0].weight[0, 0] = math.inf
    assert_refused(model, r"0\.weight contains")


def test_meta_weights_are_refused_by_place():
    with torch.device("meta"):
        model = build("bert")
    assert_refused(model, r"bert\.encoder\.layer\.0\.attention\.self\.query\.weight is on the meta device")


def test_quantized_weights_are_refused_by_place():
    model = stack(torch.ones(2, 2), torch.ones(2, 2))
    model[1].weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    assert_refused(model, r"1\.weight is quantized or sparse \(Parameter, torch\.int8, ")


def test_a_weight_of_a_tensor_subclass_is_refused_by_place():
    class Packed(torch.Tensor):
        pass

    model = stack(torch.ones(2, 2))
    model[0].weight = nn.Parameter(torch.ones(2, 2).as_subclass(Packed))
    with pytest.raises(CompressionError, match=r"0\.weight is quantized"):
        prune_global_l1(model, 0.5)
    assert torch.equal(model[0].weight.as_subclass(torch.Tensor), torch.ones(2, 2))


def test_sharded_weights_are_refused_by_place(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        model = stack(torch.ones(2, 2))
        sharded = torch.distributed.tensor.distribute_tensor(
            torch.ones(2, 2), mesh, [torch.distributed.tensor.Shard(0)]
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
        (lambda: inference_linear(), r"0\.weight was made in torch\.inference_mode"),
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


def test_a_model_without_matrices_is_refused_and_what_it_has_is_named():
    assert_refused(nn.Sequential(nn.Embedding(3, 2), nn.LayerNorm(2)), "Sequential has no weight matrix")
    assert_refused(nn.Sequential(nn.Conv2d(1, 1, 3)), r"not covered: 0\.weight")


def test_patterns_that_match_nothing_are_refused_and_nothing_changes():
    assert_refused(build("bert"), "include pattern 'decoder'", include=["bert.pooler", "decoder"])
    assert_refused(build("bert"), "exclude pattern 'decoder'", exclude="decoder")
    assert_refused(build("bert"), "BertForSequenceClassification has no weight matrix", exclude="bert")


def test_a_parametrized_weight_is_refused_and_nothing_changes():
    model = build("bert")
    prune.l1_unstructured(model.bert.pooler.dense, "weight", 0.5)
    assert_refused(model, r"'bert\.pooler\.dense' is computed from other parameters")


def test_conv1d_is_pruned_as_it_is_stored():
    model = nn.Sequential(Conv1D(3, 2))
    assert_pruned_like_the_reference(model, 0.5)
    assert sparsity_report(model).layers[0].shape == (2, 3)


class LargestNewTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation allocates."""

    def __init__(self, model):
        super().__init__()
        self.known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("shape", [(4096, 2048), (2048, 4096)])
def test_no_copy_of_the_weights_is_made(shape):
    model = stack(torch.randn(shape))
    with LargestNewTensor(model) as memory:
        report = prune_global_l1(model, 0.2)
    assert report.zeros == round(0.2 * 8_388_608)
    assert 0 < memory.largest <= model[0].weight.numel() * 4 / 8


def test_no_copy_of_the_weights_is_made_where_all_of_them_tie():
    model = stack(torch.ones(4096, 2048))
    with LargestNewTensor(model) as memory:
        prune_global_l1(model, 0.5)
    assert memory.largest <= model[0].weight.numel() * 4 / 4


def test_a_matrix_of_which_nothing_is_left_is_named():
    model = build("bert")
    with torch.no_grad():
        model.bert.pooler.dense.weight.mul_(1e-3)
    with pytest.warns(UserWarning, match=r"Nothing is left of bert\.pooler\.dense at amount=0\.5: .*exclude=") as told:
        prune_global_l1(model, 0.5)
    assert len(told) == 1
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune_global_l1(build("bert"), 0.5)
        prune_global_l1(model, 0)
