"""`shrink(reconstruct=)`: each projection against least squares by NumPy, on plain forward passes."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from architectures import SHRINKABLE, WITH_NEURONS, batch, build, rows, same_bits, state_of
from shrinking import logits, refused, with_neurons
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from hfcompress import CompressionError, prune_global_l1, prune_structured
from hfcompress.models.heads_and_neurons import KINDS, find_groups
from hfcompress.models.layers import layer_stacks
from hfcompress.models.traced_neurons import find_or_trace
from hfcompress.shrink import held_out, reconstruction, structured

TEXTS = rows(batch(32, 14, seed=3))
TEXTS = [row | {name: row[name][: sum(row["attention_mask"])] for name in list(row)[:2]} for row in TEXTS]
TEXTS = [row for row in TEXTS if len(row["input_ids"]) > 7]  # Funnel reads none that are shorter
UNLABELLED = [{"input_ids": row["input_ids"]} for row in TEXTS]


def shrink(model, **settings):
    """Rank by the weights, so that the references need not know what the data set ranks."""
    return prune_structured(model, **{"importance": "l1"} | settings)


@pytest.fixture(autouse=True)
def _no_rows_are_held_out(monkeypatch):
    """All of the data set is read, so that the references need not know which rows are."""
    monkeypatch.setattr(held_out, "LEAST_ROWS", 10_000)


def asked(architecture):
    return {"heads": 0.5, "neurons": 0.5} if architecture in SHRINKABLE else {"neurons": 0.5}


def projections(model):
    """Names of all modules that consume heads or neurons, by the records of architectures or a trace."""
    found = []
    for kind in KINDS:
        try:
            found += find_or_trace(model, kind) if kind == "neurons" else find_groups(model, kind)
        except CompressionError:
            continue
    return [part.module for group in found for part in group.consumers]


@torch.no_grad()
def recorded(model, names, texts):
    """What modules read and return for all texts, one at a time, by plain forward passes; shape (tokens, width)."""
    model = copy.deepcopy(model).eval()
    found = {name: ([], []) for name in names}

    def record(name):
        def hook(module, inputs, output):
            for kept, states in zip(found[name], (inputs[0], output), strict=True):
                kept.append(states.flatten(0, -2).clone().numpy())  # which Falcon changes in place

        return hook

    for name in names:
        model.get_submodule(name).register_forward_hook(record(name))
    for text in texts:
        model(input_ids=torch.tensor([text["input_ids"]]))
    return {name: tuple(map(np.concatenate, pair)) for name, pair in found.items()}


def joined(model, name):
    """A weight of shape (inputs, outputs), with the bias below it."""
    module = model.get_submodule(name)
    weight = module.weight.detach() if isinstance(module, Conv1D) else module.weight.detach().T
    return weight.numpy() if module.bias is None else torch.cat([weight, module.bias.detach()[None]]).numpy()


def applied(weights, inputs):
    """What a projection of these joined weights returns."""
    width = inputs.shape[1]
    return inputs @ weights[:width] + (weights[-1] if len(weights) > width else 0)


def squared(values):
    return float(np.square(values).sum())


def fixed(monkeypatch, target, penalty, sensitivity=0.0):
    """Let one target and one penalty be taken, and held-out texts be those solved from."""
    monkeypatch.setattr(reconstruction, "_SENSITIVITY", sensitivity)
    monkeypatch.setattr(reconstruction, "TARGETS", (target,))
    monkeypatch.setattr(reconstruction, "PENALTIES", (penalty,))
    monkeypatch.setattr(reconstruction, "_HELD_OUT", 1)
    monkeypatch.setattr(reconstruction._Solver, "error_before", lambda solver: 1.0)
    monkeypatch.setattr(reconstruction._Solver, "logits_error", lambda solver, runs: 0.0)


def solution(inputs, wanted, before, penalty, weights=1.0):
    """The least-squares weights, by NumPy."""
    if len(before) > inputs.shape[1]:
        inputs = np.concatenate([inputs, np.ones_like(inputs[:, :1])], 1)
    inputs, wanted = inputs * weights, wanted * weights
    strength = penalty * np.mean(np.square(inputs).sum(0))
    left = np.concatenate([inputs, np.sqrt(strength) * np.eye(len(before))])
    return np.linalg.lstsq(left, np.concatenate([wanted, np.sqrt(strength) * before]), rcond=None)[0]


@pytest.mark.parametrize("architecture", [name for name in WITH_NEURONS if name != "albert"])
def test_each_projection_is_the_least_squares_solution(architecture, monkeypatch):
    original = build(architecture).double()
    plain, model = copy.deepcopy(original), copy.deepcopy(original)
    shrink(plain, **asked(architecture))
    fixed(monkeypatch, "projection", 0.05)
    report = shrink(model, **asked(architecture), dataset=UNLABELLED)
    names = projections(original)
    assert len(names) - 1 <= report.reconstruction.projections  # the first may have nothing to make up for
    read, wanted = recorded(model, names, UNLABELLED), recorded(original, names, UNLABELLED)
    for name in names:
        expected = solution(read[name][0], wanted[name][1], joined(plain, name), 0.05)
        exact = 1e-5 if architecture in ("gpt-neo", "gptj") else 1e-8  # whose attention computes in float32
        np.testing.assert_allclose(joined(model, name), expected, rtol=exact, atol=exact, err_msg=name)


def test_a_layer_is_compared_with_the_one_that_it_was(monkeypatch):
    original = build("bert", layers=4).double()
    model, plain = copy.deepcopy(original), copy.deepcopy(original)
    shrink(plain, neurons=0.5, drop_layers=[1])
    fixed(monkeypatch, "projection", 0.05)
    shrink(model, neurons=0.5, drop_layers=[1], dataset=UNLABELLED)
    was = {name: name.replace("layer.2", "layer.3").replace("layer.1", "layer.2") for name in projections(model)}
    read, wanted = recorded(model, was, UNLABELLED), recorded(original, was.values(), UNLABELLED)
    for name, other in was.items():
        expected = solution(read[name][0], wanted[other][1], joined(plain, name), 0.05)
        np.testing.assert_allclose(joined(model, name), expected, rtol=1e-8, atol=1e-8, err_msg=name)


def token_weights(model, name, texts):
    """The square root of half of 1 and half of each token's sensitivity, by autograd on one text after the other."""
    found, model = [], copy.deepcopy(model).eval()
    for text in texts:
        kept = []
        handle = model.get_submodule(name).register_forward_hook(lambda *some, kept=kept: kept.append(some[2]))
        result = model(input_ids=torch.tensor([text["input_ids"]])).logits[0]
        handle.remove()
        (gradient,) = torch.autograd.grad(result[1] - result[0], kept)
        found.append(gradient.flatten(0, -2).square().sum(1, keepdim=True))
    squares = torch.cat(found)
    return (0.5 + 0.5 * squares / squares.mean()).sqrt().numpy()


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "xlnet", "bart"])
def test_tokens_weigh_by_what_the_logits_read(architecture, monkeypatch):
    original = build(architecture).double()
    plain, model = copy.deepcopy(original), copy.deepcopy(original)
    shrink(plain, **asked(architecture))
    fixed(monkeypatch, "projection", 0.05, sensitivity=0.5)
    shrink(model, **asked(architecture), dataset=UNLABELLED)
    names = projections(original)
    read, wanted = recorded(model, names, UNLABELLED), recorded(original, names, UNLABELLED)
    changed = []
    for name in names:
        weights = token_weights(original, name, UNLABELLED)
        before = joined(plain, name)
        expected = solution(read[name][0], wanted[name][1], before, 0.05, weights)
        errors = [squared(wanted[name][1] - applied(one, read[name][0])) for one in (expected, before)]
        changed.append(errors[0] < errors[1])
        expected = expected if changed[-1] else before  # of all tokens alike, the error may rise
        np.testing.assert_allclose(joined(model, name), expected, rtol=1e-8, atol=1e-8, err_msg=name)
    assert any(changed)


