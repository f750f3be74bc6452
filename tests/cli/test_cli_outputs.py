"""What the command writes over, and what it leaves when it is interrupted."""

import pytest
from architectures import build
from command_line import COLUMNS, contents, load
from transformers import PreTrainedTokenizerFast

import hfcompress as hfc
from hfcompress.report.measurements import make_table
from hfcompress_cli.outputs import fit


@pytest.fixture
def prune(models, tmp_path, run):
    """Prune the BERT into ``out``."""
    return lambda *options, to=tmp_path / "out", status=0: run(
        "prune", models / "bert", "--amount", 0.5, "-o", to, *options, status=status
    )


def test_an_empty_folder_is_written_to(prune, tmp_path):
    (tmp_path / "out").mkdir()
    prune()
    assert (tmp_path / "out" / "config.json").is_file()


def test_an_existing_output_is_replaced_only_if_asked(prune, tmp_path, run):
    prune()
    before = contents(tmp_path)
    prune(status=2)
    assert "exists already" in run.error
    assert contents(tmp_path) == before
    prune("--overwrite")


def test_replacing_keeps_what_is_not_the_models(prune, tmp_path):
    prune()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    prune("--overwrite")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_replacing_removes_the_old_tokenizer(prune, models, tmp_path, run):
    prune()
    (tmp_path / "out" / "vocab.txt").write_text("of another tokenizer")
    run("prune", models / "gpt2", "--amount", 0.5, "-o", tmp_path / "out", "--overwrite")
    assert not (tmp_path / "out" / "vocab.txt").exists()


def test_a_folder_is_replaced_by_its_own_model(prune, tmp_path, run):
    prune()
    out = tmp_path / "out"
    run("prune", out, "--amount", 0.6, "-o", out, "--overwrite")
    assert hfc.sparsity_report(load(out)).sparsity == pytest.approx(0.6, abs=1e-4)
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_folder_without_a_model_is_never_replaced(prune, tmp_path, run):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    prune("--overwrite", to=other, status=2)
    assert "holds no model" in run.error
    assert contents(tmp_path) == {(other / "thesis.txt").relative_to(tmp_path): b"mine"}


def test_a_file_is_never_replaced_by_a_folder(prune, tmp_path, run):
    (tmp_path / "thesis.txt").write_text("mine")
    prune("--overwrite", to=tmp_path / "thesis.txt", status=2)
    assert "is a file" in run.error
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.fixture(params=[False, True], ids=["new", "existing"])
def out(request, models, tmp_path, run):
    """An output, that exists or not, and the option to replace it."""
    if request.param:
        run("prune", models / "gpt2", "--amount", 0.5, "-o", tmp_path / "new" / "out")
        return tmp_path / "new" / "out", "--overwrite"
    return (tmp_path / "new" / "out",)


def test_an_interrupted_training_writes_nothing(out, models, data, tmp_path, run, monkeypatch):
    before, parent = contents(tmp_path), (tmp_path / "new").exists()
    monkeypatch.setattr(hfc.DistillationTrainer, "train", interrupt)
    command = ["distill", models / "bert", "--student-layers", 1, "--data", data / "test.jsonl", *COLUMNS]
    run(*command, "-o", *out, status=130)
    assert contents(tmp_path) == before
    assert (tmp_path / "new").exists() == parent
    assert "nothing was written" in run.error


def test_an_interrupted_save_writes_nothing(out, models, tmp_path, run, monkeypatch):
    before, parent = contents(tmp_path), (tmp_path / "new").exists()
    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", interrupt)  # the weights are written by then
    run("prune", models / "bert", "--amount", 0.5, "-o", *out, status=130)
    assert contents(tmp_path) == before
    assert (tmp_path / "new").exists() == parent
    assert "nothing was written" in run.error


@pytest.fixture(scope="module")
def measured():
    rows = [{"input_ids": [2, 5 + n % 9, 3], "labels": n % 2} for n in range(8)]
    return list(hfc.compare({"a": build("bert"), "b": build("bert")}, rows, repeats=1).rows.values())


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("name", ["m{}/", "runs/2026-11/rotten-tomatoes/minilm-{}/", "{}" + "long/" * 30])
def test_measurements_fit_the_terminal_whole(name, columns, measured, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    for count in (1, 2, 4, 6, 8):
        rows = {name.format(n): measured[n > 0] for n in range(count)}
        for verbose in (False, True):
            printed, table = fit(rows, verbose=verbose), make_table(rows, verbose=verbose)
            assert all(cell in printed for row in table.rows for cell in row)
            fits = max(map(len, printed.splitlines())) <= columns
            assert fits or len(name) > columns or (verbose and len(name) > 30)  # a name beside that of a figure
