"""Texts and labels from files and data sets, and how they are encoded."""

import json
import random
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from architectures import build
from command_line import make_tokenizer
from transformers import AutoModelForSequenceClassification, BloomConfig, T5Config, XLNetConfig
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from hfcompress import CompressionError
from hfcompress_cli.data import check_labels, encode, read_rows, split_rows, token_limit
from hfcompress_cli.labels import class_indices

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
        ("a.csv", "review,label\ngood,1\n", "no column 'text' .*found: 'review', 'label'.*--text-column"),
        ("a.csv", "", "no column 'text' and no 'label' .*found: none"),
        ("a.csv", "text,dataset,run_name\ngood,1,2\n", "no column 'label' .found: 'text', 'dataset', 'run_name'"),
        ("a.csv", "text,label\n,1\n", "hold no row with text and label; 1 were read"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b", "more": 1}\n', "no column 'label' .found: 'text', 'more'"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": ["b"], "label": 1}\n', "Line 2 of .* which is not a text"),
        ("a.jsonl", "{\n", "Line 1 of .* is not JSON"),
        ("a.jsonl", "[1]\n", "Line 1 of .* is not a JSON object"),
        ("a.parquet", "not parquet", "cannot be read"),
        ("a.txt", "good\n", "neither a .csv nor a .jsonl nor a .parquet"),
    ],
)
def test_a_bad_file_is_reported_in_one_sentence(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(CompressionError, match=message) as error:
        read_rows(str(tmp_path / name), ["text"], "label", rows=None, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["missing/a.csv", "./reviews"])
def test_a_missing_file_is_reported(name):
    with pytest.raises(CompressionError, match="does not exist"):
        read_rows(name, ["text"], "label", rows=None, seed=0)


@pytest.mark.parametrize("name", ["reviews", "rows.parquet"])
def test_a_missing_package_is_reported(name, tmp_path, monkeypatch):
    files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CompressionError, match=r"pip install 'hfcompress\[cli\]'"):
        read_rows(name, ["text"], "label", rows=None, seed=0)


def test_a_data_set_that_is_not_there_is_reported(monkeypatch):
    def load(name, split):
        raise RuntimeError("Couldn't find it. Look elsewhere.")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(CompressionError, match=r"The data set reviews cannot be read: Couldn't find it\.$"):
        read_rows("reviews", ["text"], "label", rows=None, seed=0)


def test_parquet_labels_may_be_categories(tmp_path):
    table = pa.table({"text": ["good", "bad"], "label": pa.array(["YES", "NO"]).dictionary_encode()})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    rows = read_rows(str(tmp_path / "a.parquet"), ["text"], "label", rows=None, seed=0)
    assert rows == [{"text": "good", "label": "YES"}, {"text": "bad", "label": "NO"}]


def test_the_name_of_a_parquet_file_is_not_a_pattern(tmp_path):
    for name, text in (("a[1].parquet", "good"), ("a1.parquet", "bad"), ("a*.parquet", "fine")):
        pyarrow.parquet.write_table(pa.table({"text": [text], "label": [1]}), tmp_path / name)
    for name, text in (("a[1].parquet", "good"), ("a*.parquet", "fine")):
        rows = read_rows(str(tmp_path / name), ["text"], "label", rows=None, seed=0)
        assert rows == [{"text": text, "label": 1}]


def test_a_parquet_file_of_no_rows_is_reported(tmp_path):
    pyarrow.parquet.write_table(pa.table({"text": pa.array([], "string"), "label": []}), tmp_path / "a.parquet")
    with pytest.raises(CompressionError, match="hold no row with text and label; 0 were read"):
        read_rows(str(tmp_path / "a.parquet"), ["text"], "label", rows=None, seed=0)


def test_reading_parquet_leaves_no_copy_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    read_rows(str(files(tmp_path)[2]), ["text"], "label", rows=None, seed=0)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()) == 0  # but a lock


def test_labels_are_names_of_classes():
    assert class_indices(["1", 3, "2"], {"1": 0, "2": 1, "3": 2}) == [0, 2, 1]


