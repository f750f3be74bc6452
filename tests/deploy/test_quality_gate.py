"""int8 behind its gate: what passes, what is left in float32, what is refused; and what the report says."""

import copy
import dataclasses
import json
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace

import onnx
import pytest
import torch
from architectures import WORDS, batch, build, rows, word_tokenizer
from datasets import ClassLabel, Dataset
from exports import export, inputs, needs_torch_export

import hfcompress as hfc
from hfcompress.deploy import exporting, onnx_candidates, quality_gate, quantization, speed
from hfcompress.deploy.held_out import HeldOut

pytestmark = needs_torch_export
ROWS = 240
OUTPUT = "bert.encoder.layer.0.attention.output.dense"


def make_texts():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 24, (ROWS,), generator=generator).tolist()
    return [[2, *torch.randint(5, 100, (length,), generator=generator).tolist()] for length in lengths]


@pytest.fixture(scope="module")
def model():
    """A BERT that chooses each class for half of the rows."""
    model = build("bert", seed=3).eval()
    model.classifier.bias.data[0] += margins(model).median()
    return model


@torch.no_grad()
def margins(model):
    logits = torch.cat([model(torch.tensor([ids])).logits for ids in make_texts()])
    return logits[:, 1] - logits[:, 0]


@pytest.fixture(scope="module")
def data(model):
    """The rows, labelled by the model itself, so that every lost prediction is a lost point of accuracy."""
    labels = (margins(model) > 0).long().tolist()
    assert ROWS / 5 < sum(labels) < 4 * ROWS / 5
    return [{"input_ids": ids, "labels": label} for ids, label in zip(make_texts(), labels, strict=True)]


def plant(model):
    """Scale a value channel by 1000, and what reads it by 1/1000: the same function, with an outlier."""
    planted = copy.deepcopy(model)
    attention = planted.bert.encoder.layer[0].attention
    attention.self.value.weight.data[5] *= 1000
    attention.self.value.bias.data[5] *= 1000
    attention.output.dense.weight.data[:, 5] /= 1000
    return planted


