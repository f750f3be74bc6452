"""Labels spelled otherwise, files in other encodings, and texts that are too long: read, and said, or refused."""

import gzip
import json
import shlex

import pytest
from architectures import build
from command_line import COLUMNS, load, make_tokenizer
from transformers import BertTokenizer

from hfcompress import CompressionError
from hfcompress_cli.data import encode, read_rows
from hfcompress_cli.tables import read_table

TWO = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}


def labelled(path, labels, text="good film"):
    path.write_text(json.dumps([{"text": text, "label": label} for label in labels]), encoding="utf-8")
    return read_rows(str(path), ["text"], "label", rows=None, seed=0)


def read(path, labels, names=("NEGATIVE", "POSITIVE"), **settings):
    config = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    model = build("bert", num_labels=len(names), **config, **settings)
    separator = ";" if settings else None
    rows = labelled(path, labels)
    return [
        one["labels"] for one in encode(rows, ["text"], "label", model, make_tokenizer(), None, separator=separator)
    ]


SPELLINGS = ["positive", "POSITIVE", " positive ", "Positive", "positive\n", "\tPOSITIVE", "pOsItIvE"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_name_is_read_in_every_spelling_and_said_once(spelling, tmp_path, capsys):
    assert read(tmp_path / "a.json", [spelling, "NEGATIVE", spelling]) == [1, 0, 1]
    error = capsys.readouterr().err
    if spelling == "POSITIVE":
        assert error == ""
    else:
        assert error.count("\n") == 1
        assert "2 of 3 labels of the data are spelled otherwise than the model's names; they are read as those" in error
        assert f"{spelling!r} as 'POSITIVE'" in error


def test_accents_are_one_however_they_are_stored(tmp_path, capsys):
    names = ("tre\u0300s mauvais", "tr\u00e8s bon")
    assert read(tmp_path / "a.json", ["TR\u00c8S MAUVAIS", "tre\u0300s bon"], names) == [0, 1]


def test_an_ambiguous_spelling_is_refused_with_its_line(tmp_path):
    names = ("Positive", "POSITIVE", "NEGATIVE")
    assert read(tmp_path / "a.json", ["POSITIVE", "Positive", " Positive"], names) == [1, 0, 0]
    with pytest.raises(
        CompressionError, match=r"'positive' of the data \(Line 1 of .*a.json\) can be read as 'Positive' and"
    ):
        read(tmp_path / "a.json", ["positive"], names)


WRONG = {
    "no name": (["POSITIVE", "good"], r"The label 'good' .*\(Line 3 of .*rows.csv\)"),
    "names and indices": (
        ["POSITIVE", "NEGATIVE", "1"],
        r"'POSITIVE', and indices, such as '1' \(Line 2 .* and Line 4",
    ),
    "no index": (["0", "1", "1", "2"], r"The label '2' .*\(Line 5 of"),
    "below zero": (["-1", "0"], r"The label '-1' .*\(Line 2 of"),
    "a stray space within": (["POSI TIVE"], r"The label 'POSI TIVE' .*\(Line 2 of"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_bad_label_is_named_with_file_and_line(case, tmp_path):
    labels, message = WRONG[case]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["text,label", *(f"good film,{label}" for label in labels)]))
    rows = read_rows(str(path), ["text"], "label", rows=None, seed=0)
    with pytest.raises(CompressionError, match=message):
        encode(rows, ["text"], "label", build("bert", **TWO), make_tokenizer(), None)


def test_two_readings_are_named_with_their_line(tmp_path):
    with pytest.raises(CompressionError, match=r"two ways: '1' as a name is '1', as an index '2' \(Line 1 of"):
        read(tmp_path / "a.json", ["1", "2"], ("1", "2", "3"))


def test_several_labels_of_a_cell_are_said_and_named_too(tmp_path, capsys):
    several = {"problem_type": "multi_label_classification"}
    assert read(tmp_path / "a.json", ["positive;NEGATIVE", "NEGATIVE"], **several) == [[1.0, 1.0], [1.0, 0.0]]
    assert "'positive' as 'POSITIVE'" in capsys.readouterr().err
    with pytest.raises(CompressionError, match=r"The label 'bad' .*\(Line 1 of"):
        read(tmp_path / "a.json", ["positive;bad"], **several)


def test_spellings_are_said_once_by_a_verb_with_two_models(models, data, tmp_path, run):
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    lower = "\n".join(json.dumps(row | {"sentiment": row["sentiment"].lower()}) for row in rows)
    (tmp_path / "lower.jsonl").write_text(lower)
    load(models / "bert").save_pretrained(tmp_path / "twin")
    make_tokenizer().save_pretrained(tmp_path / "twin")
    run("compare", models / "bert", tmp_path / "twin", "--data", tmp_path / "lower.jsonl", *COLUMNS, "--repeats", 1)
    assert run.error.count("spelled otherwise") == 1


# Encodings

TEXT = "text,label\nplain,0\nune journ\u00e9e d'\u00e9t\u00e9 \u00e0 No\u00ebl,1\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_mark_before_utf8_is_no_text(encoding, ending, tmp_path):
    content = TEXT.encode(encoding)
    (tmp_path / f"a.csv{ending}").write_bytes(gzip.compress(content) if ending else content)
    rows = list(read_table(tmp_path / f"a.csv{ending}", ["text", "label"]))
    assert [row["label"] for row in rows] == ["0", "1"]


OTHERS = {
    "latin-1": (
        TEXT.encode("latin-1"),
        "cp1252",
        ["Line 3", "0xe9", "Latin-1", "une journ\u00e9e", "iconv -f WINDOWS-1252 -t"],
    ),
    "cp1252": (
        "text,label\n\u201cgood\u201d \u20ac,1\n".encode("cp1252"),
        "cp1252",
        ["Line 2", "\u201cgood\u201d \u20ac"],
    ),
    "latin-1 alone": (b"text,label\n\x81 \xe9,1\n", "latin-1", ["Line 2", "--encoding latin-1", "iconv -f ISO-8859-1"]),
    "utf-16": (TEXT.encode("utf-16"), "utf-16", ["is not UTF-8 but utf-16", "iconv -f UTF-16 -t UTF-8"]),
    "utf-16-le": (TEXT.encode("utf-16-le"), "utf-16-le", ["--encoding utf-16-le", "iconv -f UTF-16LE"]),
    "utf-16-be": (TEXT.encode("utf-16-be"), "utf-16-be", ["--encoding utf-16-be", "iconv -f UTF-16BE"]),
    "utf-32": (TEXT.encode("utf-32"), "utf-32", ["is not UTF-8 but utf-32", "--encoding utf-32"]),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_another_encoding_is_named_with_what_to_do(case, ending, tmp_path):
    content, encoding, parts = OTHERS[case]
    path = tmp_path / f"a.csv{ending}"
    path.write_bytes(gzip.compress(content) if ending else content)
    with pytest.raises(CompressionError) as error:
        list(read_table(path, ["text", "label"]))
    message = str(error.value)
    for part in parts if not ending else parts[:1]:
        assert part in message, message
    assert f"--encoding {encoding}" in message
    assert ("iconv" in message) is (not ending)
    assert list(read_table(path, ["text", "label"], encoding=encoding))[-1]["label"] == "1"


def test_the_command_that_converts_a_file_can_be_typed(tmp_path):
    (tmp_path / "my films.csv").write_bytes(TEXT.encode("latin-1"))
    with pytest.raises(CompressionError) as error:
        list(read_table(tmp_path / "my films.csv", ["text", "label"]))
    command = str(error.value).partition("or convert it: ")[2].removesuffix(".")
    assert shlex.split(command)[5:] == [str(tmp_path / "my films.csv"), ">", "NEW.csv"]


def test_a_broken_line_among_utf8_is_to_be_corrected(tmp_path):
    (tmp_path / "a.csv").write_bytes("text,label\nn\u00e9e,1\n".encode() + b"n\xe9e,0\n")
    with pytest.raises(CompressionError, match=r"Line 3 .* lines before it are UTF-8, so correct that line"):
        list(read_table(tmp_path / "a.csv", ["text", "label"]))


SETTINGS = {
    "a delimiter in jsonl": (["--delimiter", ";"], "a.jsonl", "--delimiter is about .csv and .tsv files"),
    "a delimiter in json": (["--delimiter", "\t"], "a.json", "--delimiter is about"),
    "quotes in jsonl": (["--no-quotes"], "a.jsonl.gz", "--no-quotes is about"),
    "a delimiter in parquet": (["--delimiter", ";"], "a.parquet", "--delimiter is about"),
    "an encoding of parquet": (["--encoding", "cp1252"], "a.parquet", "--encoding is about text files"),
    "an encoding of a data set": (["--encoding", "cp1252"], "imdb:test", "--encoding is about text files"),
}


@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize("verb", ["compare", "shrink", "distill"])
def test_a_setting_that_no_file_has_a_use_for_is_refused(case, verb, models, tmp_path, run):
    options, name, message = SETTINGS[case]
    more = {"compare": [], "shrink": ["--heads", 0.5], "distill": ["--student-layers", 1]}[verb]
    output = [] if verb == "compare" else ["-o", tmp_path / "out"]
    run(verb, models / "bert", *more, "--data", name, *options, *output, status=2)
    assert f"hfcompress {verb}: {message}" in run.error
    assert "leave it out" in run.error


def test_a_delimiter_is_for_the_one_file_that_has_cells(models, data, tmp_path, run):
    (tmp_path / "a.csv").write_text("review;sentiment\ngood film;1\n")
    tables = ["--vocabulary", tmp_path / "a.csv", data / "test.jsonl", "--delimiter", ";", "--text-column", "review"]
    run("shrink", models / "bert", *tables, "-o", tmp_path / "out")


# Truncated texts


def slow_tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"]))
    return BertTokenizer(str(tmp_path / "vocab.txt"), model_max_length=16)


LENGTHS = [1, 5, 14, 15, 16, 17, 40, 41]


@pytest.mark.parametrize("asked", [None, 8])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("kind", ["fast", "python"])
def test_truncated_texts_are_counted(kind, pairs, asked, tmp_path, capsys):
    tokenizer = make_tokenizer() if kind == "fast" else slow_tokenizer(tmp_path)
    texts = [
        {"text": "film " * count, "label": str(count % 2)} | ({"more": "good"} if pairs else {}) for count in LENGTHS
    ]
    columns = ["text", "more"] if pairs else ["text"]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, texts)))
    rows = read_rows(str(tmp_path / "a.jsonl"), columns, "label", rows=None, seed=0)
    full = [len(tokenizer(*(row[name] for name in columns), truncation=False)["input_ids"]) for row in rows]
    limit = asked or 16
    expected = sum(length > limit for length in full)
    for _ in range(2):
        encode(rows, columns, "label", build("bert"), tokenizer, asked)
    error = capsys.readouterr().err
    assert error.count(f"{expected} of 8 texts are longer than {limit} tokens and were truncated") == 1
    assert ("--max-length N reads more, up to 16" in error) is (asked is not None)
    assert ("that is all that the model reads" in error) is (asked is None)


