"""hfc.export to OpenVINO: logits, folder and int8; and openvino.convert_model on models with a plan."""

import copy
import gc
import json
import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from architectures import batch, build
from exports import TEXTS, TOKENIZER, exchange, export, inputs, logits, needs_torch_export, shrunken
from transformers import AutoModelForSequenceClassification

import hfcompress as hfc
from hfcompress.deploy.folder import write_record
from hfcompress.deploy.openvino_candidates import OpenVinoCandidates
from hfcompress.deploy.openvino_model import import_nncf
from hfcompress.deploy.quality_gate import QualityGate

openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")
pytest.importorskip("nncf", reason="the extra openvino is not installed")


@pytest.mark.filterwarnings("ignore")  # of the tracer
@pytest.mark.parametrize(("architecture", "loaded"), [("bert", False), ("bert", True), ("gpt2", True)])
def test_a_model_with_a_plan_is_converted(architecture, loaded, tmp_path):
    model = build(architecture, layers=1).eval()
    hfc.prune_structured(model, heads=0.5, neurons=0.4)
    if loaded:
        model.save_pretrained(tmp_path)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    model.config.use_cache = False  # the tracer knows no cache
    inputs = {name: value for name, value in batch(2, 8).items() if name != "labels"}
    converted = openvino.convert_model(model, example_input=inputs)
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = torch.tensor(compiled({name: value.numpy() for name, value in inputs.items()})[0])
    with torch.no_grad():
        torch.testing.assert_close(found, model(**inputs).logits, atol=1e-4, rtol=1e-4)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A BERT in bfloat16, unevenly shrunk and with zeros; its folder, which had an ONNX model before; its report."""
    if not hasattr(torch.export, "AdditionalInputs"):
        pytest.skip("torch.export of 2.6 fails on transformers 5")
    model, folder = shrunken("bert").bfloat16(), tmp_path_factory.mktemp("half") / "openvino"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"an older model")
    write_record(folder, {"format": "onnx", "dtype": "float32", "inputs": {}, "max_tokens": None})
    (folder / "notes.txt").write_text("mine")
    return model, folder, export(model, folder, format="openvino")


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 7), (5, 33), (3, 64)])
def test_logits_are_those_of_the_float32_copy(shape, left, half):
    model, folder, _ = half
    data = inputs(*shape, left=left) if shape != (1, 1) else {"input_ids": torch.tensor([[7]])}
    close(hfc.load_exported(folder)(**data).logits, logits(copy.deepcopy(model).float(), data))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_signals_are_handled_when_models_are_gone(half, tmp_path):
    """A process that is asked to stop cleans up, though OpenVINO gives threads a stack for signals of its own."""
    rows = [{"input_ids": [2, 5 + n, 9], "labels": n % 2} for n in range(24)]
    models = [hfc.load_exported(half[1]) for _ in range(2)]
    export(small(), tmp_path / "int8", format="openvino", dtype="int8", dataset=rows, max_drop=0.99)
    while models:
        models.pop(0)
        gc.collect()
    if not (child := os.fork()):
        signal.signal(signal.SIGTERM, lambda *of_signal: os._exit(7))
        signal.raise_signal(signal.SIGTERM)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_the_folder_has_the_model_and_nothing_of_the_older_one(half):
    _, folder, report = half
    names = {path.name for path in folder.iterdir()}
    assert names >= {"openvino_model.xml", "openvino_model.bin", "config.json", "tokenizer.json", "notes.txt"}
    assert "model.onnx" not in names
    size = sum((folder / f"openvino_model.{end}").stat().st_size for end in ("xml", "bin"))
    assert report.bytes[1] == hfc.load_exported(folder).stored_bytes == size
    assert (report.format, report.dtype) == ("openvino", "float32")
    assert "openvino" in report.versions
    assert "nncf" not in report.versions
    assert "site-packages" not in (folder / "openvino_model.xml").read_text()


def test_an_export_takes_the_place_of_another(half, tmp_path):
    folder = copied(half[1], tmp_path)
    export(small(), folder)
    assert not list(folder.glob("openvino_model*"))
    assert hfc.load_exported(folder).config.num_hidden_layers == 1


SERVE = "import sys\nfor name in ('torch', 'transformers', 'hfcompress', 'onnx'):\n    sys.modules[name] = None\n"


def test_the_lines_of_the_card_serve_it_alone(half, tmp_path):
    model, folder, _ = half
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code = code.replace('["a text", "another text"]', repr(TEXTS))
    code += f"np.save({str(tmp_path / 'logits.npy')!r}, logits)\n"
    done = subprocess.run([sys.executable, "-c", SERVE + code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = logits(copy.deepcopy(model).float(), TOKENIZER(TEXTS, padding=True, return_tensors="pt"))
    close(torch.from_numpy(np.load(tmp_path / "logits.npy")), expected)
    assert done.stdout.strip() == str([f"LABEL_{index}" for index in expected.argmax(-1).tolist()])


@pytest.mark.skipif(
    find_spec("transformers.exporters.runners") is None if find_spec("transformers.exporters") else True,
    reason="transformers has a runner of exported models from 5.23",
)
def test_the_runner_of_transformers_runs_it(half):
    from transformers.exporters.base import ExportedModel

    model, folder, _ = half
    runner = ExportedModel.from_pretrained(folder, config={"INFERENCE_PRECISION_HINT": "f32"})
    data = inputs(3, 9) | {"token_type_ids": torch.zeros(3, 9, dtype=torch.long)}
    close(runner(**data).logits, logits(copy.deepcopy(model).float(), data))


def test_measured_beside_others(half):
    model, folder, _ = half
    found = hfc.compare({"torch": model, "OpenVINO": hfc.load_exported(folder)}, batch(8, 9), repeats=2)
    assert found.rows["OpenVINO"].bytes == hfc.load_exported(folder).stored_bytes
    assert found.rows["OpenVINO"].passes[0].latency_ms > 0
    assert found.rows["OpenVINO"].parameters is None
    assert "accuracy" in str(found)


# Refusals


def copied(folder, place):
    made = place / "openvino"
    made.mkdir()
    for path in folder.iterdir():
        (made / path.name).write_bytes(path.read_bytes())
    return made


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


DAMAGED = {
    "half the weights": ("bin", lambda content: content[: len(content) // 2], "openvino_model.bin has .* truncated"),
    "no weights": ("bin", None, "openvino_model.bin is missing"),
    "half the graph": ("xml", lambda content: content[: len(content) // 2], "openvino_model.xml has .* truncated"),
    "another byte": ("bin", lambda c: bytes([c[0] ^ 1]) + c[1:], "openvino_model.bin is not the file that was written"),
}
UNREADABLE = {
    "no graph": (lambda content: b" " * len(content), "cannot be run by OpenVINO"),
    "an operator that it lacks": (lambda c: c.replace(b'type="Gelu"', b'type="Gulp"'), "type: Gulp"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_folder_is_refused_in_a_sentence(case, half, tmp_path):
    end, change, message = DAMAGED[case]
    folder = copied(half[1], tmp_path)
    path = folder / f"openvino_model.{end}"
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(hfc.CompressionError, match=message) as refused:
        hfc.load_exported(folder)
    assert str(folder) in str(refused.value)
    assert "src/" not in str(refused.value)


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_openvino_cannot_run_is_refused_in_a_sentence(case, half, tmp_path):
    change, message = UNREADABLE[case]
    folder = copied(half[1], tmp_path)
    exchange(folder, "openvino_model.xml", change)
    with pytest.raises(hfc.CompressionError, match=message) as refused:
        hfc.load_exported(folder)
    assert str(folder) in str(refused.value)
    assert "src/" not in str(refused.value)


INPUTS = {  # of which OpenVINO returns what it computed before, or zeros, or the last row of a table
    "too long": (lambda: inputs(2, 65), r"65 tokens, and .*openvino_model\.xml reads 1 to 64; truncate"),
    "no such token": (lambda: {"input_ids": torch.full((1, 3), 100)}, "input_ids has 100; .* knows 0 to 99"),
    "below zero": (lambda: {"input_ids": torch.full((1, 3), -1)}, "input_ids has -1"),
    "no such type": (lambda: inputs() | {"token_type_ids": torch.full((4, 9), 2)}, "token_type_ids has 2"),
    "other shapes": (lambda: inputs() | {"attention_mask": torch.ones(4, 8)}, "must be of one shape"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_unusable_inputs_are_refused(case, half):
    make, message = INPUTS[case]
    exported = hfc.load_exported(half[1])
    exported(**inputs())
    with pytest.raises(hfc.CompressionError, match=message):
        exported(**make())


def test_what_openvino_computes_silently_not_is_refused(half, tmp_path):
    folder = copied(half[1], tmp_path)
    path = folder / "hfcompress_export.json"
    path.write_text(path.read_text().replace('"max_tokens": 64', '"max_tokens": 99'))
    exported = hfc.load_exported(folder)
    exported(**inputs(2, 9))
    with pytest.raises(hfc.CompressionError, match="OpenVINO does not run the exported model: no output"):
        exported(**inputs(2, 65))


@pytest.mark.parametrize(("missing", "dtype"), [("openvino", "float32"), ("nncf", "int8")])
def test_a_missing_package_names_the_extra(missing, dtype, texts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'hfcompress\[openvino\]'"):
        export(build(), tmp_path / "openvino", format="openvino", dtype=dtype, dataset=texts)
    assert list(tmp_path.iterdir()) == []


def test_running_names_the_extra_too(half, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install 'hfcompress\[openvino\]'"):
        hfc.load_exported(half[1])


# int8


@pytest.fixture(scope="module")
def texts():
    """Rows, half of them of each class as the model of `test_int8` sees them."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 24, (120,), generator=generator).tolist()
    rows = [[2, *torch.randint(5, 100, (length,), generator=generator).tolist()] for length in lengths]
    with torch.no_grad():
        margins = torch.stack([small()(torch.tensor([ids])).logits[0] for ids in rows])
    labels = (margins[:, 1] - margins[:, 0] > 0).long().tolist()
    return [{"input_ids": ids, "labels": label} for ids, label in zip(rows, labels, strict=True)]