@pytest.fixture(scope="module")
def plain(model, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "onnx"
    return folder, export(model, folder, dtype="int8", dataset=data, max_drop=0.05, repeats=8)


@pytest.fixture(scope="module")
def planted(model, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / "onnx"
    settings = {"dataset": data, "max_drop": 0.05, "equalize": False, "repeats": 1}
    return folder, export(plant(model), folder, dtype="int8", **settings)


def predictions(exported, data):
    return torch.cat([exported(input_ids=torch.tensor([row["input_ids"]])).logits.argmax(-1) for row in data])


def test_an_int8_model_is_small_and_predicts_alike(plain, model, data):
    folder, report = plain
    exported = hfc.load_exported(folder)
    labels = torch.tensor([row["labels"] for row in data])
    assert (report.dtype, exported.dtype, report.left_in_float32) == ("int8", "int8", ())
    assert (predictions(exported, data) == labels).double().mean() > 0.95
    kinds = {one.data_type for one in onnx.load(folder / "model.onnx").graph.initializer if len(one.dims) == 2}
    assert onnx.TensorProto.FLOAT not in kinds
    assert json.loads((folder / "hfcompress_export.json").read_text())["dtype"] == "int8"
    assert not list(folder.glob("work-*"))


def test_the_gate_counts_rows_that_it_did_not_rank_on(plain, data):
    folder, report = plain
    gate = report.gate
    assert (gate.rows, gate.ranked_rows) == (ROWS // 2, ROWS // 2)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)).tolist()[ROWS // 2 :]
    judged = [data[index] for index in order]
    right = predictions(hfc.load_exported(folder), judged) == torch.tensor([row["labels"] for row in judged])
    assert gate.int8 == pytest.approx(right.double().mean().item())
    assert gate.agreement == gate.int8  # the labels are the float32 model's predictions
    assert gate.float32 == 1.0
    assert gate.test.only_first == int((~right).sum())
    assert gate.interval[0] <= gate.drop <= gate.interval[1]


def test_a_planted_outlier_is_named_first_and_repaired(planted, plain, data):
    report = planted[1]
    assert report.left_in_float32[0] == OUTPUT
    assert report.gate.agreement >= plain[1].gate.agreement - 0.01
    assert OUTPUT in report.to_text()
    assert "that of all of it int8" in report.to_text()


def test_without_the_gate_the_outlier_costs_ten_points(planted):
    assert planted[1].gate.all_int8_agreement <= planted[1].gate.agreement - 0.1


def test_with_equalized_channels_nothing_is_left_in_float32(planted, plain, model, data, tmp_path):
    report = export(plant(model), tmp_path / "onnx", dtype="int8", dataset=data, max_drop=0.05)
    equalization = report.gate.equalization
    assert report.left_in_float32 == ()
    assert "values" in equalization.channels
    assert equalization.after < 0.1 * equalization.before
    assert report.gate.agreement >= plain[1].gate.agreement - 0.01
    assert "Equalized before int8: values" in report.to_text()
    assert report.difference < 1e-4
    assert planted[1].gate.equalization is None
    json.dumps(report.to_dict())


def test_channels_stay_where_equalizing_does_not_help(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_candidates, "_HELPS", 0.0)
    report = export(model, tmp_path / "onnx", dtype="int8", dataset=data, max_drop=0.05)
    assert report.gate.equalization.channels == ()
    assert "does not help int8 here" in report.to_text()
    names = {one.name for one in onnx.load(tmp_path / "onnx" / "model.onnx").graph.node}
    assert not any("residual" in name for name in names)


def answering_a_rare_token(model):
    """Let a neuron answer strongly to the token 99, and nothing read it: float32 has it for nothing, int8 does not."""
    planted = copy.deepcopy(model)
    table, layer = planted.bert.embeddings.word_embeddings.weight.data, planted.bert.encoder.layer[0]
    table[99] = 0
    table[99, 0] = 4 * table.abs().max()
    for one in (layer.intermediate.dense, layer.output.dense):  # so that the other neurons matter
        one.weight.data *= 8
    layer.intermediate.dense.weight.data[0] = 0
    layer.intermediate.dense.weight.data[0, 0] = 3000
    layer.intermediate.dense.bias.data[0] = -3000 * 2
    layer.output.dense.weight.data[:, 0] = 0
    return planted


def test_texts_must_be_predicted_alike_in_a_batch_too(model, tmp_path, monkeypatch):
    """The scales of a batch depend on all texts in it, so that one of them with an outlier costs all others."""
    planted = answering_a_rare_token(model)
    texts = [[2, *(5 + (token - 5) % 94 for token in ids[1:])] for ids in make_texts()]
    texts = [[*ids, 99] if number % 25 == 0 else ids for number, ids in enumerate(texts)]
    with torch.no_grad():
        labels = [planted(torch.tensor([ids])).logits.argmax().item() for ids in texts]
    data = [{"input_ids": ids, "labels": label} for ids, label in zip(texts, labels, strict=True)]
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)).tolist()[ROWS // 2 :]
    judged = [data[index] for index in order]

    def in_batches(folder):
        """How many are predicted as by float32, 16 at once."""
        exported, found = hfc.load_exported(folder), []
        for start in range(0, len(judged), 16):
            part = [torch.tensor(row["input_ids"]) for row in judged[start : start + 16]]
            ids, mask = (
                torch.nn.utils.rnn.pad_sequence(ones, batch_first=True)
                for ones in (part, [torch.ones_like(one) for one in part])
            )
            found += exported(input_ids=ids, attention_mask=mask).logits.argmax(-1).tolist()
        return sum(one == row["labels"] for one, row in zip(found, judged, strict=True)) / len(judged)

    settings = {"dtype": "int8", "dataset": data, "max_drop": 0.05, "equalize": False, "repeats": 0}
    gate = export(planted, tmp_path / "onnx", **settings).gate
    assert gate.agreement_in_batches == gate.int8_in_batches == pytest.approx(in_batches(tmp_path / "onnx"))
    assert gate.agreement_in_batches >= 0.95
    assert gate.left_in_float32[0] == "bert.encoder.layer.0.output.dense"
    with monkeypatch.context() as patch:  # judged by texts alone all of it would be int8
        patch.setattr(quality_gate.QualityGate, "passed", property(lambda gate: gate.agreement >= 0.95))
        gate = export(planted, tmp_path / "alone", **settings).gate
    assert (gate.left_in_float32, gate.passed) == ((), False)
    assert gate.agreement_in_batches == pytest.approx(in_batches(tmp_path / "alone"))
    assert gate.agreement_in_batches < 0.9 < gate.agreement
    assert "as the scales of activations depend on all texts of a batch." in " ".join(gate.sentences())


def test_static_scales_are_measured_before(plain, model, data, tmp_path):
    report = export(model, tmp_path / "onnx", dtype="int8", dataset=data, max_drop=0.1, static=True, equalize=False)
    assert report.static
    assert not plain[1].static
    assert "scaled by what was measured before" in report.to_text()
    graphs = [onnx.load(folder / "model.onnx").graph for folder in (tmp_path / "onnx", plain[0])]
    static, dynamic = ({node.op_type for node in graph.node} for graph in graphs)
    assert "QuantizeLinear" in static
    assert "DynamicQuantizeLinear" not in static
    assert "DynamicQuantizeLinear" in dynamic
    assert predictions(hfc.load_exported(tmp_path / "onnx"), data).unique().tolist() == [0, 1]


def test_where_nothing_passes_the_best_is_named_and_nothing_written(model, data, tmp_path):
    with pytest.raises(hfc.CompressionError, match=r"nothing was written\. The best: On 120 held-out rows") as refused:
        export(plant(model), tmp_path / "onnx", dtype="int8", dataset=data, max_drop=0.0, equalize=False)
    assert OUTPUT in str(refused.value)
    assert list(tmp_path.iterdir()) == []


# What the report says


def test_the_report_times_torch_and_both_models(plain):
    times = plain[1].times
    names = [speed.TORCH, speed.label("onnx", "float32"), speed.label("onnx", "int8")]
    assert list(times.rows) == names
    assert [one.batch_size for one in times.first.passes] == [1, 16]
    assert "AVX" in plain[1].to_text() or "none of" in plain[1].to_text()
    json.dumps(plain[1].to_dict())


def test_the_interval_holds_for_all_models_that_were_judged(planted, data):
    """The n-th model's interval may fail in 5 % / (n (n + 1)), so that all together do in 5 %."""
    folder, report = planted
    gate = report.gate
    assert gate.tried > 2
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)).tolist()[ROWS // 2 :]
    judged = [data[index] for index in order]
    right = predictions(hfc.load_exported(folder), judged) == torch.tensor([row["labels"] for row in judged])
    lost = (~right).double()
    count, error = len(lost) + 2, 0.05 / (gate.tried * (gate.tried + 1))
    mean = lost.sum().item() / count
    spread = NormalDist().inv_cdf(1 - error / 2) * ((lost.sum().item() + 2) / count - mean**2) ** 0.5 / count**0.5
    assert gate.interval == pytest.approx((mean - spread, mean + spread))
    assert f"which allows for {gate.tried} models having been judged" in " ".join(report.verdict)


def test_few_rows_cannot_confirm_the_loss(plain):
    gate = plain[1].gate
    assert "So few rows cannot confirm" in " ".join(dataclasses.replace(gate, max_drop=gate.drop).sentences())
    assert "So few rows" not in " ".join(dataclasses.replace(gate, max_drop=0.5).sentences())


def test_what_predicts_otherwise_does_not_pass_by_luck(plain):
    assert not dataclasses.replace(plain[1].gate, agreement=0.9, int8=1.0).passed
    assert not dataclasses.replace(plain[1].gate, agreement_in_batches=0.9, int8_in_batches=1.0).passed
    assert not dataclasses.replace(plain[1].gate, agreement_in_batches=1.0, int8_in_batches=0.9).passed
    assert dataclasses.replace(plain[1].gate, agreement=0.9, int8=1.0, max_drop=0.1).passed


@pytest.mark.parametrize(
    ("machine", "features", "bits"),
    [
        ("any", ["AVX2", "AVX-512 VNNI", "AMX"], 7),
        ("this", ["AVX2", "AVX-512"], 7),
        ("this", ["AVX2", "AVX-512 VNNI"], 8),
        ("this", ["AMX"], 8),
        ("this", [], 7),
    ],
)
def test_weights_saturate_on_no_machine_they_are_made_for(machine, features, bits, monkeypatch):
    monkeypatch.setattr(quantization, "processor_features", lambda: features)
    assert quantization.weight_bits(machine) == bits


def test_weights_of_seven_bits_stay_within_them(plain, model):
    assert plain[1].weight_bits == 7
    weights = onnx.load(plain[0] / "model.onnx").graph.initializer
    int8 = [one for one in weights if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 2]
    assert len(int8) >= sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    largest = [abs(onnx.numpy_helper.to_array(one).astype(int)).max() for one in int8]
    assert 32 < min(largest) <= max(largest) <= 64


def test_a_table_of_embeddings_has_one_scale_and_eight_bits(plain):
    weights = {one.name: one for one in onnx.load(plain[0] / "model.onnx").graph.initializer}
    table = next(name for name in weights if name.endswith("word_embeddings.weight_quantized"))
    values, scale = (onnx.numpy_helper.to_array(weights[name]) for name in (table, table[:-9] + "scale"))
    assert scale.shape == ()
    assert (values.dtype, values.min(), values.max()) == ("uint8", 0, 255)


# Refusals


DATASETS = {
    "none": (None, "needs dataset="),
    "empty": ([], "dataset has no rows"),
    "one row": ([{"input_ids": [5], "labels": 0}], "dataset has 1 row;"),
    "no labels": ([{"input_ids": [5, 6]}] * 4, "4 of the 4 rows of dataset have no 'labels'"),
    "no rows": ([1, 2], "int examples, such as 1: pass"),
    "a few without": ([{"input_ids": [5], "labels": 1}, {"input_ids": [5]}], "1 of the 2 rows"),
}


@pytest.mark.parametrize(("label", "message"), [(7, "go up to 7"), (0.5, "must be class indices")])
def test_labels_of_another_model_are_refused(label, message, tmp_path):
    dataset = [{"input_ids": [5, 6], "labels": label}] * 8
    with pytest.raises(hfc.CompressionError, match=f"{message}.*; int8 is judged by them, so pass those"):
        export(build(), tmp_path / "onnx", dtype="int8", dataset=dataset)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_classes_in_another_order_are_refused(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "build_graph", None)
    model = build(id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    data = Dataset.from_dict({"input_ids": [[5, 6]] * 8, "label": [0, 1] * 4}).cast_column(
        "label", ClassLabel(names=["good", "bad"])
    )
    with pytest.raises(hfc.CompressionError, match=r"'good' is class 0 of the data and class 1 of the model"):
        export(model, tmp_path / "onnx", dtype=dtype, dataset=data)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", DATASETS)
def test_rows_that_cannot_judge_are_refused(case, tmp_path):
    dataset, message = DATASETS[case]
    with pytest.raises(hfc.CompressionError, match=message):
        export(build(), tmp_path / "onnx", dtype="int8", dataset=dataset)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_drop": -0.1}, "max_drop=-0.1 must be in"),
        ({"max_drop": float("nan")}, "max_drop=nan must be in"),
        ({"machine": "other"}, "machine='other' is unknown"),
        ({"repeats": -1}, "repeats=-1 must be"),
    ],
)
def test_settings_without_sense_are_refused(settings, message, tmp_path):
    with pytest.raises(hfc.CompressionError, match=message):
        export(build(), tmp_path / "onnx", dtype="int8", dataset=rows(batch(8)), **settings)


