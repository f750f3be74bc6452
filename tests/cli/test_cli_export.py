"""``hfcompress export``."""

import pytest
from command_line import COLUMNS, contents, predict
from exports import needs_torch_export

import hfcompress as hfc

pytestmark = needs_torch_export


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory):
    """The folder of an exported BERT, and what was printed as JSON."""
    from hfcompress_cli import main

    folder = tmp_path_factory.mktemp("exported") / "onnx"
    assert main(["export", str(models / "bert"), "-o", str(folder), "--repeats", "0"]) == 0
    return folder


def test_export_writes_a_folder_that_loads(exported):
    assert hfc.load_exported(exported).dtype == "float32"


def test_a_folder_is_replaced_only_when_asked(exported, models, run):
    before = contents(exported)
    run("export", models / "bert", "-o", exported, status=2)
    assert "exists already" in run.error
    assert contents(exported) == before


def test_compare_takes_an_exported_folder(exported, models, data, run):
    found = run("compare", models / "bert", exported, "--data", data / "test.jsonl", *COLUMNS, "--repeats", 1, "--json")
    torchs, onnx = found.values()
    assert onnx["accuracy"] == torchs["accuracy"] == predict(models / "bert", data)[1]
    assert onnx["bytes"] == (exported / "model.onnx").stat().st_size
    assert onnx["agreement"] == 1.0


def test_int8_is_exported_for_any_machine(models, data, run, tmp_path):
    asked = ("--int8", "always", "--static", "--data", data / "train.csv", *COLUMNS)
    found = run("export", models / "bert", "-o", tmp_path / "int8", *asked, "--max-drop", 0.9, "--repeats", 1, "--json")
    assert (found["dtype"], found["weight_bits"], found["static"]) == ("int8", 7, True)
    assert found["gate"]["rows"] == 20
    assert hfc.load_exported(tmp_path / "int8").dtype == "int8"


def test_int8_without_data_is_refused(models, run, tmp_path):
    run("export", models / "bert", "-o", tmp_path / "int8", "--int8", status=2)
    assert "--int8 needs labelled texts" in run.error
    assert list(tmp_path.iterdir()) == []