def small():
    return build("bert", layers=1, seed=3).eval()


@needs_torch_export
@pytest.mark.parametrize(("settings", "static"), [({}, True), ({"static": False}, False)])
def test_int8_passes_and_is_a_third_as_large(settings, static, texts, tmp_path):
    settings = {"format": "openvino", "dtype": "int8", "dataset": texts, "repeats": 2} | settings
    report = export(small(), tmp_path / "openvino", **settings)
    assert (report.dtype, report.static, report.gate.tried) == ("int8", static, 1)
    assert report.weight_bits == (7 if static else 8)
    assert ("scaled by what was measured before" in report.to_text()) == static
    assert count_scaled(tmp_path / "openvino") == (8 if static else 0)
    assert "nncf" in report.versions
    assert report.gate.agreement >= 0.95
    weights = (tmp_path / "openvino" / "openvino_model.bin").stat().st_size
    assert weights < sum(one.numel() for one in small().parameters()) * 4 / 2.5
    assert set(report.times.rows) == {"torch float32", "OpenVINO float32", "OpenVINO int8"}
    exported = hfc.load_exported(tmp_path / "openvino")
    assert exported.dtype == "int8"
    data = {"input_ids": torch.tensor([texts[0]["input_ids"]])}
    found, expected = exported(**data).logits, logits(small(), data)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.1)
    record = json.loads((tmp_path / "openvino" / "hfcompress_export.json").read_text())
    assert (record["format"], record["dtype"]) == ("openvino", "int8")