def test_layers_alone_can_be_dropped_and_reconstructed(monkeypatch):
    monkeypatch.setattr(reconstruction, "_SENSITIVITY", 0.0)  # a random model's logits say little about its tokens
    model = build("bert", layers=4)
    report = shrink(model, drop_layers=[1], dataset=UNLABELLED)
    assert report.reconstruction.projections > 0
    assert report.reconstruction.logits_error[1] < report.reconstruction.logits_error[0]


@pytest.mark.parametrize("architecture", ["bloom", "ctrl"])
def test_layers_without_a_record_can_be_dropped_with_data(architecture):
    model, other = (build(architecture, layers=3) for _ in range(2))
    report = shrink(model, drop_layers=[1], dataset=TEXTS)
    assert report.layers == (3, 2)
    assert (report.reconstruction.target, report.reconstruction.projections) == (None, 0)
    shrink(other, drop_layers=[1])
    assert same_bits(model.state_dict(), other.state_dict())


@pytest.mark.parametrize(
    ("architecture", "norms"),  # behind each projection, the module that reads the residual stream alone
    [
        ("bert", {"attention.output.dense": "attention.output.LayerNorm", "output.dense": "output.LayerNorm"}),
        ("distilbert", {"attention.out_lin": "sa_layer_norm", "ffn.lin2": "output_layer_norm"}),
    ],
)
def test_the_residual_stream_can_be_the_target(architecture, norms, monkeypatch):
    original = build(architecture, layers=3).double()
    plain, model = copy.deepcopy(original), copy.deepcopy(original)
    shrink(plain, heads=0.5, neurons=0.5)
    fixed(monkeypatch, "residual", 0.05)
    shrink(model, heads=0.5, neurons=0.5, dataset=UNLABELLED)
    for name in projections(original):
        end = max((end for end in norms if name.endswith(f".{end}")), key=len)
        norm = name[: len(name) - len(end)] + norms[end]
        ours, theirs = (recorded(one, [name, norm], UNLABELLED) for one in (model, original))
        past = ours[norm][0] - ours[name][1]
        expected = solution(ours[name][0], theirs[norm][0] - past, joined(plain, name), 0.05)
        np.testing.assert_allclose(joined(model, name), expected, rtol=1e-8, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "modernbert", "gpt2", "llama", "t5", "gptj", "xlm"])
