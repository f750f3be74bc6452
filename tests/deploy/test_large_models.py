"""hfc.export of models that no protobuf file holds: their weights are in a file beside. Here the limit is lowered."""

import copy
import json
import re
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
import torch
from architectures import build
from exports import TEXTS, TOKENIZER, export, inputs, logits, needs_torch_export

import hfcompress as hfc
from hfcompress.deploy import onnx_file
from hfcompress.deploy.onnx_graph import GraphInputs, build_graph
from hfcompress.deploy.quality_gate import QualityGate

pytestmark = needs_torch_export
DATA = "model.onnx.data"
SERVE = "import sys\nfor name in ('torch', 'transformers', 'hfcompress', 'onnx'):\n    sys.modules[name] = None\n"
ROWS = [{"input_ids": [2, 5 + index, 50 - index, 9], "labels": index % 2} for index in range(24)]


@pytest.fixture(scope="module")
def model():
    return build("bert", layers=1, seed=3).eval()


@pytest.fixture(scope="module")
@torch.no_grad()
def graph(model):
    """The ONNX model."""
    return build_graph(model, GraphInputs(model, TOKENIZER))


@pytest.fixture
def large(monkeypatch):
    """Let files hold no more than 10 kB: not the int8 model either."""
    monkeypatch.setattr(onnx_file, "_LARGEST", 10_000)


@pytest.fixture
def folder(large, model, tmp_path):
    export(model, tmp_path / "onnx")
    return tmp_path / "onnx"


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_its_weights_are_beside_it(folder, model):
    data = inputs(3, 9)
    exported = hfc.load_exported(folder)
    close(exported(**data).logits, logits(model, data))
    sizes = {name: (folder / name).stat().st_size for name in ("model.onnx", DATA)}
    assert sizes[DATA] > 4 * 0.9 * model.num_parameters()
    assert exported.stored_bytes == sum(sizes.values())
    record = json.loads((folder / "hfcompress_export.json").read_text())
    assert {name: record["files"][name] for name in sizes} == sizes
    assert record["bytes"][1] == exported.stored_bytes
    assert not any(name.startswith("work-") for name in record["files"])


def test_the_lines_of_the_card_serve_it_alone(folder, model, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code = code.replace('["a text", "another text"]', repr(TEXTS)).replace('"."', repr(str(folder)))
    code += f"np.save({str(tmp_path / 'logits.npy')!r}, logits)\n"
    done = subprocess.run([sys.executable, "-c", SERVE + code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = logits(model, TOKENIZER(TEXTS, padding=True, return_tensors="pt"))
    close(torch.from_numpy(np.load(tmp_path / "logits.npy")), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), f"{DATA} has .* it is truncated"),
        (lambda path: path.unlink(), f"{DATA} is missing"),
    ],
)
def test_damaged_weights_are_refused(change, message, folder):
    change(folder / DATA)
    with pytest.raises(hfc.CompressionError, match=message):
        hfc.load_exported(folder)


def test_a_small_model_takes_its_place(folder, model, monkeypatch):
    monkeypatch.setattr(onnx_file, "_LARGEST", 2_000_000_000)
    export(model, folder)
    assert not (folder / DATA).exists()
    assert hfc.load_exported(folder).stored_bytes == (folder / "model.onnx").stat().st_size


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_weights_in_the_working_directory_do_not_matter(dtype, folder, model, monkeypatch):
    monkeypatch.chdir(folder)
    export(model, folder, dtype=dtype, dataset=ROWS, max_drop=0.9)
    close(hfc.load_exported(folder)(**inputs()).logits, hfc.load_exported(".")(**inputs()).logits)


def pass_at(number, monkeypatch):
    monkeypatch.setattr(QualityGate, "passed", property(lambda gate: gate.tried == number))


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("static", [False, True])
def test_int8_is_that_of_a_small_model(static, number, model, tmp_path, monkeypatch):
    pass_at(number, monkeypatch)
    monkeypatch.setattr("hfcompress.deploy.onnx_candidates._HELPS", 10.0)  # equalize channels whether or not it helps
    settings = {"dtype": "int8", "dataset": ROWS, "static": static}
    export(model, tmp_path / "small", **settings)
    monkeypatch.setattr(onnx_file, "_LARGEST", 10_000)
    report = export(model, tmp_path / "large", **settings)
    assert (report.gate.tried, report.static) == (number, static)
    assert "values" in report.gate.equalization.channels
    assert len(report.left_in_float32) == {1: 0, 2: 3, 3: 1}[number]
    small, large = (hfc.load_exported(tmp_path / name) for name in ("small", "large"))
    assert torch.equal(small(**inputs()).logits, large(**inputs()).logits)
    files = {path.name for path in (tmp_path / "large").iterdir()}
    assert DATA in files
    assert not any(name.endswith(".onnx") for name in files - {"model.onnx"})
    graphs = (onnx.load(tmp_path / name / "model.onnx") for name in ("small", "large"))
    ours, theirs = ([(one.name, onnx.numpy_helper.to_array(one)) for one in one.graph.initializer] for one in graphs)
    for (name, values), (other, others) in zip(ours, theirs, strict=True):
        assert name == other
        np.testing.assert_array_equal(values, others)


def test_a_full_disk_leaves_the_old_folder(folder, model, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def save(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnx.external_data_helper.save_external_data", save)
    with pytest.raises(hfc.CompressionError, match=r"it is as it was before: .*No space left"):
        export(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["onnx"]


@pytest.mark.skipif(not find_spec("openvino") or not find_spec("nncf"), reason="the extra openvino is not installed")
@pytest.mark.parametrize(("dtype", "static"), [("float32", None), ("int8", True), ("int8", False)])
@pytest.mark.usefixtures("large")
def test_openvino_reads_it(dtype, static, model, tmp_path):
    export(model, tmp_path / "openvino", format="openvino", dtype=dtype, static=static, dataset=ROWS, max_drop=0.9)
    found = hfc.load_exported(tmp_path / "openvino")(**inputs(1, 9)).logits
    torch.testing.assert_close(found, logits(model, inputs(1, 9)), atol=1e-4 if dtype == "float32" else 0.1, rtol=0.1)
    assert not list((tmp_path / "openvino").glob("*.onnx*"))


@pytest.mark.usefixtures("large")
def test_weights_are_written_anew_and_not_appended(graph, tmp_path):
    sizes = []
    for _ in range(2):
        onnx_file.save_model(copy.deepcopy(graph), tmp_path / "model.onnx")
        sizes.append((tmp_path / DATA).stat().st_size)
    assert sizes[0] == sizes[1]