@pytest.mark.parametrize("static", [True, False])
def test_scales_of_activations_are_refused_without_int8(static, tmp_path):
    with pytest.raises(hfc.CompressionError, match=f"static={static} is about int8 activations; pass dtype='int8' too"):
        export(build(), tmp_path / "onnx", static=static)
    assert list(tmp_path.iterdir()) == []


# Other problems


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_other_problems_have_a_gate_too(problem, tmp_path):
    outputs = 1 if problem == "regression" else 3
    model = build("distilbert", num_labels=outputs, problem_type=problem).eval()
    data = inputs(60, 9, seed=1)
    with torch.no_grad():
        logits = model(**data).logits
    data["labels"] = logits[:, 0] if problem == "regression" else (logits > 0).float()
    report = export(model, tmp_path / "onnx", dtype="int8", dataset=data, max_drop=0.2)
    assert report.gate.score == {"regression": "R2"}.get(problem, "label accuracy")
    assert report.gate.agreement > 0.9
    assert report.gate.float32 > 0.99
    line = "print(logits.tolist())" if problem == "regression" else "np.flatnonzero(row > 0)"
    assert line in (tmp_path / "onnx" / "README.md").read_text()


class Known(HeldOut):
    """Rows whose logits are known: a model is them."""

    def logits(self, model, rows):
        return model

    logits_in_batches = logits


