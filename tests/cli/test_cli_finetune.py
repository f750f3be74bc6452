"""``hfcompress finetune`` against the trainer in Python, and the labels that it reads from files."""

import csv
import json
import random
import shutil

import numpy as np
import pytest
import torch
from architectures import build
from command_line import COLUMNS, WORDS, contents, load, make_tokenizer, predict, read_reviews
from transformers import AutoTokenizer, BertConfig, BertModel

import hfcompress as hfc
from hfcompress import compat

SHORT = ("--max-steps", 2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder of a BERT without a head."""
    folder = tmp_path_factory.mktemp("base") / "my base"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write(path, rows):
    """Write rows as a csv or jsonl with the columns text and label."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    else:
        path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    return path


def texts(count):
    return [f"{WORDS[n % 2]} {'film ' * (n % 4)}{WORDS[2 + n % 4]}" for n in range(count)]


def labelled(labels, count=40):
    return [(text, labels[n % 4 // 2 % len(labels)]) for n, text in enumerate(texts(count))]


def test_a_base_model_learns_the_labels_of_the_data(base, models, data, tmp_path, run):
    before = contents(base)
    rows = (data / "train.csv").read_text().replace(",1", ",YES").replace(",0", ",NO")
    (tmp_path / "train.csv").write_text(rows)
    command = ["finetune", base, "--data", tmp_path / "train.csv", *COLUMNS, "--eval-data", data / "test.jsonl"]
    found = run(*command, "--epochs", 20, "--learning-rate", 1e-2, "-o", tmp_path / "teacher", "--json")
    config = load(tmp_path / "teacher").config
    assert config.id2label == {0: "NO", 1: "YES"}
    assert config.label2id == {"NO": 0, "YES": 1}
    assert predict(tmp_path / "teacher", data)[1] == 1.0 == found["evaluation"]["eval_accuracy"]
    assert found["model"]["accuracy"] == 1.0
    assert contents(base) == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["teacher", "train.csv"]
    assert not any(one.is_dir() for one in (tmp_path / "teacher").iterdir())


def test_it_trains_as_the_exact_mean_trainer_does(models, data, tmp_path, run):
    settings = {"max_steps": 3, "learning_rate": 1e-3, "seed": 5, "gradient_accumulation_steps": 2}
    settings |= {"per_device_train_batch_size": 4}
    given = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    command = ["finetune", models / "bert", "--data", data / "test.jsonl", *COLUMNS, "--held-out", 0, *given]
    run(*command, "-o", tmp_path / "out")

    tokenizer, expected = AutoTokenizer.from_pretrained(models / "bert"), load(models / "bert")
    rows = read_reviews(data)
    rows = random.Random(5).sample(rows, len(rows))
    train = [{**tokenizer(row["review"]), "labels": int(row["sentiment"] == "YES")} for row in rows]
    args = hfc.DistillationArguments(
        tmp_path / "training", **settings, alpha=0.0, label_loss="cross_entropy", warmup_steps=0.1,
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    hfc.DistillationTrainer(expected, args, train_dataset=train, processing_class=tokenizer).train()
    ids = torch.tensor([[2, 3, 4]])
    assert torch.allclose(load(tmp_path / "out")(ids).logits, expected.eval()(ids).logits, atol=1e-6)


def test_bfloat16_needs_no_other_option(base, tmp_path, run):
    rows = labelled(["neg", "pos"])
    command = ["finetune", base, "--data", write(tmp_path / "a.csv", rows), *SHORT, "--overwrite", "-o", tmp_path / "o"]
    run(*command)
    assert ("so --bf16 takes less time" in run.error) is (compat.mixed_precision().name == "bf16")
    before = load(tmp_path / "o").state_dict()
    run(*command, "--bf16")
    assert "takes less time" not in run.error
    after = load(tmp_path / "o").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.allclose(before[name], after[name], atol=1e-2) for name in before)


LABELS = {
    "names": (["pos", "neg"], ["neg", "pos"]),
    "indices": ([1, 0], ["0", "1"]),
    "stars": ([5, 1, 3], ["1", "3", "5"]),
    "signs": ([1, -1], ["-1", "1"]),
    "booleans": (["True", "False"], ["False", "True"]),
    "spaces and case": (["Pos", " Pos ", "neg", "NEG", "neg"], ["neg", "Pos"]),
    "codes": (["0203", "203", "7"], ["7", "0203", "203"]),
    "long codes": (["9007199254740993", "9007199254740992"], ["9007199254740992", "9007199254740993"]),
    "other languages": (["très bien", "schlecht"], ["schlecht", "très bien"]),
}


@pytest.mark.parametrize("case", LABELS)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_the_labels_of_the_file_become_those_of_the_model(suffix, case, base, tmp_path, run):
    labels, names = LABELS[case]
    rows = [(text, labels[n % len(labels)]) for n, text in enumerate(texts(40))]
    run("finetune", base, "--data", write(tmp_path / f"a.{suffix}", rows), *SHORT, "-o", tmp_path / "out")
    assert ("are read as one: 'neg'" in run.error) is (case == "spaces and case")
    config = load(tmp_path / "out").config
    assert list(config.id2label.values()) == names
    assert config.problem_type == "single_label_classification"
    run("compare", tmp_path / "out", "--data", tmp_path / f"a.{suffix}", "--repeats", 1)  # reads the same labels
    assert ("are spelled otherwise than the model's names" in run.error) is (case == "spaces and case")


def test_whole_numbers_keep_their_meaning_as_indices(base, tmp_path, run):
    rows = [(text, [2, 0, 1][n % 3]) for n, text in enumerate(texts(30))]
    run("finetune", base, "--data", write(tmp_path / "a.csv", rows), *SHORT, "-o", tmp_path / "out")
    assert load(tmp_path / "out").config.label2id == {"0": 0, "1": 1, "2": 2}


@pytest.mark.parametrize("several", [["a;b", "", "b", "c"], [["a", "b"], [], ["b"], ["c"]]], ids=["cells", "lists"])
def test_several_labels_a_text(several, base, tmp_path, run):
    suffix, separator = ("csv", ["--label-separator", ";"]) if isinstance(several[0], str) else ("jsonl", [])
    rows = [(text, several[n % 4]) for n, text in enumerate(texts(40))]
    found = run(
        "finetune", base, "--data", write(tmp_path / f"a.{suffix}", rows), *separator, *SHORT, "-o", tmp_path / "out",
        "--json",
    )  # fmt: skip
    config = load(tmp_path / "out").config
    assert config.problem_type == "multi_label_classification"
    assert list(config.id2label.values()) == ["a", "b", "c"]
    assert "exact_match" in found["model"]


@pytest.mark.parametrize("numbers", [[0.5, 2, -1.25, 3], [1, 2, 3, 4]])
def test_numbers_make_a_regression(numbers, base, tmp_path, run):
    asked = [] if numbers[0] == 0.5 else ["--regression"]
    rows = [(text, numbers[n % 4]) for n, text in enumerate(texts(40))]
    found = run(
        "finetune", base, "--data", write(tmp_path / "a.csv", rows), *asked, *SHORT, "-o", tmp_path / "out", "--json"
    )
    assert load(tmp_path / "out").config.num_labels == 1
    assert load(tmp_path / "out").config.problem_type == "regression"
    assert found["model"]["mse"] == pytest.approx(found["evaluation"]["eval_loss"], rel=1e-4)


def test_a_new_head_of_numbers_starts_at_their_mean(base, tmp_path, run):
    numbers = [90 + n % 7 / 2 for n in range(40)]
    rows = list(zip(texts(40), numbers, strict=True))
    data = ["--data", write(tmp_path / "a.csv", rows[:30]), "--eval-data", write(tmp_path / "b.csv", rows[30:])]
    how = [*data, *SHORT, "--learning-rate", 0]
    printed = " ".join(run("finetune", base, *how, "-o", tmp_path / "out").split())
    assert load(tmp_path / "out").classifier.bias.item() == pytest.approx(np.mean(numbers[:30]), rel=1e-6)
    mean, error = np.mean(numbers[30:]), np.var(numbers[30:])
    assert f"always answering the mean, {mean:.4g}, has a mean squared error of {error:.4g} on these" in printed
    others = ["--data", write(tmp_path / "c.csv", [(text, one / 10) for text, one in rows]), *SHORT]
    run("finetune", tmp_path / "out", *others, "--learning-rate", 0, "-o", tmp_path / "again")
    assert torch.equal(*(load(tmp_path / name).classifier.bias for name in ("out", "again")))  # a trained head stays


def test_a_new_head_of_numbers_may_have_no_bias(tmp_path, run):
    build("llama").save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    data = write(tmp_path / "a.csv", [(text, 90 + n % 7 / 2) for n, text in enumerate(texts(40))])
    run("finetune", tmp_path / "base", "--data", data, "--new-head", *SHORT, "-o", tmp_path / "out")
    assert load(tmp_path / "out").score.weight.shape == (1, 32)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (labelled(["one"]), [], "holds the one label 'one', and a classifier needs two or more"),
        ([(text, f"id {n}") for n, text in enumerate(texts(30))], [], "holds 30 different labels in 30 rows"),
        (labelled(["1", "x"]), ["--regression"], "has the label 'x', which is not a number to predict"),
        (labelled(["a", "b"]), ["--label-separator", ";", "--regression"], "--regression is for one number a text"),
        (labelled(["a", "b"]), ["--class-weights", "[1, 2, 3]"], "--class-weights [1.0, 2.0, 3.0] are 3 weights"),
        (
            [(text, [n % 2, 0, 1]) for n, text in enumerate(texts(30))],
            [],
            "do not say what the classes are called; list",
        ),
        ([(text, [n % 2, 0.5]) for n, text in enumerate(texts(30))], ["--regression"], "has the list [0, 0.5]; leave"),
        ([(text, [n % 2, 1 - n % 2]) for n, text in enumerate(texts(30))], ["--regression"], "has the list [0, 1];"),
        (labelled(["a", "b"]), ["--held-out", "1.5"], "--held-out=1.5"),
        (labelled(["a", "b"]), ["--metric-for-best-model", "taste"], "choose one of loss, accuracy, f1_macro"),
    ],
)
def test_labels_that_do_not_fit_are_refused(rows, options, message, base, tmp_path, run):
    data = write(tmp_path / ("a.jsonl" if isinstance(rows[0][1], list) else "a.csv"), rows)
    run("finetune", base, "--data", data, *options, "--max-steps", 2, "-o", tmp_path / "out", status=2)
    assert message in run.error
    assert [tmp_path / one.name for one in tmp_path.iterdir()] == [data]


def test_a_trained_head_stays_or_is_replaced_if_asked(models, tmp_path, run):
    data = write(tmp_path / "a.csv", labelled(["good", "bad"]))
    command = ["finetune", models / "bert", "--data", data, *SHORT, "--learning-rate", 0, "-o", tmp_path / "out"]
    run(*command, status=2)
    assert "with --new-head it gets one for the data's" in run.error
    run(*command, "--new-head", "--seed", 3)
    made, old = load(tmp_path / "out"), load(models / "bert")
    assert made.config.label2id == {"bad": 0, "good": 1}
    assert not torch.allclose(made.classifier.weight, old.classifier.weight)
    assert made.classifier.weight.std().item() == pytest.approx(old.config.initializer_range, rel=0.5)
    assert torch.equal(made.bert.encoder.layer[0].output.dense.weight, old.bert.encoder.layer[0].output.dense.weight)
    write(tmp_path / "a.csv", labelled(["NO", "yes"]))
    run(*command, "--overwrite")
    assert torch.equal(load(tmp_path / "out").classifier.weight, old.classifier.weight)


@pytest.mark.parametrize("name", ["gpt2", "llama", "distilbert", "roberta", "electra", "modernbert"])
def test_any_architecture_gets_a_new_head(name, tmp_path, run):
    model = build(name)
    model.config.pad_token_id = None if name in ("gpt2", "llama") else model.config.pad_token_id
    model.save_pretrained(tmp_path / "base")
    make_tokenizer(pad=None if name in ("gpt2", "llama") else "[PAD]").save_pretrained(tmp_path / "base")
    data = write(tmp_path / "a.csv", [(text, "abc"[n % 3]) for n, text in enumerate(texts(24))])
    command = ["finetune", tmp_path / "base", "--data", data, "--new-head", *SHORT]
    found = run(*command, "--per-device-train-batch-size", 4, "-o", tmp_path / "out", "--json")
    assert list(load(tmp_path / "out").config.id2label.values()) == ["a", "b", "c"]
    assert found["model"]["examples"] == 5 or found["examples"]["held_out"] == 5


def test_each_label_is_held_out_in_the_same_share(base, tmp_path, run):
    rows = [(text, "rare" if n % 10 == 0 else "often") for n, text in enumerate(texts(100))]
    command = ["finetune", base, "--data", write(tmp_path / "a.csv", rows), "--max-steps", 1]
    printed = run(*command, "-o", tmp_path / "out", "--learning-rate", 0)
    assert "trained on 80 rows, measured on 20 others" in printed
    assert "always answering 'often' is right for 90.0% of these" in printed


def test_the_best_epoch_is_kept(base, tmp_path, run):
    rows = labelled(["good", "bad"])
    command = ["finetune", base, "--data", write(tmp_path / "a.csv", rows), "--epochs", 4, "--seed", 1]
    # A learning rate at which the last epochs are worse than the first.
    found = run(*command, "--learning-rate", 0.5, "--lr-scheduler-type", "constant", "-o", tmp_path / "out", "--json")
    logs = [line for line in run.error.splitlines() if "eval_accuracy" in line]
    accuracies = [float(line.split("eval_accuracy ")[1].split(",")[0]) for line in logs]
    assert len(accuracies) == 4
    assert found["eval_accuracy"] == pytest.approx(max(accuracies), abs=1e-3)
    assert found["evaluation"]["eval_accuracy"] == pytest.approx(max(accuracies), abs=1e-3)
    assert found["best_epoch"] in {n + 1.0 for n, one in enumerate(accuracies) if one == max(accuracies)}


def test_class_weights_are_read_and_macro_f1_then_chooses(base, tmp_path, run):
    rows = [(text, "rare" if n % 5 == 0 else "often") for n, text in enumerate(texts(50))]
    command = ["finetune", base, "--data", write(tmp_path / "a.csv", rows), "--epochs", 1]
    found = run(*command, "--class-weights", "balanced", "-o", tmp_path / "out", "--json")
    assert "eval_f1_macro" in found
    printed = run(*command, "--class-weights", "balanced", "-o", tmp_path / "out", "--overwrite")
    assert "with the best eval_f1_macro" in printed


def test_few_rows_are_trained_on_for_longer(base, tmp_path, run):
    data = write(tmp_path / "a.csv", labelled(["a", "b"], 12))
    found = run("finetune", base, "--data", data, "-o", tmp_path / "out", "--json")
    assert found["epochs"] == 20
    assert "An epoch of 10 rows has 1 updates" in run.error
    found = run("finetune", base, "--data", data, "--num-train-epochs", 2, "-o", tmp_path / "b", "--json")
    assert found["epochs"] == 2


def test_checkpoints_stay_where_they_were_asked(base, tmp_path, run):
    data = write(tmp_path / "a.csv", labelled(["a", "b"]))
    command = ["finetune", base, "--data", data, "--epochs", 2, "--output-dir", tmp_path / "kept"]
    run(*command, "-o", tmp_path / "out")
    kept = sorted(one.name for one in (tmp_path / "kept").iterdir())
    assert len(kept) == 2
    assert (tmp_path / "kept" / kept[-1] / "optimizer.pt").exists()
    resumed = [*command, "--resume-from-checkpoint", tmp_path / "kept" / kept[0], "-o", tmp_path / "again"]
    run(*resumed)
    ids = torch.tensor([[2, 3, 4]])
    assert torch.allclose(load(tmp_path / "out")(ids).logits, load(tmp_path / "again")(ids).logits, atol=1e-5)


def test_zeros_of_a_pruned_model_stay(models, tmp_path, run):
    run("prune", models / "bert", "--amount", 0.5, "-o", tmp_path / "pruned")
    data = write(tmp_path / "a.csv", labelled(["NO", "YES"]))
    run("finetune", tmp_path / "pruned", "--data", data, *SHORT, "-o", tmp_path / "out")
    assert "50.0% of the weights" in run.error
    zeros = [hfc.sparsity_report(load(tmp_path / name)).zeros for name in ("pruned", "out")]
    assert zeros[0] == zeros[1]


def test_a_trained_head_stays_and_is_named(models, tmp_path, run):
    data = write(tmp_path / "a.csv", labelled(["NO", "YES"]))
    run("finetune", models / "bert", "--data", data, *SHORT, "-o", tmp_path / "out")
    assert "bert keeps its head, which was trained for 'NO', 'YES'; --new-head gives it one" in run.error
    numbers = write(tmp_path / "b.csv", labelled(["0", "1"]))
    run("finetune", models / "bert", "--data", numbers, "--regression", *SHORT, "-o", tmp_path / "no", status=2)
    assert "keeps its head, which was trained for classes; add --new-head" in run.error
    assert not (tmp_path / "no").exists()


def test_texts_that_are_trained_on_too_are_counted(base, tmp_path, run):
    rows = [*zip(texts(20), ["a", "b"] * 10, strict=True)]
    write(tmp_path / "a.csv", rows)
    write(tmp_path / "b.csv", [*rows[:5], ("unlike all of them", "a")])
    how = ["--data", tmp_path / "a.csv", "--eval-data", tmp_path / "b.csv", *SHORT]
    printed = " ".join(run("finetune", base, *how, "-o", tmp_path / "out").split())
    assert "trained on 20 rows, measured on 6 others, 5 of which have the text of one that was trained on" in printed


def test_a_layer_that_is_not_among_the_weights_is_refused(base, tmp_path, run):
    shutil.copytree(base, tmp_path / "deep")
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "deep" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    data = write(tmp_path / "a.csv", labelled(["a", "b"]))
    run("finetune", tmp_path / "deep", "--data", data, "-o", tmp_path / "out", status=2)
    assert "has no trained body" in run.error


def test_a_tokenizer_with_tokens_that_the_model_lacks_is_refused(base, tmp_path, run):
    shutil.copytree(base, tmp_path / "small")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"word{n}" for n in range(500)])
    tokenizer.save_pretrained(tmp_path / "small")
    rows = [(f"{text} word499", "ab"[n % 2]) for n, text in enumerate(texts(40))]
    run("finetune", tmp_path / "small", "--data", write(tmp_path / "a.csv", rows), "-o", tmp_path / "out", status=2)
    assert "call model.resize_token_embeddings(len(tokenizer))" in run.error


