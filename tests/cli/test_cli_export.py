"""``hfcompress export``."""

from importlib.util import find_spec

import pytest
from command_line import COLUMNS, contents, load, predict
from exports import needs_torch_export

import hfcompress as hfc
from hfcompress_cli import main

pytestmark = needs_torch_export


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory):
    """The folder of an exported BERT, and what was printed as JSON."""
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    assert main(["export", str(models / "bert"), "-o", str(folder), "--repeats", "0"]) == 0
    return folder


def test_export_writes_a_folder_that_loads(exported):
    assert hfc.load_exported(exported).dtype == "float32"


def test_as_many_tokens_are_served_as_were_judged(models, run, tmp_path):
    run("export", models / "bert", "-o", tmp_path / "onnx", "--max-length", 7, "--repeats", 0)
    assert "enable_truncation(max_length=7," in (tmp_path / "onnx" / "README.md").read_text()


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


@pytest.mark.skipif(not find_spec("openvino"), reason="the extra openvino is not installed")
def test_openvino_is_exported_and_compared(models, data, run, tmp_path):
    folder = tmp_path / "openvino"
    found = run("export", models / "bert", "-o", folder, "--format", "openvino", "--repeats", 0, "--json")
    assert (found["format"], found["dtype"], found["gate"]) == ("openvino", "float32", None)
    assert "Written to" in run.error
    asked = ("--data", data / "test.jsonl", *COLUMNS, "--repeats", 1, "--json")
    torchs, exported = run("compare", models / "bert", folder, *asked).values()
    assert exported["accuracy"] == torchs["accuracy"] == predict(models / "bert", data)[1]
    assert run("report", folder, "--json")["format"] == "openvino"


@pytest.mark.skipif(not find_spec("nncf"), reason="the extra openvino is not installed")
@pytest.mark.parametrize(("option", "static"), [(None, True), ("--no-static", False)])
def test_openvino_has_measured_scales_unless_asked(option, static, models, data, run, tmp_path):
    asked = ("--int8", "always", "--data", data / "train.csv", *COLUMNS, "--max-drop", 0.9, "--repeats", 0, "--json")
    asked = (*asked, "--format", "openvino", *([option] if option else []))
    found = run("export", models / "bert", "-o", tmp_path / "int8", *asked)
    assert (found["format"], found["dtype"], found["static"], found["gate"]["static"]) == (
        "openvino",
        "int8",
        static,
        static,
    )


OTHERS = {
    "prune": lambda folder, other, data: (folder, "--amount", "20%"),
    "shrink": lambda folder, other, data: (folder, "--flops", 0.5),
    "finetune": lambda folder, other, data: (folder, "--data", data),
    "distill": lambda folder, other, data: (folder, "--student", other, "--data", data),
    "student": lambda folder, other, data: (other, "--student", folder, "--data", data),
    "compress": lambda folder, other, data: (folder, "--data", data, "--speedup", 2),
    "export": lambda folder, other, data: (folder,),
    "pack": lambda folder, other, data: (folder,),
    "unpack": lambda folder, other, data: (folder,),
}


@pytest.mark.parametrize("verb", OTHERS)
def test_other_verbs_say_that_it_is_exported(verb, exported, models, data, run, tmp_path):
    words = OTHERS[verb](exported, models / "bert", data / "train.csv")
    columns = COLUMNS if "--data" in words else ()
    out = (tmp_path / "out",) if verb.endswith("pack") else ("-o", tmp_path / "out")
    run({"student": "distill"}.get(verb, verb), *words, *columns, *out, status=2)
    assert f"{exported} holds an exported model, which only runs; name the folder that it was exported" in run.error
    assert list(tmp_path.iterdir()) == []


def test_no_model_of_torch_is_written_over_an_exported_one(exported, models, run):
    before = contents(exported)
    run("prune", models / "bert", "--amount", "20%", "-o", exported, "--overwrite", status=2)
    assert "holds an exported model; name another folder" in run.error
    with pytest.raises(hfc.CompressionError, match="holds an exported model; name another folder"):
        hfc.save_compressed(load(models / "bert"), exported)
    with pytest.raises(hfc.CompressionError, match=r"it holds an exported model, for hfcompress\.load_exported"):
        hfc.load_compressed(exported)
    assert contents(exported) == before


def test_what_transformers_saved_there_since_is_what_it_holds(exported, models, run, tmp_path):
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    load(models / "bert").save_pretrained(tmp_path)
    assert run("report", tmp_path, "--json")["kind"] == "model"


def test_report_refuses_the_config_of_another_model(exported, run, tmp_path):
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"bert"', '"gpt2"'))
    run("report", tmp_path, status=2)
    assert "config.json is of another model: its model_type is" in run.error


@pytest.mark.parametrize(
    "words", [("export", "bert", "-o", ""), ("prune", "bert", "--output", ""), ("pack", "bert", "")]
)
def test_an_empty_name_of_the_output_is_refused(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([*words])
    assert "is empty; name what is to be written, '.' for the working directory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_int8_without_data_or_times_is_refused(models, data, run, tmp_path):
    run("export", models / "bert", "-o", tmp_path / "int8", "--int8", status=2)
    assert "--int8 needs labelled texts" in run.error
    texts = ("--data", data / "train.csv", *COLUMNS)
    run("export", models / "bert", "-o", tmp_path / "int8", "--int8", *texts, "--repeats", 0, status=2)
    assert "which --repeats 0 does not time: leave that out, or say --int8 always" in run.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("--static",), ("--no-static",), ("--max-drop", 0.02)])
def test_options_of_int8_are_refused_without_it(words, models, run, tmp_path):
    run("export", models / "bert", "-o", tmp_path / "onnx", *words, status=2)
    option = "--static" if "static" in words[0] else "--max-drop"
    assert f"{option} is about int8: add --int8, or leave it out" in run.error
    assert list(tmp_path.iterdir()) == []
