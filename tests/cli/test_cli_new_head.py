"""A classification head that nobody has trained is called new by what is written, and refused where it matters."""

import json

import pytest
import torch
from architectures import LONG
from command_line import COLUMNS, load, make_tokenizer
from exports import needs_torch_export
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, Trainer, TrainingArguments

import hfcompress as hfc
from hfcompress.models.new_head import MARK

HEAD = ["classifier.bias", "classifier.weight"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a BERT without a head."""
    folder = tmp_path_factory.mktemp("base") / "bert"
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


WRITERS = {
    "prune": ["prune", "BASE", "--amount", 0.2],
    "prune the head": ["prune", "BASE", "--amount", 0.2, "--include", "classifier"],
    "shrink": ["shrink", "BASE", "--neurons", 0.5, "--round-to", 8],
    "shrink unevenly": ["shrink", "BASE", "--heads", 0.5],
    "shrink layers": ["shrink", "BASE", "--drop-layers", 1],
    "shrink the vocabulary": ["shrink", "BASE", "--vocabulary", "DATA", "--text-column", "review"],
}


# For what is done with the folder: a plain config and a plan of shapes; all with HYPOTHESIS_PROFILE=long.
@pytest.fixture(scope="module", params=WRITERS if LONG else ("prune", "shrink unevenly"))
def written(request, base, data, tmp_path_factory):
    """What a verb has made of the base model, with a head that is new."""
    from hfcompress_cli import main

    folder = tmp_path_factory.mktemp("written") / "out"
    places = {"BASE": base, "DATA": data / "test.jsonl"}
    command = [str(places.get(one, one)) for one in WRITERS[request.param]]
    assert main([*command, "-o", str(folder)]) == 0
    return folder


def mark(folder):
    return json.loads((folder / "config.json").read_text()).get(MARK)


@pytest.mark.parametrize("written", WRITERS, indirect=True)
def test_config_and_card_say_that_the_head_is_new(written, run):
    assert mark(written)["weights"] == HEAD
    assert "classification head is new**: `classifier.bias`, `classifier.weight`" in (written / "README.md").read_text()
    assert run("report", written, "--json")["new_head"] == HEAD
    assert "new, not trained: classifier.bias" in run("report", written)


NEEDERS = {
    "compare": ["compare", "NEW", "--data", "DATA", *COLUMNS],
    "compare second": ["compare", "BERT", "NEW", "--data", "DATA", *COLUMNS],
    "distill": ["distill", "NEW", "--student-layers", 1, "--data", "DATA", *COLUMNS],
    "shrink": ["shrink", "NEW", "--neurons", 0.5, "--data", "DATA", *COLUMNS],
    "shrink without labels": ["shrink", "NEW", "--neurons", 0.5, "--data", "DATA", "--text-column", "review"],
    "export": ["export", "NEW"],
}


@pytest.mark.parametrize("verb", NEEDERS)
def test_verbs_that_need_a_trained_head_refuse_it(verb, written, models, data, tmp_path, run):
    places = {"NEW": written, "BERT": models / "bert", "DATA": data / "test.jsonl"}
    output = [] if verb.startswith("compare") else ["-o", tmp_path / "out"]
    run(*(places.get(one, one) for one in NEEDERS[verb]), *output, status=2)
    assert "has no trained classification head (classifier.bias, classifier.weight); fine-tune it first" in run.error
    assert f"hfcompress finetune {written} --data" in run.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("steps", [["pack"], ["prune"], ["shrink"], ["prune", "shrink", "pack", "unpack"]])
def test_the_mark_goes_from_folder_to_folder(steps, written, tmp_path, run):
    folder = written
    for number, verb in enumerate(steps):
        out = tmp_path / str(number)
        asked = {"prune": ["--amount", 0.5], "shrink": ["--drop-layers", 0, "--neurons", 0.1, "--round-to", 1]}
        run(verb, folder, *asked.get(verb, []), *([out] if "pack" in verb else ["-o", out]))
        folder = out
    assert mark(folder)["weights"] == HEAD
    assert run("report", folder, "--json")["new_head"] == HEAD


def rows(count=8):
    return [{"input_ids": [2, 3 + n % 5], "labels": n % 2} for n in range(count)]


@pytest.mark.parametrize("steps", [1, 3])
def test_after_any_training_the_head_is_not_new(steps, written, tmp_path, run):
    model = load(written).train()
    args = TrainingArguments(tmp_path / "work", use_cpu=True, max_steps=steps, report_to="none", disable_tqdm=True)
    trainer = Trainer(model, args, train_dataset=rows())
    trainer.train()
    trainer.save_model(tmp_path / "trained")
    assert run("report", tmp_path / "trained", "--json")["new_head"] == []
    hfc.save_compressed(model, tmp_path / "packed")
    assert mark(tmp_path / "packed") is None


def test_distill_trains_a_new_head_and_takes_the_mark_away(written, models, data, tmp_path, run):
    command = ["distill", models / "bert", "--student", written, "--data", data / "test.jsonl", *COLUMNS]
    run(*command, "--max-steps", 1, "-o", tmp_path / "out")
    assert load(tmp_path / "out").config.id2label == {0: "NO", 1: "YES"}
    assert mark(tmp_path / "out") is None
    assert not (tmp_path / "out" / "README.md").exists()
    run("compare", tmp_path / "out", "--data", data / "test.jsonl", *COLUMNS, "--repeats", 1)


def test_a_new_head_takes_as_many_labels_as_its_teacher_has(written, data, tmp_path, run):
    try:
        teacher = AutoModelForSequenceClassification.from_pretrained(
            written, num_labels=3, ignore_mismatched_sizes=True
        )
    except hfc.CompressionError as error:
        if "needs transformers 5.23" not in str(error):
            raise
        pytest.skip("transformers before 5.23 gives a model with a plan no head of another size")
    names = {0: "NO", 1: "YES", 2: "MAYBE"}
    teacher.config.update({"id2label": names, "label2id": {name: index for index, name in names.items()}})
    with torch.no_grad():
        teacher.classifier.bias.normal_()
    teacher.save_pretrained(tmp_path / "teacher")
    make_tokenizer().save_pretrained(tmp_path / "teacher")
    command = ["distill", tmp_path / "teacher", "--student", written, "--data", data / "test.jsonl", *COLUMNS]
    run(*command, "--max-steps", 1, "-o", tmp_path / "out")
    assert load(tmp_path / "out").config.id2label == names


def test_a_card_of_ones_own_stays_and_ours_is_replaced(base, models, tmp_path, run):
    out = tmp_path / "out"
    run("prune", base, "--amount", 0.2, "-o", out)
    run("prune", models / "bert", "--amount", 0.2, "-o", out, "--overwrite")
    assert not (out / "README.md").exists()
    (out / "README.md").write_text("mine")
    run("prune", base, "--amount", 0.2, "-o", out, "--overwrite")
    assert (out / "README.md").read_text() == "mine"


def test_what_reads_no_labels_still_takes_a_new_head(written, run):
    run("compare", written, "--length", 8, "--repeats", 1)


@needs_torch_export
def test_export_takes_a_trained_head(models, tmp_path, run):
    run("export", models / "bert", "-o", tmp_path / "onnx", "--repeats", 0)