def test_weights_of_another_model_are_refused(base, tmp_path, run):
    build("gpt2").base_model.save_pretrained(tmp_path / "mixed")
    shutil.copy(base / "config.json", tmp_path / "mixed" / "config.json")
    make_tokenizer().save_pretrained(tmp_path / "mixed")
    data = write(tmp_path / "a.csv", labelled(["a", "b"]))
    run("finetune", tmp_path / "mixed", "--data", data, "-o", tmp_path / "out", status=2)
    assert "has no trained body" in run.error


def test_sections_are_classes_as_they_are_spelled(base, tmp_path, run):
    """1.1 and 1.10 are two of them; whole numbers are the same however they are written."""
    names = ["1.1", "1.10", "other", "2.0", "2", "1e2"]
    data = write(tmp_path / "a.csv", [(text, names[n % 6]) for n, text in enumerate(texts(60))])
    run("finetune", base, "--data", data, "--epochs", 1, "-o", tmp_path / "out")
    assert list(load(tmp_path / "out").config.id2label.values()) == ["1.1", "1.10", "1e2", "2", "other"]
    run("compare", tmp_path / "out", "--data", data)
    assert "10 of 60 labels of the data are spelled otherwise" in " ".join(run.error.split())


def test_a_column_of_texts_alone_may_have_the_usual_name_of_labels(models, tmp_path, run):
    data = write(tmp_path / "a.csv", [("1", text) for text in texts(20)])
    more = ["--vocabulary", data, "--text-column", "label"]
    run("shrink", models / "bert", *more, "-o", tmp_path / "out")
    run("compare", models / "bert", "--data", data, "--text-pair-column", "text", status=2)
    assert "--text-column and --text-pair-column are both 'text'; name two columns" in run.error