def test_each_text_passes_each_half_of_a_layer_once(architecture, monkeypatch):
    model, twins, passes, attentions = build(architecture, layers=3), {}, Counter(), []
    solve, twin = reconstruction._Solver.solve, structured.copy_sharing_weights
    attention = torch.nn.functional.scaled_dot_product_attention
    residual = architecture not in ("gptj", "xlm")  # which add nothing to the output of a projection at once

    def counted(solver, *arguments):
        def count(module, inputs, output):
            passes[module] += 1

        handle = register_module_forward_hook(count)
        with monkeypatch.context() as patch:
            add = "scaled_dot_product_attention"
            patch.setattr(torch.nn.functional, add, lambda *a, **k: attentions.append(a) or attention(*a, **k))
            found = solve(solver, *arguments)
        handle.remove()
        attentions.append(len(solver._parts))
        return found

    fixed(monkeypatch, "residual" if residual else "projection", 0.05)
    monkeypatch.setattr(reconstruction._Solver, "solve", counted)
    monkeypatch.setattr(structured, "copy_sharing_weights", lambda model: twins.update(twin(model)) or twins)
    assert shrink(model, **asked(architecture), dataset=UNLABELLED).reconstruction.projections > 0
    batches = attentions.pop()
    layers = [layer for name in layer_stacks(model) for layer in model.get_submodule(name)]
    inside = {module for layer in layers for module in layer.modules() if module is not layer}
    for name, module in model.named_modules():
        if module in inside and isinstance(module, torch.nn.Linear | torch.nn.LayerNorm | Conv1D):
            assert passes[twins[module]] == passes[module] == batches, name
        elif module in inside and not isinstance(module, torch.nn.Dropout) and not name.endswith("act"):  # shared ones
            assert passes[module] <= batches, name
    assert len(attentions) <= 2 * batches * len(layers) * (2 if architecture in ("bart", "t5") else 1)


@with_neurons
def test_no_error_rises(architecture):
    original = build(architecture, layers=3 if architecture in ("bert", "gpt2", "t5") else 2)
    plain, model = copy.deepcopy(original), copy.deepcopy(original)
    shrink(plain, **asked(architecture), dataset=UNLABELLED, reconstruct=False)
    report = shrink(model, **asked(architecture), dataset=UNLABELLED).reconstruction
    assert report.logits_error[1] <= report.logits_error[0]
    assert (report.target is None) == (report.projections == 0) == same_bits(plain.state_dict(), model.state_dict())
    assert all("forward" not in vars(module) and not module._forward_hooks for module in model.modules())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in plain.state_dict().items()
    }