def count_scaled(folder):
    """Return how many products read activations with scales that were measured before."""
    products = [one for one in openvino.Core().read_model(folder / "openvino_model.xml").get_ops() if is_product(one)]
    return sum(one.input_value(0).get_node().get_type_name() == "FakeQuantize" for one in products)


@pytest.fixture
def judged(monkeypatch):
    """The models that are judged: whether their scales are measured before, and what is left in float32."""
    found, real = [], OpenVinoCandidates.build

    def build(self, left, name="int8"):
        if name == "int8":
            found.append((self.static, [one.name for one in left]))
        return real(self, left, name)

    monkeypatch.setattr(OpenVinoCandidates, "build", build)
    return found


def pass_at(number, monkeypatch):
    monkeypatch.setattr(QualityGate, "passed", property(lambda gate: gate.tried == number))


@needs_torch_export
def test_scales_are_computed_where_measured_ones_do_not_pass(texts, judged, tmp_path, monkeypatch):
    pass_at(4, monkeypatch)
    settings = {"format": "openvino", "dtype": "int8", "dataset": texts, "equalize": False}
    report = export(small(), tmp_path / "openvino", **settings)
    tables = list(report.left_in_float32)
    assert judged == [(True, []), (True, tables), (False, []), (False, tables)]
    assert (report.static, report.weight_bits, count_scaled(tmp_path / "openvino")) == (False, 8, 0)
    assert "did not pass: all of it int8 agreed on" in " ".join(report.verdict)
    assert report.gate.static_agreement is not None