@pytest.mark.parametrize("label", [{"id": 1}, [["a"], "b"]], ids=str)
def test_what_is_no_label_is_refused_by_its_place(label, base, tmp_path, run):
    rows = [{"text": text, "label": "a"} for text in texts(20)]
    rows = [rows[0] | {"label": ["a"] if isinstance(label, list) else "a"}, {"text": "good", "label": label}, *rows[2:]]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run("finetune", base, "--data", tmp_path / "a.jsonl", "-o", tmp_path / "out", status=2)
    assert "Line 2 of " in run.error
    assert "in the column 'label', which is no label: a text or a number." in " ".join(run.error.split())


@pytest.mark.parametrize("verb", ["finetune", "compress", "compare", "shrink"])
def test_a_column_is_not_read_as_text_and_as_label(verb, models, tmp_path, run):
    data = write(tmp_path / "a.csv", labelled(["a", "b"]))
    output = [] if verb == "compare" else ["-o", tmp_path / "out"]
    output += ["--heads", 0.5] if verb == "shrink" else []
    run(verb, models / "bert", "--data", data, "--text-column", "label", *output, status=2)
    assert "'label' is the column of a text and that of the labels" in run.error
    assert not (tmp_path / "out").exists()


def test_where_nothing_is_held_out_the_next_commands_measure_with_other_rows(base, tmp_path, run):
    data = write(tmp_path / "a.csv", labelled(["a", "b"]))
    printed = run("finetune", base, "--data", data, "--epochs", 1, "--held-out", 0, "-o", tmp_path / "out")
    assert printed.count("--eval-data FILE.csv") == 2
    for verb in ("compress", "shrink"):
        for share in (0, "-50%", "nan"):
            command = [verb, tmp_path / "out", "--data", data, f"--held-out={share}", "-o", tmp_path / "other"]
            run(*command, *(["--heads", 0.5] if verb == "shrink" else []), status=2)
            assert "so --held-out must be above 0; or name others with --eval-data" in " ".join(run.error.split())