@pytest.mark.parametrize("architecture", [name for name in WITH_NEURONS if name != "albert"])
def test_no_projections_error_rises(architecture, monkeypatch):
    """Also where tokens weigh by what the logits read."""
    original = build(architecture)
    plain, model = copy.deepcopy(original), copy.deepcopy(original)
    shrink(plain, **asked(architecture))
    fixed(monkeypatch, "projection", 0.001, sensitivity=0.9)
    assert shrink(model, **asked(architecture), dataset=UNLABELLED).reconstruction.projections > 0
    names = projections(original)
    read, wanted = recorded(model, names, UNLABELLED), recorded(original, names, UNLABELLED)
    for name in names:
        inputs, reached = read[name]
        unsolved = applied(joined(plain, name), inputs)
        assert squared(wanted[name][1] - reached) <= squared(wanted[name][1] - unsolved) * (1 + 1e-5), name


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "albert"])
def test_nothing_removed_gives_the_weights_back(architecture):
    model = build(architecture)
    before = state_of(model)
    report = shrink(model, neurons=0.001, dataset=UNLABELLED)
    assert report.removed("neurons") == 0
    assert report.reconstruction.target is None
    assert same_bits(before, model.state_dict())


def test_a_large_penalty_changes_no_logits(monkeypatch):
    plain, model = build("gpt2").double(), build("gpt2").double()
    shrink(plain, heads=0.5, neurons=0.5)
    monkeypatch.setattr(reconstruction, "PENALTIES", (1e13,))
    shrink(model, heads=0.5, neurons=0.5, dataset=UNLABELLED)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "xlnet", "t5"])
def test_padding_and_the_shape_of_the_data_change_nothing(architecture):
    one, other = build(architecture).double(), build(architecture).double()
    shrink(one, **asked(architecture), dataset=TEXTS)
    ids = [torch.tensor(row["input_ids"]) for row in TEXTS]
    padded = {"input_ids": pad_sequence(ids, batch_first=True), "labels": torch.zeros(len(ids), dtype=torch.long)}
    padded["attention_mask"] = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    parts = [{name: value[start : start + 5] for name, value in padded.items()} for start in range(0, len(ids), 5)]
    shrink(other, **asked(architecture), dataset=iter(parts), batch_size=3)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-6, atol=1e-6, msg=name)


def test_tokens_that_the_mask_hides_are_left_out():
    states = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[1, 0, 1], [0, 1, 1]])
    expected = torch.stack([states[0, 0], states[0, 2], states[1, 1], states[1, 2]])
    assert torch.equal(reconstruction._real_tokens(states, mask), expected)
    assert torch.equal(reconstruction._real_tokens(states.flatten(0, 1), mask), expected)
    tokens_first = reconstruction._real_tokens(states.transpose(0, 1), mask)
    assert sorted(tokens_first[:, 0].tolist()) == sorted(expected[:, 0].tolist())
    assert len(reconstruction._real_tokens(states, None)) == 6
    assert len(reconstruction._real_tokens(states[:1], mask)) == 3, "of a decoder, say"


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_it_saves_and_loads_with_the_same_logits(architecture, tmp_path, monkeypatch):
    model = build(architecture, layers=3)
    fixed(monkeypatch, "residual", 0.05)
    assert shrink(model, heads=0.5, neurons=0.4, dataset=UNLABELLED).reconstruction.projections > 0
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert same_bits(again.state_dict(), model.state_dict())
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("amount", [0.1, 0.6])
def test_pruned_weights_stay_zero(amount):
    model = build("bert", layers=3)
    prune_global_l1(model, amount)
    plain = copy.deepcopy(model)
    shrink(plain, neurons=0.5)
    report = shrink(model, neurons=0.5, dataset=UNLABELLED)
    assert report.reconstruction.projections > 0
    for name in projections(model):
        assert torch.equal(model.get_submodule(name).weight == 0, plain.get_submodule(name).weight == 0), name


def test_a_weight_of_two_modules_stays_as_it_is():
    model = build("bert", layers=3)
    first, second = (model.bert.encoder.layer[index].attention.output.dense for index in (0, 2))
    second.weight = first.weight
    before = first.weight.detach().clone()
    report = shrink(model, neurons=0.5, dataset=UNLABELLED)
    assert report.reconstruction.projections > 0
    assert first.weight is second.weight
    assert torch.equal(first.weight, before)