@needs_torch_export
@pytest.mark.parametrize("static", [True, False])
def test_modules_left_in_float32_are_named_and_are(static, texts, judged, tmp_path, monkeypatch):
    pass_at(3, monkeypatch)
    settings = {"format": "openvino", "dtype": "int8", "dataset": texts, "static": static, "equalize": False}
    report = export(small(), tmp_path / "openvino", **settings)
    (left,) = report.left_in_float32
    assert [one for one, _ in judged] == [static] * 3
    assert judged[-1][1] == [left]
    tables = judged[1][1]
    assert len(tables) == 3
    assert all("embeddings" in name for name in tables)
    assert dtype_of(tmp_path / "openvino", left) == "f32"
    assert count_scaled(tmp_path / "openvino") == (7 if static else 0)
    others = {one.removesuffix(".weight") for one, _ in small().named_parameters() if one.endswith("dense.weight")}
    assert {dtype_of(tmp_path / "openvino", one) for one in others - {left}} == {"i8"}


def dtype_of(folder, module):
    """Return the dtype of what a module multiplies by, behind the conversion and the scale."""
    model = openvino.Core().read_model(folder / "openvino_model.xml")
    (node,) = [
        one for one in model.get_ops() if one.get_friendly_name().partition("#")[0] == module and is_product(one)
    ]
    source = node.input_value(1).get_node()
    while source.get_type_name() != "Constant":
        source = source.input_value(0).get_node()
    return source.get_element_type().to_string()


def is_product(node):
    return node.get_type_name() == "MatMul"


@needs_torch_export
def test_where_nothing_passes_it_is_refused(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(QualityGate, "passed", property(lambda gate: False))
    with pytest.raises(hfc.CompressionError, match=r"None of .* int8 models passes"):
        export(small(), tmp_path / "openvino", format="openvino", dtype="int8", dataset=texts)
    assert list(tmp_path.iterdir()) == []


@needs_torch_export
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_full_disk_leaves_the_old_folder(dtype, texts, half, tmp_path, monkeypatch):
    folder = copied(half[1], tmp_path)
    before, real, left = contents(folder), openvino.save_model, 2 if dtype == "int8" else 1

    def save_model(*arguments, **settings):
        nonlocal left
        left -= 1
        if not left:
            raise RuntimeError("basic_ios::clear: iostream error\n")
        real(*arguments, **settings)

    monkeypatch.setattr(openvino, "save_model", save_model)
    with pytest.raises(hfc.CompressionError, match=r"cannot be written, it is as it was before: .*iostream error"):
        export(small(), folder, format="openvino", dtype=dtype, dataset=texts)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["openvino"]


def test_the_quantizer_sends_no_statistics(tmp_path, monkeypatch):
    (tmp_path / "nncf.py").write_text("import sys\nfound = sys.modules.get('openvino_telemetry', 'importable')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("nncf", "openvino_telemetry"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert import_nncf().found is None
    assert "openvino_telemetry" not in sys.modules