def judge(int8, max_drop):
    """Judge logits for 40 texts with one of 20 labels each, which float32 predicts."""
    labels = torch.eye(20).repeat(2, 1)
    model = build("distilbert", num_labels=20, layers=1, problem_type="multi_label_classification")
    data = [{"input_ids": [5, 6], "labels": row} for row in labels.tolist()]
    candidates = SimpleNamespace(sets=lambda *of: [[]], build=lambda left: int8(4 * labels - 2), static=False)
    return quality_gate.choose(candidates, 4 * labels - 2, Known(model, None, data, data), max_drop, None)


def test_a_model_that_predicts_no_label_does_not_pass():
    with pytest.raises(hfc.CompressionError, match=r"int8 and float32 predict, 0\.0% are predicted by both; label acc"):
        judge(lambda logits: torch.full_like(logits, -2.0), max_drop=0.05)


def test_the_agreement_of_labels_is_counted_among_those_predicted():
    def without_two(logits):
        logits[:2] = -2.0
        return logits

    gate = judge(without_two, max_drop=0.05)
    assert gate.agreement == 2 * 38 / (40 + 38)
    assert gate.drop == pytest.approx(2 / 800)
    with pytest.raises(hfc.CompressionError, match=r"97\.4% are predicted by both"):
        judge(without_two, max_drop=0.0)


