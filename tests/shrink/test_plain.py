"""Shapes that a plain config states: chosen within a budget, and loaded where hfcompress cannot be imported."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from architectures import SHRINKABLE, WITH_NEURONS, batch, build, same_bits
from shrinking import LABELLED, refused
from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedConfig
from transformers.models.llama import modeling_llama

from hfcompress import CompressionError, prune_structured, student_from_teacher
from hfcompress.models.heads_and_neurons import NeuronGroup, Slice
from hfcompress.models.inputs import dummy_inputs
from hfcompress.models.profiling import count_flops
from hfcompress.shrink import budget
from hfcompress.shrink.data import Data
from hfcompress.shrink.selection import select, select_for_budget

LOAD = """
import sys
sys.modules["hfcompress"] = None
import torch
from transformers import AutoModelForSequenceClassification

folder, found, inputs = sys.argv[1], {}, torch.load(f"{sys.argv[1]}/inputs.pt")
for name in sys.argv[2:]:
    model = AutoModelForSequenceClassification.from_pretrained(f"{folder}/{name}").eval()
    with torch.no_grad():
        found[name] = model(**inputs).logits
torch.save(found, f"{folder}/found.pt")
"""
HEADS = ("llama", "qwen2", "t5")  # whose config states the size of a head
NEITHER = ("bloom", "xlm")  # no setting states the neurons
BY_NEURONS = ("bert", *(name for name in WITH_NEURONS if name not in (*NEITHER, *SHRINKABLE)))  # others by FLOPs
FISHER = {"importance": "fisher", "dataset": LABELLED, "reconstruct": False}
RECONSTRUCTED = FISHER | {"reconstruct": True}
TWELVE = {"num_attention_heads": 12, "num_key_value_heads": 12, "hidden_size": 48}  # of which 7 is no divisor
CASES = (
    {f"{name}-flops": (name, {"flops": 0.85} | FISHER) for name in SHRINKABLE}
    | {f"{name}-neurons": (name, {"neurons": 0.5} | FISHER) for name in BY_NEURONS}
    | {f"{name}-heads": (name, {"heads": 0.5, "neurons": 0.3} | FISHER) for name in HEADS}
    | {
        "bert-parameters": ("bert", {"parameters": 0.9, "importance": "l1"}),
        "bert-layers": ("bert", {"flops": 0.6, "drop_layers": [1]} | FISHER),
        "llama-twelve": ("llama", {"heads": 0.42} | FISHER | TWELVE),
        "llama-l1": ("llama", {"flops": 0.7, "importance": "l1"}),
        "bert-fewer": ("bert", {"flops": 0.35} | RECONSTRUCTED),
        "gpt2-fewer": ("gpt2", {"parameters": 0.5} | RECONSTRUCTED),
        "llama-fewer": ("llama", {"flops": 0.25} | RECONSTRUCTED),
    }
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Of each case the report, the logits, and those of a process in which hfcompress cannot be imported."""
    folder, made = tmp_path_factory.mktemp("plain"), {}
    inputs = batch(4)
    torch.save(inputs, folder / "inputs.pt")
    for name, (architecture, settings) in CASES.items():
        sizes = {key: value for key, value in settings.items() if key in TWELVE}
        model = build(architecture, layers=3, **sizes)
        report = prune_structured(model, plain=True, **{k: v for k, v in settings.items() if k not in sizes})
        model.save_pretrained(folder / name)
        with torch.no_grad():
            made[name] = report, model.eval()(**inputs).logits
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder), *CASES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    loaded = torch.load(folder / "found.pt")
    return {name: (*made[name], loaded[name]) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_a_plain_folder_loads_without_hfcompress(name, found):
    report, expected, loaded = found[name]
    assert torch.equal(loaded, expected)
    for kind in ("heads", "neurons"):
        assert len({block.after for block in report.blocks if block.kind == kind}) <= 1
    for measure in ("flops", "parameters"):
        if measure in report.asked:
            before, after = getattr(report, measure)
            assert 0.7 * report.asked[measure] * before < after <= report.asked[measure] * before
    if "neurons" in report.asked:
        assert report.removed("neurons") == pytest.approx(report.asked["neurons"], abs=0.07)


@pytest.mark.parametrize("name", [name for name in SHRINKABLE if name not in HEADS])
def test_heads_that_no_config_states_are_refused(name):
    refused(build(name), r"no setting for fewer heads.*heads=0.*drop_layers=.*plain=True", heads=0.5, plain=True)


@pytest.mark.parametrize("name", NEITHER)
def test_neurons_that_no_config_states_are_refused(name):
    refused(build(name), "no setting for fewer neurons", neurons=0.5, plain=True)


FEWER = {
    "bert": ("bert", {"flops": 0.3} | RECONSTRUCTED, {}),
    "bert-l1": ("bert", {"flops": 0.3, "importance": "l1"}, {}),
    "bert-taylor": ("bert", {"parameters": 0.4, "importance": "taylor", "dataset": LABELLED}, {}),
    "bert-half": ("bert", {"flops": 0.75} | RECONSTRUCTED, {}),
    "bert-as-it-is": ("bert", {"flops": 0.8, "reconstruct": False} | FISHER, {}),
    "deberta-v2": ("deberta-v2", {"flops": 0.3} | RECONSTRUCTED, {}),
    "gpt2": ("gpt2", {"parameters": 0.4} | RECONSTRUCTED, {}),
    "llama": ("llama", {"flops": 0.15} | RECONSTRUCTED, {}),
    "qwen2": ("qwen2", {"flops": 0.15} | RECONSTRUCTED, {}),
}


@pytest.mark.parametrize("name", FEWER)
def test_a_budget_drops_as_many_layers_as_lose_least(name, monkeypatch):
    """Against a plain loop over the numbers of layers to drop, each given; without data the fewest are dropped."""
    monkeypatch.setattr(Data, "part", lambda data: data)
    architecture, settings, sizes = FEWER[name]
    model = build(architecture, layers=4, **sizes)
    made, expected, least = {}, None, math.inf
    for number in range(4):
        made[number] = copy.deepcopy(model)
        try:
            report = prune_structured(made[number], plain=True, drop_layers=number, **settings)
        except CompressionError:
            continue
        if "dataset" not in settings:
            expected = number
            break
        loss = loss_of(model, made[number], report)
        if loss < least:
            expected, least = number, loss
        if not any(report.removed(kind) for kind in ("heads", "neurons")):
            break
    report = prune_structured(model, plain=True, **settings)
    assert report.layers == (4, 4 - expected)
    assert same_bits(model.state_dict(), made[expected].state_dict())
    assert model.config.to_dict() == made[expected].config.to_dict()


def loss_of(model, smaller, report):
    """How far the logits are from the original's, of held-out texts where outputs were reconstructed."""
    if report.reconstruction is not None:
        return report.reconstruction.logits_error[1]
    data = {name: value for name, value in batch(16, 10).items() if name != "labels"}
    with torch.no_grad():
        return float((copy.deepcopy(model).eval()(**data).logits - smaller.eval()(**data).logits).square().mean())


@pytest.mark.parametrize("share", [0.85, 0.3])
def test_a_latency_is_of_the_model_with_all_layers(share, monkeypatch):
    """The clock is a stand-in: milliseconds that grow with the FLOPs."""
    monkeypatch.setattr(budget, "milliseconds", lambda model: count_flops(model, dummy_inputs(model)) / 1e5)
    model = build("bert", layers=3)
    report = prune_structured(model, plain=True, latency=share, **FISHER)
    before, after = report.latency_ms
    assert (1e5 * before, 1e5 * after) == pytest.approx(report.flops)
    assert 0.7 * share * before < after <= share * before
    assert (report.layers[1] < 3) is (share < 0.5)


def test_a_layer_that_must_stay_is_not_dropped():
    """The first of a ModernBERT has no norm before its attention; here it is the least important."""
    model = build("modernbert", layers=3)
    with torch.no_grad():
        for module in (model.model.layers[0].attn.Wo, model.model.layers[0].mlp.Wo):
            module.weight.mul_(1e-3)
    report = prune_structured(model, plain=True, flops=0.3, **FISHER)
    assert report.layers == (3, 1)
    assert isinstance(model.model.layers[0].attn_norm, torch.nn.Identity)


@pytest.mark.parametrize("measure", ["flops", "parameters", "latency"])
def test_a_budget_that_one_layer_does_not_meet_is_refused(measure, monkeypatch):
    monkeypatch.setattr(budget, "milliseconds", lambda model: count_flops(model, dummy_inputs(model)) / 1e5)
    remedy = r"with one layer and the fewest .* left; ask for more, or leave out plain=True"
    refused(build("bert", layers=3), remedy, plain=True, **{measure: 0.05}, **FISHER)


@pytest.mark.parametrize("name", ["mpnet", "phi", "gptj"])
def test_layers_that_cannot_be_ranked_stay(name):
    refused(build(name, layers=3), r"fewest .* each layer .*\(drop_layers=\)", flops=0.4, plain=True)
    refused(build(name, layers=3), r"fewest .* each layer .*\(drop_layers=\)", flops=0.4, plain=True, drop_layers=[1])


@pytest.mark.parametrize("name", ["albert", "bart", "t5"])
def test_layers_that_cannot_be_dropped_stay(name):
    refused(build(name), "each layer .* ask for more, or leave out plain=True", flops=0.1, plain=True)


def test_drop_layers_given_stays_as_asked():
    model = build("bert", layers=4)
    for layers in ([0], 0):
        refused(model, r"with the fewest .* each layer .*drop layers too", flops=0.3, plain=True, drop_layers=layers)
    expected = copy.deepcopy(model)
    del expected.bert.encoder.layer[3]
    report = prune_structured(model, flops=0.7, plain=True, drop_layers=[3], **FISHER)
    assert report.layers == (4, 3)
    queries = [one.bert.encoder.layer[0].attention.self.query.weight for one in (model, expected)]
    assert torch.equal(*queries)


@pytest.mark.parametrize("reconstruct", [False, True])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_model_without_a_padding_token_is_shrunk(architecture, reconstruct):
    model = build(architecture)
    model.config.pad_token_id = None
    texts = [{"input_ids": row["input_ids"]} for row in LABELLED]  # of one length, so that batches have several
    report = prune_structured(
        model, flops=0.5, plain=True, importance="obs", dataset=texts, batch_size=4, reconstruct=reconstruct
    )
    assert report.flops[1] <= 0.5 * report.flops[0]
    assert model.config.pad_token_id is None


def test_without_plain_a_budget_drops_no_layers():
    assert prune_structured(build("bert", layers=3), flops=0.3, importance="l1").layers == (3, 3)
    refused(build("bert", layers=3), r"drop layers too \(drop_layers=\)\.", flops=0.05, importance="l1")


def test_a_model_that_was_uneven_before_becomes_even_or_is_refused():
    model = build("bert", layers=3)
    prune_structured(model, neurons=0.4)
    assert len(set(model.config.quantization_config["neurons"])) > 1
    other = copy.deepcopy(model)
    prune_structured(model, neurons=0.3, plain=True)
    assert "quantization_config" not in model.config.to_dict()
    prune_structured(other, heads=0.25)
    refused(other, "cannot state its heads", neurons=0.3, plain=True)
    refused(other, "cannot state its heads", drop_layers=[0], plain=True)


def groups(counts):
    return [NeuronGroup(f"layer.{n}", count, (Slice(f"{n}", False),)) for n, count in enumerate(counts)]


@pytest.mark.parametrize("counts", [(12, 12, 12), (16, 9, 12)])
@pytest.mark.parametrize("round_to", [1, 4])
def test_the_same_number_of_the_least_important_is_removed(counts, round_to):
    """Against a plain loop over the numbers that may be left."""
    generator = torch.Generator().manual_seed(len(set(counts)) + round_to)
    scores = [torch.rand(count, generator=generator, dtype=torch.float64) for count in counts]
    own, costs = groups(counts), [5, 3, 4]
    every = [n for n in range(min(counts), 0, -1) if n % round_to == 0 or n == min(counts)]
    options = {"round_to": round_to, "left": {"neurons": every}}
    for surplus in (0, 1, 30, 60, 90, 120):
        removal = select_for_budget(own, scores, costs, surplus, additive=True, **options)
        saved = {left: sum(cost * (count - left) for cost, count in zip(costs, counts, strict=True)) for left in every}
        left = next((n for n in every if saved[n] >= surplus), every[-1])
        for group, score in zip(own, scores, strict=True):
            assert removal[group] == set(score.argsort()[: group.count - left].tolist())
    half = select(own, scores, {"neurons": 0.5}, **options)
    assert len({group.count - len(gone) for group, gone in half.items()}) == 1


needs_layers_of_their_own = pytest.mark.skipif(
    not hasattr(PreTrainedConfig, "per_layer_config"), reason="config.per_layer_config: transformers 5.14"
)


@pytest.fixture
def heterogeneous(monkeypatch):
    """Llama, with layers that read what the config has for each of them."""

    class Layer(modeling_llama.LlamaDecoderLayer):
        def __init__(self, config, layer_idx):
            super().__init__(config.per_layer_config[layer_idx], layer_idx)

    monkeypatch.setattr(modeling_llama, "LlamaDecoderLayer", Layer)


@needs_layers_of_their_own
def test_uneven_shapes_are_plain_where_layers_have_settings(heterogeneous, tmp_path):
    model = build("llama", layers=3)
    prune_structured(model, neurons=0.4, **FISHER)
    counts = [layer.mlp.gate_proj.out_features for layer in model.model.layers]
    assert len(set(counts)) > 1
    assert "quantization_config" not in model.config.to_dict()
    again = prune_structured(copy.deepcopy(model), neurons=0.3, **FISHER)
    assert [block.before for block in again.blocks] == counts
    student = student_from_teacher(model, [0, 2])
    assert [layer.mlp.gate_proj.out_features for layer in student.model.layers] == [counts[0], counts[2]]
    for name, one in (("whole", model), ("student", student)):
        one.save_pretrained(tmp_path / name)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / name).eval()
        with torch.no_grad():
            assert torch.equal(loaded(**batch(4)).logits, one.eval()(**batch(4)).logits)


@needs_layers_of_their_own
def test_a_model_with_settings_by_layer_is_shrunk(heterogeneous, tmp_path):
    model = build("llama", layers=3, per_layer_config={1: {"intermediate_size": 32}})
    prune_structured(model, neurons=0.5, heads=0.5, plain=True, **FISHER)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch(4)).logits, model.eval()(**batch(4)).logits)
    assert isinstance(model.config, LlamaConfig)
