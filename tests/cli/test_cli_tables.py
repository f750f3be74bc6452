"""Tables as text files: read as they were written, or refused with the line."""

import csv
import gzip
import io
import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hfcompress import CompressionError
from hfcompress_cli.tables import read_table

WANTED = ["text", "label"]
PLAIN = [{"text": "good, or\nso", "label": "1"}, {"text": 'née "NA"', "label": "null"}, {"text": " ", "label": ""}]


def read(path, wanted=WANTED, **settings):
    return list(read_table(path, wanted, **settings))


def written(rows, delimiter=",", **style):
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, **style).writerows([WANTED, *([row[n] for n in WANTED] for row in rows)])
    return file.getvalue()


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("encoding", [None, "utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".json"])
def test_rows_come_out_of_each_kind_as_they_went_in(kind, encoding, ending, tmp_path):
    made = {
        ".csv": written(PLAIN),
        ".tsv": written(PLAIN, "\t"),
        ".jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in PLAIN),
        ".json": json.dumps(PLAIN, ensure_ascii=False, indent=1),
    }
    data = made[kind].encode(encoding or "utf-8-sig")
    path = tmp_path / f"rows{kind.upper()}{ending}"
    path.write_bytes(gzip.compress(data) if ending else data)
    assert read(path, encoding=encoding) == PLAIN


REFUSED = {
    "a line for spreadsheets": ("sep=;\ntext;label\na;1\n", "Line 1 of .* is no header, .* with --delimiter ';'"),
    "an unquoted comma": ("text,label\ngood,1\nbad, dull,0\n", "Line 3 of .* has 3 cells and the header 2"),
    "too few cells": ("text,label\ngood,1\nbad\n", "Line 3 of .* has 1 cells and the header 2"),
    "a trailing comma": ("text,label\ngood,1,\n", "Line 2 of .* has 3 cells"),
    "an open quote": ('text,label\ngood,1\n"bad,0\nfine,1\n', "Line 3 of .* a quote is opened and not closed"),
    "an open quote before another": ('text,label\n"bad,0\n"fine",1\n', "Line 2 of .* a quote is amiss"),
    "a stray quote": ('text,label\ngood"film",1\n', "Line 2 of .* a quote stands in a cell"),
    "a quote behind a space": ('text,label\nfilm, "1"\n', "Line 2 of .* a quote stands in a cell"),
    "a backslash": ('text,label\n"said \\"no\\"",1\n', "Line 2 of .* a quote is amiss"),
    "a NUL": ("text,label\ngood,1\nba\0d,0\n", "Line 3 of .* holds a NUL"),
    "a doubled column": ("text,label,text\na,1,b\n", "Line 1 of .* names the column 'text' twice"),
    "a column doubled but for spaces": ("text,label, label\na,1,b\n", "names the column 'label' twice"),
    "a cell without a column": ("text,label,,\na,1,,\na, b,1,\n", "Line 3 of .* has a cell in a column .* no name"),
    "a space in the header": ("text, label\na,1\n", "no column 'label' .found: 'text', ' label'"),
    "another delimiter": ("text;label\na;1\n", "found: 'text;label'.*--delimiter ';'"),
    "no lines": ("", "no column 'text' and no 'label' .found: none"),
    "blank lines": ("\n \n\n", "found: none"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_that_is_amiss_is_refused_by_its_line(case, end, tmp_path):
    content, message = REFUSED[case]
    (tmp_path / "a.csv").write_bytes(content.replace("\n", end).encode())
    with pytest.raises(CompressionError, match=message):
        read(tmp_path / "a.csv")


BYTES = {
    "utf-16": ("a.csv", "text,label\na,1\n".encode("utf-16"), "is not UTF-8 but utf-16; .*--encoding utf-16"),
    "utf-16 unmarked": ("a.csv", "text,label\na,1\n".encode("utf-16-le"), "Line 1 .* NUL .*--encoding utf-16-le"),
    "cp1252": ("a.csv", b"text,label\ngood,1\nn\xe9e,1\n", r"Line 3 of .* not in utf-8 \(byte 0xe9\).*--encoding"),
    "gzip": ("a.csv", gzip.compress(b"text,label\n"), "compressed by gzip; end its name in .gz"),
    "zip": ("a.csv", b"PK\x03\x04", "spreadsheet"),
}


@pytest.mark.parametrize("case", BYTES)
def test_an_encoding_is_named_and_not_guessed(case, tmp_path):
    name, content, message = BYTES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CompressionError, match=message):
        read(tmp_path / name)


def test_settings_that_make_no_sense_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text(written(PLAIN))
    for settings in ({"delimiter": ";;"}, {"delimiter": ""}, {"delimiter": '"'}, {"encoding": "utf-99"}):
        with pytest.raises(CompressionError, match=r"--delimiter|--encoding utf-99"):
            read(tmp_path / "a.csv", **settings)


JSON = {
    "a doubled key": (
        ".jsonl",
        '{"text": "a", "label": 1}\n{"text": "a", "label": 1, "label": 0}',
        "Line 2 .* 'label'",
    ),
    "a doubled key in an array": (".json", '[{"text": "a", "label": 1},\n{"text": 1, "text": 2}]', "Line 2 .* 'text'"),
    "no array": (".json", '{"text": "a", "label": 1}\n', "not a JSON array .* .jsonl"),
    "an array of numbers": (".json", '[{"text": "a", "label": 1},\n\n 5]', "Line 3 of .* not a JSON object, but '5'"),
    "an open array": (".json", '[{"text": "a", "label": 1}', "Line 1 .* neither a comma nor a bracket"),
    "a comma too many": (".json", '[{"text": "a", "label": 1},]', "is not JSON"),
    "two arrays": (".json", "[] []", "goes on behind the end"),
    "no key anywhere": (".json", '[{"text": "a"}, {"text": "b"}]', "no column 'label' .found: 'text'"),
}


@pytest.mark.parametrize("case", JSON)
def test_json_that_is_amiss_is_refused(case, tmp_path):
    kind, content, message = JSON[case]
    (tmp_path / f"a{kind}").write_text(content)
    with pytest.raises(CompressionError, match=message):
        read(tmp_path / f"a{kind}")


def test_a_row_of_json_may_lack_a_key(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b", "label": 1}\n')
    assert read(tmp_path / "a.jsonl") == [{"text": "a", "label": None}, {"text": "b", "label": 1}]


def test_rows_swallowed_by_quotes_are_warned_of(tmp_path, capsys):
    (tmp_path / "a.csv").write_text('text,label\nfine,1\n"good film,1\nbad film",0\ndull,0\n')
    assert len(read(tmp_path / "a.csv")) == 3
    assert "1 rows, the first at line 3, have a cell with line breaks" in capsys.readouterr().err


def test_text_of_several_lines_is_not_warned_of(tmp_path, capsys):
    (tmp_path / "a.csv").write_text('text,label\n"good\nfilm",1\n')
    read(tmp_path / "a.csv")
    assert capsys.readouterr().err == ""


def test_quotes_can_be_characters_like_others(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"good" film\t1\nit\'s 5" long\t0\n')
    assert [row["text"] for row in read(tmp_path / "a.tsv", quotes=False)] == ['"good" film', "it's 5\" long"]


def test_columns_without_a_name_may_be_empty(tmp_path):
    (tmp_path / "a.csv").write_text(",text,label,,\n7,good,1,, \n")
    assert read(tmp_path / "a.csv") == [{"text": "good", "label": "1"}]


# What a writer writes is read; what is done to it afterwards is refused, or means the same.

CELLS = st.text(st.sampled_from("ab ,;\t\"\n\r'\\é"), max_size=6)
TABLES = st.lists(st.fixed_dictionaries({"text": CELLS, "label": CELLS}), min_size=1, max_size=4)
QUOTING = [(csv.QUOTE_MINIMAL, "\r\n")]  # with other ends of lines it leaves some line breaks unquoted
QUOTING += [(quoting, end) for quoting in (csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC) for end in ("\n", "\r\n", "\r")]
STYLES = st.builds(
    lambda quoting, delimiter: {"quoting": quoting[0], "lineterminator": quoting[1], "delimiter": delimiter},
    st.sampled_from(QUOTING),
    st.sampled_from(",;\t|"),
)


@given(TABLES, STYLES)
def test_what_csv_writes_is_read_as_it_was(tmp_path_factory, rows, style):
    path = tmp_path_factory.mktemp("written") / "a.csv"
    path.write_bytes(written(rows, **style).encode())
    assert read(path, delimiter=style["delimiter"]) == rows


@given(TABLES, STYLES, st.booleans(), st.data())
def test_no_quote_or_delimiter_changes_the_rows_unseen(tmp_path_factory, rows, style, removed, data):
    text, delimiter = written(rows, **style), style["delimiter"]
    quoted = [text[:place].count('"') % 2 for place in range(len(text) + 1)]
    mark = data.draw(st.sampled_from(['"', delimiter]))
    places = [n for n in range(len(text) + (not removed)) if not removed or text[n] == mark]
    if mark == delimiter:  # a delimiter more or less within a cell cannot be known
        places = [n for n in places if not quoted[n]]
    assume(places)
    place = data.draw(st.sampled_from(places))
    mutated = text[:place] + ("" if removed else mark) + text[place + removed :]
    path = tmp_path_factory.mktemp("mutated") / "a.csv"
    path.write_bytes(mutated.encode())
    try:
        found = read(path, delimiter=delimiter)
    except CompressionError:
        return
    assert found == rows
