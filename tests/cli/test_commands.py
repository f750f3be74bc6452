"""The command line on tiny random models, each verb against what the Python functions or a plain loop give."""

import csv
import json
import os
import random
import runpy
import subprocess
import sys
from contextlib import redirect_stdout

import pytest
import torch
from architectures import build, cached
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)

import hfcompress as hfc
from hfcompress_cli import main

WORDS = ("a", "film", "good", "fine", "bad", "dull", "not", "so")


def tokenizer(words, pad="[PAD]"):
    core = Tokenizer(
        WordLevel({word: index for index, word in enumerate(["[PAD]", "[UNK]", *words])}, unk_token="[UNK]")
    )
    core.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=pad, unk_token="[UNK]", eos_token="[UNK]", model_max_length=16
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a BERT with four layers and of a GPT-2 with other ids and no token for padding."""
    folder = tmp_path_factory.mktemp("models")
    build("bert", layers=4, id2label={0: "NO", 1: "YES"}, label2id={"NO": 0, "YES": 1}).save_pretrained(folder / "bert")
    tokenizer(WORDS).save_pretrained(folder / "bert")
    gpt2 = build("gpt2")
    gpt2.config.pad_token_id = None
    gpt2.save_pretrained(folder / "gpt2")
    tokenizer(WORDS[::-1], pad=None).save_pretrained(folder / "gpt2")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = [
        (f"{WORDS[n % 2]} {'film ' * (n % 4)}{WORDS[2 + n % 2 if n % 3 else 4 + n % 2]}", int(n % 3 > 0))
        for n in range(40)
    ]
    with (folder / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("review", "sentiment"), *rows])
    test = [{"review": text, "sentiment": "YES" if label else "NO", "number": label} for text, label in rows[:25]]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, test)))
    return folder


NUMBERS = ("--text-column", "review", "--label-column", "number")
COLUMNS = ("--text-column", "review", "--label-column", "sentiment")


@pytest.fixture
def run(capsys):
    """Run the command; its standard output, as JSON where it is that."""

    def call(*arguments, status=0):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == status
        printed = capsys.readouterr()
        call.error = printed.err
        return json.loads(printed.out) if "--json" in arguments else printed.out

    return call


def load(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def answers_of(folder, data):
    """By a plain loop, one text at a time: logits, and whether they are right."""
    model, own = load(folder), AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    with torch.no_grad():
        logits = torch.cat([model(**own(row["review"], return_tensors="pt")).logits for row in rows])
    labels = torch.tensor([int(row["sentiment"] == "YES") for row in rows])
    return logits, (logits.argmax(-1) == labels).double().mean().item()


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_report(models, run):
    found = run("report", models / "bert", "--json")
    model = load(models / "bert")
    matrices = [m.weight for m in model.base_model.modules() if isinstance(m, torch.nn.Linear)]
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["sparsity"]["weights"] == sum(weight.numel() for weight in matrices)
    assert found["bytes_in_files"] == (models / "bert" / "model.safetensors").stat().st_size
    short, long = run("report", models / "bert"), run("report", models / "bert", "--verbose")
    assert "BertForSequenceClassification" in short
    assert f"{found['parameters']:,}" in short
    assert "layer.3.output.dense" not in short
    assert "layer.3.output.dense" in long


def test_prune(models, tmp_path, run):
    before = contents(models)
    found = run(
        "prune", models / "bert", "--amount", 0.3, "--exclude", "*pooler*", "-o", tmp_path / "new/out", "--json"
    )
    assert "Written to" in run.error
    model = load(tmp_path / "new/out")
    expected = load(models / "bert")
    report = hfc.prune_global_l1(expected, 0.3, exclude="*pooler*")
    assert found["zeros"] == report.zeros == round(0.3 * report.weights)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), expected.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(tmp_path / "new/out")("good film")["input_ids"] == [4, 3]
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["out"]
    assert contents(models) == before
    assert "30.00%" in run("prune", models / "bert", "--amount", 0.3, "-o", tmp_path / "text")


def test_shrink(models, data, tmp_path, run):
    half = run("shrink", models / "bert", "--heads", 0.5, "--neurons", 0.5, "-o", tmp_path / "half", "--json")
    assert half["heads_removed"] == half["neurons_removed"] == 0.5
    assert half["parameters"][1] == sum(p.numel() for p in load(tmp_path / "half").parameters())

    run("shrink", models / "bert", "--drop-layers", "1,2", "-o", tmp_path / "two")
    kept = load(models / "bert")
    kept.bert.encoder.layer = kept.bert.encoder.layer[::3]
    ids = torch.tensor([[2, 3, 4]])
    assert torch.allclose(load(tmp_path / "two")(ids).logits, kept(ids).logits)

    ranked = ("--importance", "fisher", "--data", data / "test.jsonl", *NUMBERS, "--rows", 8)
    run("shrink", models / "gpt2", "--flops", 0.7, *ranked, "-o", tmp_path / "ranked")
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    own = AutoTokenizer.from_pretrained(models / "gpt2")
    drawn = [
        {"input_ids": own(row["review"])["input_ids"], "labels": int(row["sentiment"] == "YES")}
        for row in random.Random(0).sample(rows, 8)
    ]
    expected = load(models / "gpt2")
    hfc.prune_structured(expected, flops=0.7, importance="fisher", dataset=drawn)
    assert torch.allclose(load(tmp_path / "ranked")(ids).logits, expected(ids).logits, atol=1e-6)


def test_distill_from_a_file_of_texts_to_a_measured_student(models, data, tmp_path, run):
    before = contents(models)
    out = tmp_path / "small"
    command = ["distill", models / "bert", "--student-layers", 2, "--data", data / "train.csv", *COLUMNS, "-o", out]
    options = ["--eval-data", data / "test.jsonl", "--num_train_epochs", 10, "--learning-rate", 3e-3, "--alpha", 0.3]
    options += ["--label-loss", "cross_entropy", "--logging-steps", 20]
    found = run(*command, *options, "--json")
    assert load(out).config.num_hidden_layers == 2
    assert found["examples"] == {"train": 40, "held_out": 25}
    for name, folder in (("teacher", models / "bert"), ("student", out)):
        assert found["models"][name]["accuracy"] == pytest.approx(answers_of(folder, data)[1])
        assert found["models"][name]["parameters"] == sum(p.numel() for p in load(folder).parameters())
    assert answers_of(out, data)[1] == 1.0  # easy texts; the teacher guesses
    taught = answers_of(models / "bert", data)[0]
    agreement = (taught.argmax(-1) == answers_of(out, data)[0].argmax(-1)).double().mean().item()
    assert found["evaluation"]["eval_agreement"] == pytest.approx(agreement)
    assert "'label_term'" in run.error  # the Trainer's log
    assert [one.name for one in tmp_path.iterdir()] == ["small"]
    assert not any(one.is_dir() for one in out.iterdir())
    assert contents(models) == before


def test_distill_does_what_the_trainer_does(models, data, tmp_path, run):
    arguments = {
        "alpha": 0.7,
        "teacher_loss": "kl",
        "temperature": 2.0,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "seed": 5,
    }
    options = [part for name, value in arguments.items() for part in (f"--{name.replace('_', '-')}", value)]
    command = ["distill", *options, "--student", models / "gpt2", models / "bert", "--data", data / "test.jsonl"]
    run(*command, *COLUMNS, "--held-out", 0, "--max-length", 8, "-o", tmp_path / "out")
    text = run.error
    assert "train_loss" in text

    own, other = (AutoTokenizer.from_pretrained(models / name) for name in ("gpt2", "bert"))
    own.pad_token = own.eos_token
    student, teacher = load(models / "gpt2"), load(models / "bert")
    student.config.pad_token_id = own.pad_token_id
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    rows = random.Random(5).sample(rows, len(rows))
    train = [{**own(row["review"]), "labels": int(row["sentiment"] == "YES"), "review": row["review"]} for row in rows]
    args = hfc.DistillationArguments(
        tmp_path / "training", **arguments, text_column="review", save_strategy="no", use_cpu=True, disable_tqdm=True
    )
    trainer = hfc.DistillationTrainer(
        student, args, teacher=teacher, teacher_processing_class=other, train_dataset=train, processing_class=own
    )
    trainer.train()
    ids = torch.tensor([[2, 3, 4]])
    found = load(tmp_path / "out")
    assert torch.allclose(found(ids).logits, student.eval()(ids).logits, atol=1e-5)
    assert not torch.allclose(found(ids).logits, load(models / "gpt2")(ids).logits, atol=1e-3)


def test_checkpoints_stay_where_they_were_asked(models, data, tmp_path, run):
    command = ["distill", models / "bert", "--student-layers", "0,3", "--data", data / "test.jsonl", *COLUMNS]
    checkpoints = ["--save-strategy", "steps", "--save-steps", 2, "--max-steps", 2, "--output-dir", tmp_path / "kept"]
    printed = run(*command, *checkpoints, "--alpha", 1, "-o", tmp_path / "out")
    assert (tmp_path / "kept" / "checkpoint-2").is_dir()
    assert "trained on 20 rows, measured on 5 others; there the student answers like its teacher" in printed
    assert "accuracy" not in printed  # with alpha 1 no labels are read


def test_a_new_head_takes_the_labels_of_its_teacher(models, data, tmp_path, run):
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "body")
    tokenizer(WORDS).save_pretrained(tmp_path / "body")
    command = ["distill", models / "bert", "--student", tmp_path / "body", "--data", data / "test.jsonl", *COLUMNS]
    run(*command, "--max-steps", 1, "-o", tmp_path / "out")
    assert load(tmp_path / "out").config.id2label == {0: "NO", 1: "YES"}
    assert "holds no trained classification head (classifier.bias, classifier.weight)" in run.error
    run("compare", tmp_path / "body", "--data", data / "test.jsonl", *COLUMNS, status=2)
    assert "fine-tune it first" in run.error


def test_compare(models, data, tmp_path, run):
    names = [str(models / name) for name in ("bert", "gpt2")]
    read = ("--data", data / "test.jsonl", *NUMBERS, "--repeats", 1, "--device", "cpu")
    found = run("compare", *names, *read, "--json")
    rows = found.get("models", found)
    assert list(rows) == names
    for name in names:
        assert rows[name]["accuracy"] == pytest.approx(answers_of(name, data)[1])
        assert rows[name]["latency_ms"] > 0
    assert run("compare", *names).startswith("model")
    assert run("compare", *names, "--markdown").startswith("| model |")

    timed = run("compare", *names, "--length", "4,8", "--batch-size", "1,2", "--repeats", 1, "--json")
    assert timed[names[0]]["flops"] > 0
    with pytest.raises(SystemExit, match="2"):
        run("compare", *names, "--length", "12,")

    page = tmp_path / "page.html"
    run("compare", *names, *read, "--html", page)
    text = page.read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert all(name in text for name in names)
    page.write_text("mine")
    run("compare", *names, "--html", page, status=2)
    assert page.read_text() == "mine"
    run("compare", *names, "--html", page, "--overwrite")
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert list(tmp_path.iterdir()) == [page]


def test_pack_and_unpack(models, tmp_path, run, monkeypatch):
    run("prune", models / "bert", "--amount", 0.8, "-o", tmp_path / "pruned")
    size = (tmp_path / "pruned" / "model.safetensors").stat().st_size
    found = run("pack", tmp_path / "pruned", tmp_path / "packed", "--json")
    assert found["bytes_in_files"]["before"] == size
    assert found["bytes_in_files"]["after"] == (tmp_path / "packed" / "model.safetensors").stat().st_size < size
    report = run("report", tmp_path / "packed", "--json")
    assert report["sparsity"]["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert "MB before" in run("unpack", tmp_path / "packed", tmp_path / "plain")
    original = list(load(tmp_path / "pruned").parameters())
    for name in ("packed", "plain"):
        assert all(map(torch.equal, load(tmp_path / name).parameters(), original))
        assert AutoTokenizer.from_pretrained(tmp_path / name)("good film")["input_ids"] == [4, 3]
    cached(tmp_path / "packed", tmp_path / "hub", "me/packed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    run("unpack", "me/packed", tmp_path / "from-hub")
    assert contents(tmp_path / "from-hub") == contents(tmp_path / "plain")
    before = contents(tmp_path)
    run("pack", tmp_path / "pruned", tmp_path / "packed", status=2)
    assert "exists already" in run.error
    run("pack", tmp_path / "nowhere", tmp_path / "out", status=2)
    assert contents(tmp_path) == before


def test_the_batch_that_is_timed_is_not_padded_to_a_text_behind_it(models, tmp_path, run):
    rows = [{"text": "a film", "label": 0}] * 16 + [{"text": "a film " * 7, "label": 1}]
    (tmp_path / "tail.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ("compare", models / "bert", "--data", tmp_path / "tail.jsonl", "--repeats", 1)
    assert "batches of 16 x 2 tokens" in run(*asked)
    several = run(*asked, "--length", "4,8", "--batch-size", "1,2")
    assert all(f"{size} x {length}" in several for size in (1, 2) for length in (4, 8))


@pytest.mark.skipif(sys.platform == "win32", reason="needs /dev/full")
def test_results_that_cannot_be_printed_are_told(models, capsys):
    command = ["report", str(models / "bert"), "--verbose"]
    with open("/dev/full", "w") as full, redirect_stdout(full):
        assert main(command) == 1
    told = capsys.readouterr().err
    assert told.startswith("hfcompress report: the results cannot be printed: ")
    assert told.count("\n") == 1
    reader, writer = os.pipe()
    os.close(reader)  # as head does
    with open(writer, "w") as closed, redirect_stdout(closed):
        assert main(command) == 0
    assert capsys.readouterr().err == ""


def test_an_existing_output_is_replaced_only_if_asked_and_if_it_holds_a_model(models, tmp_path, run):
    command = ["prune", models / "bert", "--amount", 0.5, "-o"]
    out = tmp_path / "out"
    out.mkdir()
    run(*command, out)  # empty, so nothing is lost
    (out / "notes.txt").write_text("mine")
    before = contents(out)
    run(*command, out, status=2)
    assert "exists already" in run.error
    assert contents(out) == before
    run(*command, out, "--overwrite")
    assert (out / "notes.txt").read_text() == "mine"  # not the model's
    (out / "vocab.txt").write_text("of another tokenizer")
    run("prune", models / "gpt2", "--amount", 0.5, "-o", out, "--overwrite")
    assert not (out / "vocab.txt").exists()
    run("prune", out, "--amount", 0.6, "-o", out, "--overwrite")  # onto itself
    assert hfc.sparsity_report(load(out)).sparsity == pytest.approx(0.6, abs=1e-4)

    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    run(*command, other, "--overwrite", status=2)
    assert "holds no model" in run.error
    run(*command, other / "thesis.txt", "--overwrite", status=2)
    assert (other / "thesis.txt").read_text() == "mine"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["other", "out"]


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_command_leaves_nothing_half_written(models, data, tmp_path, run, monkeypatch, existing):
    out = tmp_path / "new" / "out"
    if existing:
        run("prune", models / "gpt2", "--amount", 0.5, "-o", out)
    before = contents(tmp_path)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    replace = ["--overwrite"] if existing else []
    with monkeypatch.context() as patch:
        patch.setattr(hfc.DistillationTrainer, "train", interrupt)
        command = ["distill", models / "bert", "--student-layers", 1, "--data", data / "test.jsonl", *COLUMNS]
        run(*command, "-o", out, *replace, status=130)
    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", interrupt)  # the weights are written by then
        run("prune", models / "bert", "--amount", 0.5, "-o", out, *replace, status=130)
    assert contents(tmp_path) == before
    assert (tmp_path / "new").exists() == existing
    assert "nothing was written" in run.error


def bad_inputs():
    distill = ["distill", "BERT", "--student-layers", "2", "--data", "TEST", *COLUMNS]
    return {
        "no folder": (["report", "./nowhere"], "There is no folder ./nowhere."),
        "no hub": (["report", "nobody/nothing"], "is no folder, and cannot be had from the hub"),
        "no model in the folder": (["report", "EMPTY"], "does not load as a text classifier"),
        "amount": (["prune", "BERT", "--amount", "1.5"], "amount=1.5"),
        "pattern": (["prune", "BERT", "--amount", "0.5", "--include", "nothing*"], "nothing*"),
        "nothing asked": (["shrink", "BERT"], "Nothing was asked"),
        "importance without data": (["shrink", "BERT", "--heads", "0.5", "--importance", "taylor"], "--data"),
        "layers": (["distill", "BERT", "--student-layers", "9", *distill[4:]], "layers=9"),
        "no data": ([*distill[:5], "./none.csv", *COLUMNS], "There is no file ./none.csv"),
        "column": ([*distill[:6]], "no column 'text'"),
        "alpha": ([*distill, "--alpha", "2"], "alpha=2.0"),
        "training arguments": (
            [*distill, "--load-best-model-at-end", "--eval-strategy", "epoch"],
            "do not go together",
        ),
        "length": ([*distill, "--max-length", "1000"], "--max-length 1000"),
        "rows": ([*distill, "--rows", "0"], "--rows 0"),
        "both": ([*distill, "--eval-data", "TEST", "--held-out", "0.1"], "exclude each other"),
        "labels": (
            ["compare", "GPT2", "--data", "TEST", *COLUMNS],
            "The label 'NO' of the data is none of the model's",
        ),
        "device": (["compare", "BERT", "--device", "abacus"], "The device abacus cannot be used"),
        "twice": (["compare", "BERT", "BERT"], "name a model twice"),
        "no tokenizer": (["compare", "BARE", "--data", "TEST", *COLUMNS], "has no tokenizer"),
        "a page nowhere": (["compare", "BERT", "--html", "NOWHERE"], "there is no folder"),
        "a page for a folder": (["compare", "BERT", "--html", "EMPTY", "--overwrite"], "is a folder; name a file"),
        "packed into itself": (["pack", "BERT", "INSIDE"], "which is copied; name a folder outside of it"),
        "names and indices": (
            ["compare", "BERT", "--data", "MIXED"],
            "names of the model's, such as 'YES', and indices, such as '0'",
        ),
        "no folder to pack": (["pack", "EMPTY", "OUT"], "is no model: there is no config.json"),
    }


@pytest.mark.parametrize("case", bad_inputs())
def test_bad_input_is_told_in_one_line(case, models, data, tmp_path, run):
    arguments, message = bad_inputs()[case]
    places = {
        "BERT": models / "bert",
        "GPT2": models / "gpt2",
        "TEST": data / "test.jsonl",
        "EMPTY": tmp_path / "empty",
    }
    places |= {"BARE": tmp_path / "bare", "OUT": tmp_path / "out", "INSIDE": models / "bert" / "packed"}
    places |= {"NOWHERE": tmp_path / "none" / "page.html", "MIXED": tmp_path / "mixed.csv"}
    places["EMPTY"].mkdir()
    places["MIXED"].write_text("text,label\na film,YES\na film,0\n")
    if "BARE" in arguments:
        load(models / "bert").save_pretrained(places["BARE"])
    output = ["-o", tmp_path / "out"] if arguments[0] in ("prune", "shrink", "distill") else []
    assert run(*(places.get(one, one) for one in arguments), *output, status=2) == ""
    assert message in run.error
    lines = run.error.strip().splitlines()
    assert lines[-1].startswith(f"hfcompress {arguments[0]}: ")
    assert len(lines) == 1
    assert not (tmp_path / "out").exists()


def test_what_argparse_refuses_exits_with_2(capsys):
    for arguments in (
        ["shrink", "bert", "-o", "out", "--drop-layers", "some"],
        ["mend"],
        [],
        ["distill", "--alpha", "1"],
        ["prune", "bert", "-o", "out", "--amount", "20%"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit) as stopped:
        main(["distill", "bert", "--student-layers", "2", "--data", "a.csv", "-o", "out", "--temprature", "2"])
    assert stopped.value.code == 2
    assert "unrecognized arguments: --temprature" in capsys.readouterr().err


def test_all_training_arguments_are_listed_and_none_hides_an_option_of_ours(capsys):
    assert main(["distill", "--help-all"]) == 0
    full = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["distill", "--help"])
    light = capsys.readouterr().out
    for option in {word.strip("[](),") for word in light.split() if word.strip("[](").startswith("--")}:
        assert option in full
    assert "--warmup_steps" in full
    assert "--relation_heads" in full
    assert "of the teacher's layers" in " ".join(full.split())


@pytest.mark.parametrize("verb", ["", "report", "prune", "shrink", "distill", "compare", "pack", "unpack"])
def test_help_fits_80_columns(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main([*([verb] if verb else []), "--help"])
    assert stopped.value.code == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


LIGHT = """
import sys
from hfcompress_cli import main
for arguments in (["--help"], ["distill", "--help"], ["--version"], ["prune"]):
    try:
        main(arguments)
    except SystemExit as stopped:
        assert stopped.code == (2 if arguments == ["prune"] else 0), arguments
    else:
        raise AssertionError(arguments)
heavy = {"torch", "transformers", "numpy", "hfcompress", "accelerate", "datasets"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_imports_neither_torch_nor_transformers():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: hfcompress" in done.stdout


def test_the_program_exits_with_its_status(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hfcompress", "report", "nowhere/", "--json"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("hfcompress_cli", run_name="__main__")
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "hfcompress report: There is no folder nowhere/.\n"


def test_a_saved_folder_is_no_special_one(models, tmp_path, run):
    run("shrink", models / "bert", "--neurons", 0.5, "--scope", "layer", "-o", tmp_path / "out")
    assert AutoModel.from_pretrained(tmp_path / "out").config.intermediate_size == 32