def test_nothing_is_said_where_nothing_is_truncated(tmp_path, capsys):
    encode([{"text": "good film"}], ["text"], None, build("bert"), make_tokenizer(), None)
    assert capsys.readouterr().err == ""


VERBS = {
    "compare": ["compare", "BERT", "--repeats", 1],
    "shrink": ["shrink", "BERT", "--neurons", 0.5, "-o", "OUT"],
    "distill": ["distill", "BERT", "--student-layers", 1, "--max-steps", 1, "--held-out", 0.2, "-o", "OUT"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_reads_texts_says_how_many_are_truncated(verb, models, data, tmp_path, run):
    places = {"BERT": models / "bert", "OUT": tmp_path / "out"}
    command = [places.get(one, one) for one in VERBS[verb]]
    run(*command, "--data", data / "test.jsonl", *COLUMNS, "--max-length", 3)
    said = [line for line in run.error.splitlines() if "are longer than 3 tokens and were truncated" in line]
    texts = [json.loads(line)["review"] for line in (data / "test.jsonl").read_text().splitlines()]
    cut = sum(len(text.split()) > 3 for text in texts)
    assert sum(int(line.split()[0]) for line in said) == cut
    assert len(said) == (2 if verb == "distill" else 1)  # rows that are trained on, and rows held out