def test_labels_are_indices_of_classes():
    assert class_indices([0, 2.0, False, "True"], {"NO": 0, "YES": 1, "MAYBE": 2}) == [0, 2, 0, 1]


STARS = {"1": 0, "2": 1, "3": 2, "4": 3}
READINGS = [
    (["1.0", "2.0", "3.0", "4.0"], STARS, [0, 1, 2, 3]),
    ([1.0, 4, "2"], STARS, [0, 3, 1]),
    (["0.0", "3.0", 2], {"a": 0, "b": 1, "c": 2, "d": 3}, [0, 3, 2]),
    (["TRUE", "FALSE", "true", False], {"True": 0, "False": 1}, [0, 1, 0, 1]),
    ([True, False, "TRUE"], {"FALSE": 0, "TRUE": 1}, [1, 0, 1]),
    (["true", "false"], {"TRUE": 1, "FALSE": 0, "other": 2}, [1, 0]),
    (["a", "A"], {"A": 0, "a": 1}, [1, 0]),
    ([" YES ", "no"], {"NO": 0, "YES": 1}, [1, 0]),
    (["-1", "1", "0"], {"-1": 0, "0": 1, "1": 2}, [0, 2, 1]),
    (["0", "1"], {"0": 0, "1": 1}, [0, 1]),
    (["0", "1"], {"LABEL_0": 0, "LABEL_1": 1}, [0, 1]),
    (["1.0"], {"1.0": 0, "2.0": 1}, "as a name is '1.0', as an index '2.0'"),
    (["0", "1"], {"1": 0, "0": 1}, "two ways: '0' as a name is '0', as an index '1'"),
    (["1", "0"], {"True": 0, "False": 1}, "two ways: '1' as a name is 'True', as an index 'False'"),
    ([1, 2], STARS, "Say which with --labels-are names .* or --labels-are indices"),
    ([1, 2, 3], {"1 star": 0, "2 stars": 1, "3 stars": 2, "4 stars": 3}, "'1' as a name is '1 star'"),
    ([1, 2], {"1 star": 0, "2 stars": 1, "3 stars": 2, "none": 3}, "'1' as a name is '1 star'"),
    (["TRUE"], {"true": 0, "True": 1}, "can be read as 'true' and 'True'; spell it as one of them"),
    (["1.00"], {"1": 0, "1.0": 1}, "can be read as '1' and '1.0'"),
    (["true", "0"], {"True": 0, "False": 1}, "names of the model's, such as 'true', and indices, such as '0'"),
    (["NA", "0"], {"a": 0, "b": 1}, "The label 'NA' .* Write the name or the index of a class there, or leave the row"),
    (["neg", "pos"], {"LABEL_0": 0, "LABEL_1": 1}, "'neg' .* set id2label and label2id in the model's config.json"),
    (["1_0"], {str(n) + "x": n for n in range(11)}, "The label '1_0' .* is not one"),
]


@pytest.mark.parametrize(("labels", "classes", "expected"), READINGS)
def test_labels_are_names_then_the_numbers_that_they_are(labels, classes, expected):
    if isinstance(expected, list):
        assert class_indices(labels, classes) == expected
    else:
        with pytest.raises(CompressionError, match=expected):
            class_indices(labels, classes)


def test_which_reading_of_labels_is_meant_can_be_said():
    classes = {"1": 0, "0": 1}
    assert class_indices(["0", "1.0"], classes, read_as="names") == [1, 0]
    assert class_indices(["0", "1.0"], classes, read_as="indices") == [0, 1]
    assert class_indices(["0", "3"], STARS, read_as="indices") == [0, 3]
    with pytest.raises(CompressionError, match=r"The label '0' .* not one"):
        class_indices(["0", "3"], STARS, read_as="names")


