"""Texts from files, and what the command line makes of them."""

import json
import random
import sys

import pyarrow as pa
import pyarrow.parquet
import pytest
from architectures import build

from hfcompress import CompressionError
from hfcompress_cli.data import class_indices, token_limit, read_rows, split_rows

ROWS = [
    {"text": "good, and\nof two lines", "label": "1"},
    {"text": 'said "bad"', "label": "0"},
    {"text": "née NA", "label": "0"},
    {"text": "x" * 200_000, "label": "1"},
]


def files(folder):
    quoted = ['"{}",other,{}'.format(row["text"].replace('"', '""'), row["label"]) for row in ROWS]
    (folder / "rows.csv").write_text("\n".join(["text,more,label", *quoted, ",other,1"]), encoding="utf-8-sig")
    lines = [json.dumps(row | {"more": [1]}) for row in ROWS] + ["", json.dumps({"text": None, "label": 1})]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    table = pa.Table.from_pylist([row | {"more": 1} for row in ROWS] + [{"text": "no label", "more": 1, "label": None}])
    pyarrow.parquet.write_table(table, folder / "rows.parquet")
    return [folder / f"rows.{suffix}" for suffix in ("csv", "jsonl", "parquet")]


def test_the_same_rows_come_out_of_each_kind_of_file(tmp_path, capsys):
    for file in files(tmp_path):
        assert read_rows(str(file), ["text"], "label", rows=None, seed=0) == ROWS
        assert "1 of 5 rows" in capsys.readouterr().err


def test_rows_are_drawn_at_random_and_repeatably(tmp_path):
    file = str(files(tmp_path)[0])
    drawn = [read_rows(file, ["text"], "label", rows=2, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1] == random.Random(0).sample(ROWS, 2)
    assert any(one != drawn[0] for one in drawn)


def test_a_data_set_is_read_by_its_name_and_split(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_rows("reviews", ["text"], "label", rows=None, seed=0) == ROWS
    assert read_rows("me/reviews:test[:10%]", ["text"], None, rows=1, seed=0)[0].keys() == {"text"}
    assert asked == [("reviews", "train"), ("me/reviews", "test[:10%]")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "review,label\ngood,1\n", "no column 'text' .*found: review, label.*--text-column"),
        ("a.csv", "", "no column 'text' and no 'label' .*found: none"),
        ("a.csv", "text,label\n,1\n", "hold no row with text and label; 1 were read"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "Line 2 of .* has no column 'label'"),
        ("a.jsonl", "{\n", "Line 1 of .* is no JSON"),
        ("a.jsonl", "[1]\n", "Line 1 of .* is no JSON object"),
        ("a.parquet", "no parquet", "cannot be read"),
        ("a.txt", "good\n", "neither a .csv nor a .jsonl nor a .parquet"),
    ],
)
def test_a_bad_file_is_told_in_one_sentence(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(CompressionError, match=message) as error:
        read_rows(str(tmp_path / name), ["text"], "label", rows=None, seed=0)
    assert "\n" not in str(error.value)


def test_a_missing_file_or_package_is_told(tmp_path, monkeypatch):
    for name in (tmp_path / "a.csv", "./reviews"):
        with pytest.raises(CompressionError, match="There is no file"):
            read_rows(str(name), ["text"], "label", rows=None, seed=0)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CompressionError, match=r"pip install 'hfcompress\[cli\]'"):
        read_rows("reviews", ["text"], "label", rows=None, seed=0)


def test_the_labels_of_a_column_are_all_names_or_all_indices():
    stars = {"1": 0, "2": 1, "3": 2}
    assert class_indices(["1", 3, "2"], stars) == [0, 2, 1]
    assert class_indices([0, 2.0, False, "True"], {"NO": 0, "YES": 1, "MAYBE": 2}) == [0, 2, 0, 1]
    with pytest.raises(CompressionError, match="names of the model's, such as '1', and indices, such as '0'"):
        class_indices(["0", "1"], stars)
    for wrong in ("good", -1, 2, 0.5, [1]):
        with pytest.raises(CompressionError, match=r"none of the model's, which are 'NO' \(0\), 'YES' \(1\)"):
            class_indices(["YES", wrong], {"NO": 0, "YES": 1})


def test_a_row_whose_label_is_no_number_lacks_one(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": NaN}\n{"text": "b", "label": 1}\n')
    assert read_rows(str(tmp_path / "a.jsonl"), ["text"], "label", rows=None, seed=0) == [{"text": "b", "label": 1}]
    assert "1 of 2 rows" in capsys.readouterr().err


def test_held_out_rows_are_others_than_those_trained_on():
    rows = [{"text": str(number)} for number in range(10)]
    train, held_out = split_rows(rows, 0.2, seed=1)
    assert len(held_out) == 2
    assert sorted(row["text"] for row in [*train, *held_out]) == [row["text"] for row in rows]
    assert len(split_rows(rows, 0.01, seed=1)[1]) == 1
    assert split_rows(rows, 0, seed=1)[1] == []
    for wrong in (1.0, -0.1, 0.99):
        with pytest.raises(CompressionError, match="--held-out"):
            split_rows(rows, wrong, seed=1)


@pytest.mark.parametrize(("architecture", "limit"), [("bert", 64), ("gpt2", 64), ("roberta", 63)])
def test_as_many_tokens_are_read_as_the_model_has_positions_for(architecture, limit):
    class Tokenizer:
        model_max_length = int(1e30)

        def num_special_tokens_to_add(self):
            return 2

    model, tokenizer = build(architecture), Tokenizer()
    assert token_limit(model, tokenizer, None) == limit
    assert token_limit(model, tokenizer, 5) == 5
    with pytest.raises(CompressionError, match="--max-length 2 must be between 3 and"):
        token_limit(model, tokenizer, 2)  # which special tokens fill
    with pytest.raises(CompressionError, match=f"--max-length {limit + 1} .* {limit} tokens"):
        token_limit(model, tokenizer, limit + 1)
    tokenizer.model_max_length = 32
    assert token_limit(model, tokenizer, None) == 32
