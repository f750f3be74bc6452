"""`prune_structured`: what it removes, what the result works with, and what it refuses."""

import copy
import json
import pickle

import numpy as np
import peft
import pytest
import torch
from architectures import CHECKPOINTING, arguments, batch, build, same_bits, state_of, word_tokenizer
from shrinking import LABELLED, everywhere, inputs, logits, parameters, refused
from torch.nn.utils import prune
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hfcompress import (
    CompressionError,
    KeepSparsity,
    prune_global_l1,
    prune_structured,
    sparsity_report,
    student_from_teacher,
)
from hfcompress.shrink import structured


@everywhere
def test_half_of_heads_and_neurons_are_removed(architecture):
    model = build(architecture, layers=3)
    whole = copy.deepcopy(model)
    report = prune_structured(model, heads=0.5, neurons=0.5)
    assert report.removed("heads") == report.removed("neurons") == 0.5
    assert report.parameters == (parameters(whole), parameters(model))
    assert report.parameters[1] < report.parameters[0]
    assert 0.4 < report.flops[1] / report.flops[0] < 0.6
    assert all(block.after >= 1 and (block.kind == "heads" or block.after % 8 == 0) for block in report.blocks)
    kept = [name for name, value in whole.state_dict().items() if value.shape == model.state_dict()[name].shape]
    assert kept, "embeddings and head"
    for name in kept:
        assert torch.equal(whole.state_dict()[name], model.state_dict()[name]), name
    answer = logits(model)
    assert answer.isfinite().all()
    assert "parameters" in str(report)
    assert json.loads(report.to_json())["heads_removed"] == 0.5


def test_layers_are_dropped_by_index_or_importance():
    model = build("bert", layers=4)
    whole = copy.deepcopy(model)
    report = prune_structured(model, drop_layers=[1, -1])
    assert report.layers == (4, 2)
    assert torch.equal(logits(model), logits(student_from_teacher(whole, [0, 2])))

    with torch.no_grad():
        for parameter in whole.bert.encoder.layer[2].parameters():
            parameter.mul_(0.01)
    weakened = copy.deepcopy(whole)
    prune_structured(weakened, drop_layers=1, neurons=0.25)
    assert weakened.config.num_hidden_layers == 3
    prune_structured(whole, drop_layers=[2], neurons=0.25)
    assert same_bits(whole.state_dict(), weakened.state_dict())


def test_a_shrunken_model_can_be_shrunk_and_pruned_again(tmp_path):
    model = build("bert", layers=3)
    prune_structured(model, heads=0.25, neurons=0.25)
    prune_global_l1(model, 0.3)
    prune_structured(model, heads=0.3, neurons=0.3)
    prune_global_l1(model, 0.5)
    small = student_from_teacher(model, [0, 2])
    for index, one in enumerate((model, small)):
        one.save_pretrained(tmp_path / str(index))
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / str(index))
        assert same_bits(again.state_dict(), one.state_dict())
        assert sparsity_report(again).zeros == sparsity_report(one).zeros > 0


@everywhere
def test_it_trains_saves_and_loads_bit_for_bit(architecture, tmp_path):
    model = build(architecture, layers=3)
    prune_structured(model, heads=0.5, neurons=0.4)
    before = state_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**batch()).loss.backward()
    optimizer.step()
    assert not same_bits(before, model.state_dict())
    model.save_pretrained(tmp_path)
    again, notes = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    assert same_bits(again.state_dict(), model.state_dict())
    assert torch.equal(logits(again), logits(model))
    body, saved = AutoModel.from_pretrained(tmp_path).state_dict(), model.base_model.state_dict()
    assert same_bits({name: body[name] for name in saved}, saved)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_loaded_model_is_an_ordinary_model(architecture, tmp_path):
    model = build(architecture)
    prune_structured(model, heads=0.5, neurons=0.4)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    expected = logits(again)
    assert torch.equal(logits(copy.deepcopy(again)), expected)
    assert torch.equal(logits(pickle.loads(pickle.dumps(again))), expected)
    assert again.half().dtype == torch.float16
    again.float()
    assert not getattr(again, "is_quantized", False)
    target = ["query", "value"] if architecture == "bert" else ["c_attn"]
    tuned = peft.get_peft_model(
        copy.deepcopy(again),
        peft.LoraConfig(task_type="SEQ_CLS", target_modules=target, fan_in_fan_out=architecture == "gpt2"),
    )
    args = arguments(TrainingArguments, tmp_path / "out", max_steps=2, **{CHECKPOINTING: True})
    Trainer(model=tuned, args=args, train_dataset=LABELLED).train()
    zeros = prune_global_l1(again, 0.5).zeros
    Trainer(model=again, args=args, train_dataset=LABELLED, callbacks=[KeepSparsity()]).train()
    assert sparsity_report(again).zeros == zeros
    again.save_pretrained(tmp_path / "trained")
    third = AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained")
    assert same_bits(third.state_dict(), again.state_dict())


