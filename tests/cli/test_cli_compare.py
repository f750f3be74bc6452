"""``hfcompress compare`` against plain loops."""

import json
import shutil

import pytest
from architectures import build
from command_line import COLUMNS, NUMBERS, WORDS, make_tokenizer, predict


@pytest.fixture
def names(models):
    return [str(models / name) for name in ("bert", "gpt2")]


@pytest.fixture
def read(data):
    return ("--data", data / "test.jsonl", *NUMBERS, "--repeats", 1, "--device", "cpu")


def test_compare_measures_speed_and_accuracy(names, read, data, run):
    found = run("compare", *names, *read, "--json")
    rows = found.get("models", found)
    assert list(rows) == names
    for name in names:
        assert rows[name]["accuracy"] == pytest.approx(predict(name, data)[1])
        assert rows[name]["latency_ms"] > 0


def test_compare_prints_a_table(names, run):
    assert run("compare", *names).startswith("model")
    assert run("compare", *names, "--markdown").startswith("| model |")


def test_compare_times_dummy_texts(names, run):
    timed = run("compare", *names, "--length", "4,8", "--batch-size", "1,2", "--repeats", 1, "--json")
    assert timed[names[0]]["flops"] > 0


def test_compare_refuses_half_a_list_of_lengths(names, run):
    with pytest.raises(SystemExit, match="2"):
        run("compare", *names, "--length", "12,")


def test_compare_writes_a_page(names, read, tmp_path, run):
    run("compare", *names, *read, "--html", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert all(name in text for name in names)


def test_a_page_is_replaced_only_if_asked(names, tmp_path, run):
    page = tmp_path / "page.html"
    page.write_text("mine")
    run("compare", *names, "--html", page, status=2)
    assert page.read_text() == "mine"
    run("compare", *names, "--html", page, "--overwrite")
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert list(tmp_path.iterdir()) == [page]


@pytest.fixture
def tail(models, tmp_path):
    """Sixteen short rows and a long one behind them."""
    rows = [{"text": "a film", "label": 0}] * 16 + [{"text": "a film " * 7, "label": 1}]
    (tmp_path / "tail.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ("compare", models / "bert", "--data", tmp_path / "tail.jsonl", "--repeats", 1)


def test_a_timed_batch_is_not_padded_to_a_later_text(tail, run):
    assert "batches of 16 x 2 tokens" in " ".join(run(*tail).split())


def test_compare_shows_every_batch_that_was_timed(tail, run):
    several = run(*tail, "--length", "4,8", "--batch-size", "1,2")
    assert all(f"{size} x {length}" in several for size in (1, 2) for length in (4, 8))


MAPS = {
    "a list": {"id2label": ["NO", "YES"], "label2id": None},
    "two lists": {"id2label": ["NO", "YES"], "label2id": ["NO", "YES"]},
    "a list beside a map": {"id2label": ["NO", "YES"], "label2id": {"NO": "0", "YES": "1"}},
    "other case": {"id2label": {"0": "NO", "1": "YES"}, "label2id": {"no": 0, "yes": 1}},
    "the other alone, as text": {"id2label": None, "label2id": {"YES": "1", "NO": "0"}},
}


@pytest.mark.parametrize("maps", MAPS.values(), ids=MAPS)
def test_label_maps_in_any_plain_spelling(maps, models, data, tmp_path, run):
    shutil.copytree(models / "bert", tmp_path / "bert")
    written = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps(written | maps))
    _, accuracy = predict(models / "bert", data)
    found = run("compare", tmp_path / "bert", "--data", data / "test.jsonl", *COLUMNS, "--repeats", 1, "--json")
    assert found[str(tmp_path / "bert")]["accuracy"] == accuracy


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({"id2label": {"NO": 0, "YES": 1}}, "have no plain meaning: id2label has 'NO' in the place of a class index"),
        ({"id2label": "NO, YES"}, "have no plain meaning: id2label is neither a mapping nor a list"),
        ({"id2label": ["NO", "NO"], "label2id": None}, "have no plain meaning: several classes have the name 'NO'"),
        ({"id2label": {"0": "NO", "1": "YES", "2": "SO"}}, "its classifier.bias is of shape (2,), and its config.json"),
    ],
)
def test_label_maps_without_a_plain_meaning(maps, message, models, tmp_path, run):
    shutil.copytree(models / "bert", tmp_path / "bert")
    written = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps(written | maps))
    run("report", tmp_path / "bert", status=2)
    assert message in run.error


@pytest.fixture(params=["single", "several"])
def reordered(request, tmp_path):
    """Two models with their classes in other orders, and labels in their names and as indices."""
    kind = {"problem_type": "multi_label_classification"} if request.param == "several" else {}
    for seed, order in enumerate((["bad", "fair", "good"], ["good", "bad", "fair"])):
        names = {"id2label": dict(enumerate(order)), "label2id": {name: index for index, name in enumerate(order)}}
        build("bert", 3, seed=seed, **kind, **names).save_pretrained(tmp_path / f"model{seed}")
        make_tokenizer().save_pretrained(tmp_path / f"model{seed}")
    between = {"name": ["bad", "fair;good", "fair"], "index": [0, "1;2", 1]} if kind else {}
    between = between or {"name": ["bad", "good", "fair"], "index": [0, 2, 1]}
    rows = [{"text": WORDS[n], **{key: cells[n % 3] for key, cells in between.items()}} for n in range(6)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path, ["--label-separator", ";"] * bool(kind)


@pytest.mark.parametrize("verb", ["compare", "distill"])
def test_indices_with_classes_in_two_orders_are_refused(verb, reordered, run):
    """They would mean the classes of each model in turn."""
    folder, options = reordered
    models = [str(folder / f"model{seed}") for seed in (0, 1)]
    command = ["compare", *models] if verb == "compare" else ["distill", models[0], "--student", models[1]]
    if verb == "distill":
        options = [*options, "-o", folder / "out", "--max-steps", 1, "--use-cpu"]
    command += ["--data", folder / "data.jsonl", *options, "--label-column"]
    run(*command, "index", status=2)
    assert "The label 0 of the data (Line 1 of" in run.error
    assert "'bad', 'fair', 'good' and 'good', 'bad', 'fair'. Write the names of the classes" in run.error
    assert not (folder / "out").exists()
    run(*command, "name")