def test_a_wrong_label_is_named_with_its_line(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"two\nlines",1\ngood,0\nbad,5\n')
    rows = read_rows(str(tmp_path / "a.csv"), ["text"], "label", rows=None, seed=0)
    with pytest.raises(CompressionError, match=r"The label '5' .* \(Line 5 of .*a.csv\)"):
        encode(rows, ["text"], "label", build("bert"), make_tokenizer(), None)


def test_labels_are_not_both_names_and_indices():
    with pytest.raises(CompressionError, match="names of the model's, such as '1', and indices, such as '0'"):
        class_indices(["0", "1"], {"1": 0, "2": 1, "3": 2})


@pytest.mark.parametrize("wrong", ["good", -1, 2, 0.5, [1]], ids=str)
def test_a_label_of_another_model_is_refused(wrong):
    with pytest.raises(CompressionError, match=r"not one of the model's, which are 'NO' \(0\), 'YES' \(1\)"):
        class_indices(["YES", wrong], {"NO": 0, "YES": 1})


def test_a_label_that_is_nan_is_missing(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": NaN}\n{"text": "b", "label": 1}\n')
    assert read_rows(str(tmp_path / "a.jsonl"), ["text"], "label", rows=None, seed=0) == [{"text": "b", "label": 1}]
    assert "1 of 2 rows" in capsys.readouterr().err


TEN = [{"text": str(number)} for number in range(10)]


def test_held_out_rows_are_not_trained_on():
    train, held_out = split_rows(TEN, 0.2, seed=1)
    assert len(held_out) == 2
    assert sorted(row["text"] for row in [*train, *held_out]) == [row["text"] for row in TEN]


def test_at_least_one_row_is_held_out_if_any():
    assert len(split_rows(TEN, 0.01, seed=1)[1]) == 1
    assert split_rows(TEN, 0, seed=1)[1] == []


@pytest.mark.parametrize("wrong", [1.0, -0.1, 0.99])
def test_a_fraction_that_leaves_no_rows_is_refused(wrong):
    with pytest.raises(CompressionError, match="--held-out"):
        split_rows(TEN, wrong, seed=1)


class NoLimit:
    """As much of a tokenizer as the limit is about: two special tokens, and no limit of its own."""

    model_max_length = VERY_LARGE_INTEGER

    def num_special_tokens_to_add(self, pair=False):
        return 2


LIMITS = {"bert": 64, "gpt2": 64, "roberta": 63}


@pytest.mark.parametrize("architecture", LIMITS)
def test_as_many_tokens_are_read_as_there_are_positions(architecture):
    assert token_limit(build(architecture), NoLimit(), None) == LIMITS[architecture]


@pytest.mark.parametrize("architecture", LIMITS)
def test_as_many_tokens_are_read_as_were_asked(architecture):
    model, limit = build(architecture), LIMITS[architecture]
    assert token_limit(model, NoLimit(), 5) == 5
    assert token_limit(model, NoLimit(), limit) == limit
    with pytest.raises(CompressionError, match="--max-length 2 must be between 3 and"):
        token_limit(model, NoLimit(), 2)  # which special tokens fill
    with pytest.raises(CompressionError, match=f"--max-length {limit + 1} .* {limit} tokens"):
        token_limit(model, NoLimit(), limit + 1)


@pytest.mark.parametrize("architecture", LIMITS)
def test_the_limit_of_a_tokenizer_counts_too(architecture):
    tokenizer = NoLimit()
    tokenizer.model_max_length = 32
    assert token_limit(build(architecture), tokenizer, None) == 32


SMALL = {"vocab_size": 20, "num_labels": 2, "pad_token_id": 0, "eos_token_id": 1}
UNLIMITED = {
    "xlnet": XLNetConfig(**SMALL, d_model=16, n_layer=1, n_head=2, d_inner=16),
    "t5": T5Config(**SMALL, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
    "bloom": BloomConfig(**SMALL, hidden_size=16, n_layer=1, n_head=2),
}


@pytest.fixture(params=UNLIMITED)
def unlimited(request):
    """A model that reads texts of any length."""
    return AutoModelForSequenceClassification.from_config(UNLIMITED[request.param])


def test_a_model_without_a_limit_reads_whole_texts(unlimited):
    tokenizer = make_tokenizer(model_max_length=VERY_LARGE_INTEGER)
    [row] = encode([{"text": "film " * 1000}], ["text"], None, unlimited, tokenizer, None)
    assert len(row["input_ids"]) == 1000


def test_without_a_limit_of_the_model_the_tokenizers_holds(unlimited):
    assert token_limit(unlimited, make_tokenizer(), None) == 16
    with pytest.raises(CompressionError, match="--max-length 17 must be between 1 and the 16 tokens"):
        token_limit(unlimited, make_tokenizer(), 17)


def test_without_any_limit_as_many_are_read_as_asked(unlimited):
    assert token_limit(unlimited, NoLimit(), 10_000) == 10_000
    with pytest.raises(CompressionError, match="--max-length 2 must be at least 3"):
        token_limit(unlimited, NoLimit(), 2)


def test_several_labels_are_ones_among_zeros():
    model = build("bert", problem_type="multi_label_classification", num_labels=3)
    model.config.update({"id2label": {0: "old", 1: "new", 2: "red"}, "label2id": {"old": 0, "new": 1, "red": 2}})
    rows = [{"text": "film", "label": cell} for cell in ("red;old", "", "new; RED", "new")]
    made = encode(rows, ["text"], "label", model, make_tokenizer(), None, separator=";")
    assert [one["labels"] for one in made] == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 0.0]]
    lists = encode([{"text": "a", "label": ["red"]}, {"text": "a", "label": []}], ["text"], "label", model,
                   make_tokenizer(), None)  # fmt: skip
    assert [one["labels"] for one in lists] == [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("cell", "separator", "message"),
    [
        ("old;blue", ";", r"The label 'blue' .* 'red' \(2\) \(row 1\)"),
        ("old;;new", ";", r"'old;;new' of the data have ';' without a label beside it \(row 1\)"),
        ("old;new", None, "say with --label-separator"),
        ("old;new", "e", "--label-separator 'e' stands in the label 'new'"),
        ([0, 1, 1], None, "a 0 or 1 for each class, and as indices"),
    ],
)
def test_several_labels_that_are_not_the_models(cell, separator, message):
    model = build("bert", problem_type="multi_label_classification", num_labels=3)
    model.config.update({"id2label": {0: "old", 1: "new", 2: "red"}, "label2id": {"old": 0, "new": 1, "red": 2}})
    with pytest.raises(CompressionError, match=message):
        encode([{"text": "a", "label": cell}], ["text"], "label", model, make_tokenizer(), None, separator=separator)


def test_a_model_of_one_label_takes_no_separator():
    with pytest.raises(CompressionError, match="leave out --label-separator"):
        encode([{"text": "a", "label": "1"}], ["text"], "label", build("bert"), make_tokenizer(), None, separator=";")


def test_labels_of_a_model_with_one_output_are_numbers():
    rows = [{"text": "film", "label": cell} for cell in ("0.5", " -3", "1e-2", 2)]
    made = encode(rows, ["text"], "label", build("bert", num_labels=1), make_tokenizer(), None)
    assert [one["labels"] for one in made] == [0.5, -3.0, 0.01, 2.0]


@pytest.mark.parametrize("wrong", ["good", "0,5", "nan", "inf", "1_0", "true", True, "1e999", "NA"])
def test_what_is_no_number_is_refused(wrong):
    rows = [{"text": "film", "label": cell} for cell in (1, wrong)]
    with pytest.raises(CompressionError, match=r"is not a number such as 0.5, .* \(row 2\)"):
        encode(rows, ["text"], "label", build("bert", num_labels=1), make_tokenizer(), None)


def test_empty_cells_are_no_labels_only_if_that_is_asked(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("text,label\ngood,\nbad,a\n")
    read = [
        read_rows(str(tmp_path / "a.csv"), ["text"], "label", rows=None, seed=0, keep_unlabelled=kept)
        for kept in (False, True)
    ]
    assert [len(one) for one in read] == [1, 2]


def test_how_labels_are_read_is_decided_by_the_whole_table():
    model = build("bert", num_labels=4, id2label={n: str(n + 1) for n in range(4)})
    rows = [{"text": "a", "label": str(n)} for n in (1, 2, 3, 4)]
    made = encode(rows[:2], ["text"], "label", model, make_tokenizer(), None, table=rows)
    assert [one["labels"] for one in made] == [0, 1]
    with pytest.raises(CompressionError, match="two ways: '1' as a name is '1', as an index '2'"):
        encode(rows[:2], ["text"], "label", model, make_tokenizer(), None)


CLASS_NAMES = {
    "the same names": (["x", "y", "z"], ["x", "y", "z"], {}, [0, 1, 2]),
    "other places": (["x", "y", "z"], ["z", "X", "y"], {}, [1, 2, 0]),
    "fewer than the model": (["x", "y", "z"], ["z", "x", "w", "y"], {}, [1, 3, 0]),
    "read as indices": (["x", "y", "z"], ["z", "x", "y"], {"read_as": "indices"}, [0, 1, 2]),
    "other names": (["neg", "neutral", "pos"], ["bad", "fair", "good"], {}, [0, 1, 2]),
    "no names of the model's own": (["x", "y", "z"], ["LABEL_0", "LABEL_1", "LABEL_2"], {}, [0, 1, 2]),
    "some at other places": (["x", "y", "z"], ["y", "x", "q"], {}, "'x' is class 0 of the data and class 1 of the"),
    "all as names": (["x", "y", "z"], ["x", "y", "q"], {"read_as": "names"}, "The label 'z' of the data"),
}


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("names", "model_names", "settings", "expected"), CLASS_NAMES.values(), ids=CLASS_NAMES)
def test_classes_that_a_data_set_names_are_the_models(
    names, model_names, settings, expected, several, tmp_path, capsys
):
    label = datasets.ClassLabel(names=names)
    features = {"text": datasets.Value("string"), "label": datasets.Sequence(label) if several else label}
    cells = [[index] if several else index for index in range(3)]
    made = datasets.Dataset.from_dict({"text": ["good"] * 3, "label": cells}, features=datasets.Features(features))
    made.to_parquet(tmp_path / "rows.parquet")
    problem = {"problem_type": "multi_label_classification"} if several else {}
    model = build("bert", id2label=dict(enumerate(model_names)), num_labels=len(model_names), **problem)
    model.config.label2id = {name: index for index, name in enumerate(model_names)}
    rows = read_rows(str(tmp_path / "rows.parquet"), ["text"], "label", rows=None, seed=0)

    def read():
        return [row["labels"] for row in encode(rows, ["text"], "label", model, make_tokenizer(), None, **settings)]

    if isinstance(expected, str):
        with pytest.raises(CompressionError, match=expected):
            read()
    elif several:
        assert read() == [[float(index == one) for index in range(len(model_names))] for one in expected]
    else:
        assert read() == expected
    noted = "the labels are read as indices" in capsys.readouterr().err
    assert noted == (model_names == ["bad", "fair", "good"])


def test_a_class_index_below_zero_is_not_the_last_name(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    made = datasets.Dataset.from_dict({"text": ["good", "bad"], "label": [0, -1]}, features=features)
    made.to_parquet(tmp_path / "rows.parquet")
    model = build("bert", id2label={0: "y", 1: "x"}, label2id={"y": 0, "x": 1})
    rows = read_rows(str(tmp_path / "rows.parquet"), ["text"], "label", rows=None, seed=0)
    with pytest.raises(CompressionError, match="The label -1 of the data is not one of the model's"):
        encode(rows, ["text"], "label", model, make_tokenizer(), None)


def test_named_classes_are_read_by_models_with_other_orders(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    made = datasets.Dataset.from_dict({"text": ["good", "bad"], "label": [0, 1]}, features=features)
    made.to_parquet(tmp_path / "rows.parquet")
    orders = {"one": {0: "x", 1: "y"}, "other": {0: "y", 1: "x"}}
    models = {
        name: build("bert", id2label=order, label2id={label: index for index, label in order.items()})
        for name, order in orders.items()
    }
    rows = read_rows(str(tmp_path / "rows.parquet"), ["text"], "label", rows=None, seed=0)
    check_labels(rows, "label", models, separator=None, read_as=None)
    read = {name: encode(rows, ["text"], "label", model, make_tokenizer(), None) for name, model in models.items()}
    assert [row["labels"] for row in read["one"]] == [0, 1]
    assert [row["labels"] for row in read["other"]] == [1, 0]
    with pytest.raises(CompressionError, match="is an index, and means different classes to one and to other"):
        check_labels(rows, "label", models, separator=None, read_as="indices")