def test_float32_is_kept_where_int8_is_slower(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr("hfcompress.deploy.exporting.is_slower", lambda *names: True)
    monkeypatch.setattr("hfcompress.deploy.export_report.is_slower", lambda *names: True)
    report = export(model, tmp_path / "this", dtype="int8", dataset=data, max_drop=0.05, machine="this", repeats=1)
    assert (report.dtype, report.weight_bits, report.left_in_float32) == ("float32", None, ())
    assert hfc.load_exported(tmp_path / "this").dtype == "float32"
    assert "float32 was written" in report.to_text()


def test_what_is_not_timed_cannot_be_slower(model, data, tmp_path):
    with pytest.raises(hfc.CompressionError, match=r"which repeats=0 does not time; leave repeats= out, or choose"):
        export(model, tmp_path / "this", dtype="int8", dataset=data, machine="this", repeats=0)
    assert list(tmp_path.iterdir()) == []


def test_rows_may_be_texts_that_are_given_once(tmp_path):
    """As a generator gives them, and data that are streamed."""
    tokenizer = word_tokenizer()
    model = build("bert", layers=1, vocab_size=len(tokenizer)).eval()
    rows = [{"text": " ".join(WORDS[: 1 + n % len(WORDS)]), "labels": n % 2} for n in range(40)]
    streamed = Dataset.from_list(rows).to_iterable_dataset()
    settings = {"processing_class": tokenizer, "dtype": "int8", "max_drop": 0.99, "repeats": 0}
    gates = [hfc.export(model, tmp_path / "onnx", dataset=one, **settings).gate for one in (rows, iter(rows), streamed)]
    assert gates[0] == gates[1] == gates[2]


def test_a_full_disk_is_not_taken_for_the_quantizers_fault(plain, tmp_path, monkeypatch):
    def infer(source, target):  # onnx writes what there is room for, and raises nothing
        Path(target).write_bytes(Path(source).read_bytes()[:1000])

    quantization.save_for_quantizer(onnx.load(plain[0] / "model.onnx"), tmp_path / "source.onnx")
    monkeypatch.setattr("onnx.shape_inference.infer_shapes_path", infer)
    files = tmp_path / "source.onnx", tmp_path / "int8.onnx"
    with pytest.raises(hfc.CompressionError, match="ONNX Runtime cannot quantize the model"):
        quantization.quantize(*files, bits=7)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(OSError, match="No space left on device"):
        quantization.quantize(*files, bits=7)


def test_shapes_that_the_exporter_noted_do_not_matter(model, tmp_path):
    """The quantizer transposes weights, so some of them no longer hold."""
    export(model, tmp_path / "onnx")
    graph = onnx.load(tmp_path / "onnx" / "model.onnx")
    product = next(node for node in graph.graph.node if node.op_type == "MatMul").output[0]
    kept = [value for value in graph.graph.value_info if value.name != product]
    del graph.graph.value_info[:]
    graph.graph.value_info.extend([*kept, onnx.helper.make_tensor_value_info(product, 1, [2, 384, 7])])
    quantization.save_for_quantizer(graph, tmp_path / "source.onnx")
    quantization.quantize(tmp_path / "source.onnx", tmp_path / "int8.onnx", bits=7)
    assert (tmp_path / "int8.onnx").stat().st_size < (tmp_path / "onnx" / "model.onnx").stat().st_size