def test_frozen_parameters_stay_frozen():
    model = build("bert", layers=3)
    frozen = model.bert.encoder.layer[1].output.dense
    frozen.requires_grad_(False)
    shrink(model, neurons=0.5, dataset=UNLABELLED)
    assert [name for name, value in model.named_parameters() if not value.requires_grad] == [
        "bert.encoder.layer.1.output.dense.weight",
        "bert.encoder.layer.1.output.dense.bias",
    ]


def test_a_model_without_a_padding_token_is_reconstructed():
    model = build("gpt2")
    model.config.pad_token_id = None
    report = shrink(model, heads=0.5, neurons=0.5, dataset=UNLABELLED)
    assert report.reconstruction.projections > 0
    assert model.config.pad_token_id is None


@pytest.mark.parametrize(("most_rows", "most_tokens", "expected"), [(5, 1000, 5), (100, 60, 10), (100, 1, 1)])
def test_of_many_rows_evenly_spaced_ones_are_read(most_rows, most_tokens, expected, monkeypatch):
    monkeypatch.setattr(reconstruction, "_ROWS", most_rows)
    monkeypatch.setattr(reconstruction, "_TOKENS_READ", most_tokens)
    data = [{"input_ids": [5 + number] * 6} for number in range(20)]
    read = reconstruction.read_calibration(build("bert"), data, 4)
    found = sorted({int(row[0]) - 5 for each in (*read.fit, *read.held_out) for row in each["input_ids"]})
    assert found == [number * 20 // expected for number in range(expected)]


@pytest.mark.parametrize("form", ["rows", "tensors"])
def test_padding_takes_no_place_among_the_tokens_that_are_read(form, monkeypatch):
    monkeypatch.setattr(reconstruction, "_TOKENS_READ", 60)
    ids, mask = ([[one] * 6 + [other] * 54 for _ in range(20)] for one, other in ((5, 0), (1, 0)))
    data = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    read = reconstruction.read_calibration(build("bert"), rows(data) if form == "rows" else [data], 4)
    assert sum(len(each["input_ids"]) for each in (*read.fit, *read.held_out)) == 10


def test_one_text_is_enough():
    report = shrink(build("bert"), neurons=0.5, dataset=UNLABELLED[:1])
    assert report.reconstruction.logits_error[1] <= report.reconstruction.logits_error[0]


def test_without_data_or_on_request_nothing_is_reconstructed():
    settings = {"heads": 0.5, "neurons": 0.5}
    models = [build("bert") for _ in range(3)]
    reports = [
        shrink(models[0], **settings),
        shrink(models[1], **settings, dataset=TEXTS, reconstruct=False),
        shrink(models[2], **settings, dataset=TEXTS, reconstruct=True),
    ]
    assert [report.reconstruction is None for report in reports] == [True, True, False]
    assert same_bits(models[0].state_dict(), models[1].state_dict())
    assert not same_bits(models[0].state_dict(), models[2].state_dict())
    assert "reconstructed: " in str(reports[2])
    assert reports[2].to_dict()["reconstruction"]["projections"] == reports[2].reconstruction.projections


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reconstruct": "yes"}, "reconstruct='yes'"),
        ({"reconstruct": True}, "reconstruct=True needs texts"),
        ({"dataset": []}, "found 0 rows"),
        ({"dataset": [{"input_ids": [5, 6]}, {"text": "good"}]}, "found 2 rows with input_ids, text"),
        ({"dataset": ["good"]}, "it holds texts, such as 'good'"),
        ({"dataset": [{"input_ids": [5] * 65}]}, "65 tokens"),
        ({"dataset": TEXTS, "batch_size": 0}, "batch_size=0"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused_before_anything(settings, message):
    refused(build("bert"), message, neurons=0.5, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_failure_on_the_way_leaves_the_model_untouched(dtype, monkeypatch):
    def fails(*arguments):
        raise CompressionError("afterwards")

    for module, name in ((structured, "_sizes"), (reconstruction, "_put")):
        calls, own = iter(range(100)), getattr(module, name)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *some, c=calls, o=own: fails() if next(c) == 1 else o(*some))
            refused(build("bert", layers=3).to(dtype), "afterwards", heads=0.5, neurons=0.5, dataset=UNLABELLED)