def loaded(architecture, directory):
    """A shrunken model as it comes from its folder; one layer, because each is traced anew."""
    model = build(architecture, layers=1)
    prune_structured(model, heads=0.5, neurons=0.4)
    model.save_pretrained(directory)
    return AutoModelForSequenceClassification.from_pretrained(directory).eval()


def test_torch_export_gives_the_same_logits(tmp_path):
    model = loaded("bert", tmp_path)
    exported = torch.export.export(model, (), kwargs=inputs(), strict=False)  # as newer releases of torch do by default
    torch.testing.assert_close(exported.module()(**inputs()).logits, logits(model), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_torch_compile_gives_the_same_logits(tmp_path):
    model = loaded("bert", tmp_path)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(**inputs()).logits, logits(model), rtol=1e-5, atol=1e-5)


def test_a_pipeline_uses_it(tmp_path):
    model = build("bert", layers=3)
    prune_structured(model, heads=0.5, neurons=0.4)
    model.save_pretrained(tmp_path)
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    answer = pipeline("text-classification", str(tmp_path), device="cpu")("good bad good")[0]
    with torch.no_grad():
        expected = model.eval()(**tokenizer("good bad good", return_tensors="pt")).logits.softmax(-1).max()
    assert answer["score"] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`:FutureWarning")  # torch.onnx.export's own
def test_onnx_runtime_gives_the_same_logits(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = loaded("gpt2", tmp_path)
    model.config.use_cache = False  # torch.export knows no caches
    torch.onnx.export(model, (), tmp_path / "model.onnx", kwargs=inputs(), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    data = {name: value.numpy() for name, value in inputs().items()}
    (found,) = session.run(None, {one.name: data[one.name] for one in session.get_inputs()})
    np.testing.assert_allclose(found, logits(model).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Nothing was asked"),
        ({"heads": 1.0}, r"heads=1\.0"),
        ({"heads": -0.1}, r"heads=-0\.1"),
        ({"neurons": float("nan")}, "neurons=nan"),
        ({"neurons": "half"}, "neurons='half'"),
        ({"heads": True}, "heads=True"),
        ({"flops": 1.5}, r"flops=1\.5"),
        ({"flops": 0}, r"flops=0 must be in \(0, 1\)"),
        ({"parameters": 0.0}, r"parameters=0\.0 must be in \(0, 1\)"),
        ({"latency": False}, r"latency=False must be in \(0, 1\)"),
        ({"heads": 0.5, "plain": "yes"}, "plain='yes' is unknown; choose one of True, False"),
        ({"parameters": 1}, "parameters=1"),
        ({"flops": 0.5, "parameters": 0.5}, "exclude each other"),
        ({"flops": 0.5, "heads": 0.5}, "exclude each other"),
        ({"latency": 0.5, "drop_layers": 1}, "in a call before"),
        ({"latency": 2}, "latency=2"),
        ({"heads": 0.5, "importance": "magic"}, "importance='magic'.*l1, taylor, fisher"),
        ({"heads": 0.5, "scope": "model"}, "scope='model'"),
        ({"neurons": 0.5, "round_to": 0}, "round_to=0"),
        ({"neurons": 0.5, "round_to": 64}, "round_to=64 .* has 64 in its widest, so none can be removed"),
        ({"heads": 0.5, "neurons": 0.5, "round_to": 100, "plain": True}, "round_to=100 .* choose a smaller one"),
        ({"heads": 0.5, "importance": "taylor"}, "needs labelled data"),
        ({"heads": 0.5, "importance": "taylor", "dataset": []}, "found 0 rows"),
        ({"heads": 0.5, "importance": "fisher", "dataset": [{"input_ids": [1]}]}, "found 1 rows with input_ids"),
        ({"flops": 0.01}, "fewest that must stay"),
        ({"drop_layers": 3}, "drop_layers=3"),
        ({"drop_layers": [7]}, r"drop_layers=\[7\]"),
        ({"drop_layers": [0, 1, 2]}, "at least one must stay"),
        ({"drop_layers": "all"}, "drop_layers='all'"),
        ({"drop_layers": np.array([0, 1])}, r"drop_layers=array\(\[0, 1\]\) must be"),
        ({"drop_layers": [1], "flops": 0.01}, "fewest that must stay"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_and_the_model_stays(settings, message):
    refused(build("bert", layers=3), message, **settings)


@pytest.mark.parametrize("architecture", ["mpnet", "bloom"])
def test_layers_that_cannot_be_ranked_are_named_by_index(architecture):
    refused(build(architecture, layers=3), r"layers of .* cannot be ranked.*\(drop_layers=\[1\]\)", drop_layers=1)
    assert prune_structured(build(architecture, layers=3), drop_layers=[1]).layers == (3, 2)


def test_a_model_that_cannot_be_counted_afterwards_stays(monkeypatch):
    counts = iter([1])
    monkeypatch.setattr(structured, "count_flops", lambda model, inputs: next(counts))
    model = build("bert")
    before, config = state_of(model), model.config
    with pytest.raises(StopIteration):
        prune_structured(model, heads=0.5)
    assert same_bits(before, model.state_dict())
    assert model.config is config


def test_models_that_cannot_be_shrunk_are_refused():
    with pytest.raises(CompressionError, match="meta"), torch.device("meta"):
        prune_structured(build("bert"), heads=0.5)
    with pytest.raises(CompressionError, match="PreTrainedModel, not Linear"):
        prune_structured(torch.nn.Linear(4, 4), heads=0.5)
    adapted = peft.get_peft_model(build("bert"), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    with pytest.raises(CompressionError, match="merge"):
        prune_structured(adapted, heads=0.5)
    refused(adapted.get_base_model(), "merge adapters", heads=0.5)
    hooked = build("bert")
    hooked.bert.encoder.layer[0].output.dense.register_forward_hook(lambda *_: None)
    refused(hooked, r"layer\.0\.output\.dense has hooks", neurons=0.5)
    pruned = build("bert")
    prune.l1_unstructured(pruned.bert.encoder.layer[1].intermediate.dense, "weight", 0.5)
    refused(pruned, r"intermediate\.dense. is computed from other parameters", neurons=0.5)


class Weighted(BertForSequenceClassification):
    def __init__(self, config, weights, *, scale, bias=None, **more):
        super().__init__(config)


@pytest.mark.parametrize("settings", [{"heads": 0.5}, {"drop_layers": [1]}, {"flops": 0.7, "plain": True}], ids=str)
def test_a_class_that_takes_more_than_a_config_is_refused(settings):
    model = Weighted(build("bert").config, [1.0], scale=2)
    refused(model, "Weighted cannot be built from its config alone.* needs weights, scale; read", **settings)
    with pytest.raises(CompressionError, match="Weighted cannot be built from its config alone"):
        student_from_teacher(model, 1)


@pytest.mark.parametrize(
    ("architecture", "dtype", "importance"),
    [
        ("bert", torch.bfloat16, "l1"),
        ("bert", torch.float16, "fisher"),
        ("gpt2", torch.bfloat16, "fisher"),
        ("gpt2", torch.float16, "l1"),
        ("llama", torch.bfloat16, "l1"),
        ("llama", torch.float16, "fisher"),
    ],
)
def test_half_precision_stays_half_precision(architecture, dtype, importance):
    model = build(architecture, layers=3).to(dtype)
    whole = copy.deepcopy(model)
    prune_structured(model, heads=0.5, neurons=0.5, importance=importance, dataset=LABELLED)
    assert {value.dtype for value in model.state_dict().values()} == {dtype}
    assert parameters(model) < parameters(whole)
    name = "score.weight" if architecture != "bert" else "classifier.weight"
    assert torch.equal(model.state_dict()[name], whole.state_dict()[name])
    refused(build(architecture).to(dtype), "fewest that must stay", flops=0.01)


def test_a_model_with_gradient_checkpointing_keeps_it():
    model = build("bert", layers=3)
    getattr(model, f"{CHECKPOINTING}_enable")()
    prune_structured(model, heads=0.5, drop_layers=[1])
    assert getattr(student_from_teacher(model, 1), f"is_{CHECKPOINTING}")
    assert getattr(model, f"is_{CHECKPOINTING}")


def test_a_config_of_another_model_stays_as_it_is(tmp_path):
    one = build("bert", layers=3)
    other = type(one)(one.config)
    assert one.config is other.config
    before, answer = copy.deepcopy(other.config.to_dict()), logits(other)
    prune_structured(one, neurons=0.5, heads=0.5, scope="layer", drop_layers=[1])
    assert other.config.to_dict() == before
    assert one.config is one.bert.config is one.bert.encoder.layer[0].attention.self.config is not other.config
    other.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForSequenceClassification.from_pretrained(tmp_path)), answer)


def test_numbers_of_numpy_are_numbers():
    one, other = build("bert", layers=3), build("bert", layers=3)
    prune_structured(one, neurons=np.float32(0.5), drop_layers=np.int64(1), round_to=np.int32(8))
    prune_structured(other, neurons=0.5, drop_layers=1)
    assert same_bits(one.state_dict(), other.state_dict())
    refused(one, "Nothing was asked", drop_layers=[])


def test_a_quantization_of_the_users_own_is_not_lost():
    model = build("bert", layers=3)
    model.config.quantization_config = {"quant_method": "fp8"}
    refused(model, "quantization_config of its own", heads=0.5)
    assert student_from_teacher(model, 2).config.quantization_config == {"quant_method": "fp8"}


def test_in_inference_mode_it_is_refused():
    model = build("bert")
    with torch.inference_mode():
        refused(model, r"is called inside torch.inference_mode\(\), .* torch.no_grad\(\)", heads=0.5)
        made = build("bert")
    refused(made, r"was made inside torch.inference_mode\(\)", heads=0.5)
    with torch.no_grad():
        prune_structured(model, heads=0.5, dataset=LABELLED)
