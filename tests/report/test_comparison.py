"""Tables, ratios, speed-ups, pictures and the HTML page of measurements with given figures."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt

from hfcompress import Comparison, CompressionError, Measurement
from hfcompress.report.intervals import McNemar, SignFlip, wilson_interval
from hfcompress.report.times import ForwardPass

mpl.use("Agg")


def row(parameters, sparsity=0.0, packed=1.0, times=None, correct=None, **more):
    size = {"parameters": parameters, "bytes": 4 * parameters, "bytes_in_memory": 4 * parameters + 100}
    size |= {"bytes_packed": int(packed * 4 * parameters), "nonzeros": parameters, "sparsity": sparsity}
    size |= {"zeros": int(sparsity * parameters), "device": "cpu", "dtype": "float32", "threads": 2}
    if times:
        size["passes"] = (ForwardPass(16, 128, 50 * parameters, 5 * parameters, tuple(times)),)
    if correct is not None:
        size |= {"examples": 800, "accuracy": correct, "accuracy_interval": (correct - 0.02, correct + 0.02)}
        size |= {"f1": correct, "cross_entropy": 0.4, "calibration_error": 0.1}
    return Measurement(**size, **more)


FIRST = [20.0, 21.0, 22.0, 20.0, 19.0, 20.0, 23.0, 18.0, 20.0, 21.0]
ROWS = Comparison(
    {
        "BERT": row(22_700_000, times=FIRST, correct=0.84),
        "pruned <b>|": row(22_700_000, 0.2, 0.85, FIRST[::-1], 0.83, agreement=0.95, mcnemar=McNemar(20, 12, 0.215)),
        "small": row(1000, 0.0, 1.0, [t / 4 for t in FIRST], 0.7, agreement=0.8, mcnemar=McNemar(150, 38, 1e-9)),
        "unread": row(100),
    }
)


LONG = "a model with a name that is much longer than a telephone is wide, in words and_in_one_piece_without_a_space"


def many(count):
    """Models with long names, all figures and several labels."""
    rows = {}
    for index in range(count):
        found = row(
            22_700_000 + 10_000_000 * index, times=FIRST, correct=0.8, problem_type="multi_label_classification"
        )
        more = {
            "exact_match": 0.5,
            "f1_micro": 0.6,
            "f1_macro": 0.7,
            "sign_flip": SignFlip("labels", 0.0, 1.0, True, False),
        }
        rows[f"{index} {LONG}"] = replace(found, **more)
    return Comparison(rows)


def test_printing_shows_an_aligned_row_a_model_and_notes():
    lines = str(ROWS).splitlines()
    squeezed = [" ".join(line.split()) for line in lines]
    names = "model parameters sparsity MB MB packed GFLOPs ms a batch speed-up accuracy 95 % interval against first"
    assert squeezed[:5] == [
        names,
        "BERT 22,700,000 0.0% 90.8 90.8 1.14 20.0 1.00x 0.840 0.820 to 0.860 -",
        "pruned <b>| 22,700,000 20.0% 90.8 77.2 1.14 20.0 1.00x, noise 0.830 0.810 to 0.850 not shown (p 0.215)",
        "small 1,000 0.0% 0.00400 0.00400 5.00e-05 5.0 4.00x 0.700 0.680 to 0.720 worse (p < 0.001)",
        "unread 100 0.0% 0.000400 0.000400 - - - - - -",
    ]
    assert len({len(line) for line in lines[:5]}) == 1
    assert squeezed[5].endswith(
        "10 of each, the models in turns; batches of 16 x 128 tokens; on cpu, threads: 2, float32."
    )
    assert squeezed[6].startswith("Zeros save no FLOPs and no time")
    assert squeezed[7].startswith("noise: ")
    assert squeezed[8].startswith("Against first: McNemar's test")
    assert len(squeezed) == 9


def test_columns_without_figures_are_left_out():
    table = str(Comparison({"a": row(100), "b": row(50)}))
    assert table.splitlines()[0].split() == ["model", "parameters", "sparsity", "MB"]
    assert len(table.splitlines()) == 3
    assert "-" not in table


def test_without_zeros_there_is_no_note_about_them():
    assert "Zeros" not in str(Comparison({"a": row(100, times=FIRST)}))


def test_the_verbose_table_has_all_figures_and_ratios():
    table = [line[2:-2].split(" | ") for line in ROWS.to_markdown(verbose=True).splitlines() if line.startswith("| ")]
    cells = {name: values for name, *values in table}
    assert cells[""] == ["BERT", r"pruned <b>\|", "small", "unread"]
    words = [" ".join([name, *values]).replace("\\|", "|").split() for name, values in cells.items()]
    assert [line.split() for line in ROWS.to_text(verbose=True).splitlines()][: len(words)] == words
    assert cells["MB on disk, packed"] == ["90.8", "77.2 (0.850x)", "0.00400 (0.000x)", "0.000400 (0.000x)"]
    assert cells["ms, median, 16 x 128"] == ["20.00", "20.00 (1.000x)", "5.00 (0.250x)", "-"]
    assert cells["ms, quartiles, 16 x 128"] == ["20.00 to 21.00", "20.00 to 21.00", "5.00 to 5.25", "-"]
    assert cells["speed-up, 16 x 128"] == ["-", "1.00x, noise", "4.00x", "-"]
    assert cells["speed-up, 99 % interval, 16 x 128"] == ["-", "0.82x to 1.22x", "4.00x to 4.00x", "-"]
    assert cells["examples a second, 16 x 128"] == ["800", "800 (1.000x)", "3,200 (4.000x)", "-"]
    assert cells["peak memory in MB, 16 x 128"] == ["114", "114 (1.000x)", "0.00500 (0.000x)", "-"]
    assert cells["accuracy"] == ["0.840", "0.830 (0.988x)", "0.700 (0.833x)", "-"]
    assert cells["only the reference right, only this one right"] == ["-", "20, 12", "150, 38", "-"]
    assert cells["McNemar's test"] == ["-", "not shown, p 0.215", "worse, p < 0.001", "-"]
    assert cells["dtype"] == ["float32"] * 4


def speedup(first, this):
    return Comparison({"first": row(1, times=first), "this": row(1, times=this)}).speedup("this")


def test_a_speedup_is_shown_where_the_rounds_agree():
    drifting = [10.0 * 1.2**n for n in range(10)]  # a machine that slows down affects both alike
    assert speedup(drifting, [0.9 * t for t in drifting]).ratio == pytest.approx(1 / 0.9)
    assert speedup(drifting, [0.9 * t for t in drifting]).shown
    slower = speedup(FIRST, [2 * t for t in FIRST])
    assert (slower.ratio, slower.interval, slower.shown) == (0.5, (0.5, 0.5), True)


def test_a_speedup_is_noise_where_the_rounds_disagree():
    mixed = [10.0, 12.0] * 10
    assert not speedup(mixed, mixed[::-1]).shown
    assert str(speedup(mixed, mixed[::-1])).endswith("x, noise")


def test_few_rounds_show_no_speedup():
    few = speedup([2.0] * 7, [1.0] * 7)
    assert (few.interval, few.shown, str(few)) == (None, False, "2.00x, few rounds")


def test_a_model_that_was_not_timed_has_no_speedup():
    assert ROWS.speedup("unread") is None
    assert [ROWS.speedup(name, index) for name in ("small", "unread") for index in (1, -1)] == [None] * 4


def test_markdown_has_the_same_columns_in_every_row():
    lines = ROWS.to_markdown().splitlines()
    assert lines[1] == "|---" + "|---:" * 10 + "|"
    assert {line.replace(r"\|", "").count("|") for line in lines[:6]} == {12}
    assert lines[3].startswith(r"| pruned <b>\| | 22,700,000 | 20.0% | 90.8 |")
    assert lines[6] == ""
    verbose = ROWS.to_markdown(verbose=True).splitlines()
    assert verbose[0] == r"|  | BERT | pruned <b>\| | small | unread |"


def test_a_name_of_several_lines_stays_one_row():
    found = Comparison({"first\nor second": row(100), "third": row(100)})
    assert "first or second" in str(found).splitlines()[1]
    assert found.to_markdown().splitlines()[2].startswith("| first or second |")


def test_json_holds_everything():
    found = json.loads(ROWS.to_json())
    assert list(found) == ["BERT", "pruned <b>|", "small", "unread"]
    small = found["small"]
    assert small["accuracy_interval"] == pytest.approx([0.68, 0.72])
    assert small["passes"][0]["times_ms"] == [t / 4 for t in FIRST]
    assert (small["latency_ms"], small["throughput"]) == (5.0, 3200.0)
    assert small["mcnemar"] == {"only_first": 150, "only_this": 38, "p_value": 1e-9, "verdict": "worse"}
    assert small["ratios"]["parameters"] == 1000 / 22_700_000
    assert small["ratios"]["accuracy"] == 0.7 / 0.84
    assert small["speedups"] == [{"ratio": 4.0, "interval": [4.0, 4.0], "shown": True}]
    assert found["unread"]["latency_ms"] is None
    assert found["unread"]["ratios"]["flops"] is None


def test_a_measurement_prints_all_its_figures():
    lines = str(ROWS.rows["small"]).splitlines()
    assert "  ".join(lines[1].split()) == "parameters  1,000"
    assert any(line.split() == ["accuracy", "0.700"] for line in lines)
    assert "GFLOPs, 16 x 128" in str(ROWS.rows["small"])


def test_a_measurement_of_size_alone_prints_one_row():
    head, cells = (line.split() for line in str(row(100)).splitlines())
    assert head == ["model", "parameters", "sparsity", "MB"]
    assert cells == ["model", "100", "0.0%", "0.000400"]


@pytest.fixture
def pictures():
    figure, (time, size) = ROWS.plot()
    yield figure, time, size
    plt.close(figure)


def test_the_pictures_show_each_model_with_its_intervals(pictures):
    _, time, size = pictures
    assert time.get_xlabel().startswith("milliseconds a batch of 16 x 128 tokens")
    assert [len(axes.containers) for axes in (time, size)] == [3, 3]  # the model without accuracy is left out
    assert [bar.get_label() for bar in time.containers] == ["BERT", "pruned <b>|", "small"]
    assert [bar.lines[0].get_xdata()[0] for bar in size.containers] == pytest.approx([90.8, 77.18, 0.004])
    assert time.containers[0].lines[0].get_ydata()[0] == 0.84
    low, high = (line.get_ydata()[0] for line in time.containers[0].lines[1][2:])
    assert (low, high) == pytest.approx((0.82, 0.86))


def test_the_picture_of_size_shows_the_pareto_front(pictures):
    (front,) = [line for line in pictures[2].lines if line.get_label() == "Pareto front"]
    points = [(0.004, 0.7), (77.18, 0.83)]  # BERT is larger than the pruned model, and not shown to be better
    assert front.get_xydata().tolist() == [[pytest.approx(x), y] for x, y in points]


def test_a_hollow_mark_shows_a_larger_dense_file(pictures):
    hollow = [line for line in pictures[2].lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert [line.get_xdata()[0] for line in hollow] == [90.8]  # of the pruned model alone a dense file is larger


@pytest.mark.parametrize("comparison", [ROWS, many(1), many(13)], ids=["short", "long", "many"])
def test_no_text_of_a_picture_is_cut_off(comparison):
    figure, axes = comparison.plot()
    figure.canvas.draw()
    width, height = figure.get_size_inches() * figure.dpi
    for text in [*(text for legend in figure.legends for text in legend.get_texts()), axes[0].xaxis.label]:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    assert axes[0].get_window_extent().height > 0.6 * 4.4 * figure.dpi  # the legend takes no room of it
    plt.close(figure)


def test_models_that_were_not_timed_have_one_picture():
    figure, axes = Comparison({"a": row(100, correct=0.5), "b": row(50, correct=0.4)}).plot()
    assert [one.get_xlabel() for one in axes] == ["MB on disk, packed"]
    plt.close(figure)


def test_without_accuracy_there_is_nothing_to_draw():
    with pytest.raises(CompressionError, match="No accuracy was measured"):
        Comparison({"a": row(100)}).plot()


@pytest.mark.parametrize("correct", [0, 8, 17])
def test_all_or_no_predictions_may_be_correct_in_a_picture(correct):
    trials = max(correct, 5)
    found = row(100, times=FIRST, correct=correct / trials)
    found = replace(found, accuracy_interval=wilson_interval(correct, trials))
    assert "<svg" in Comparison({"a": found}).to_html()


class Page(HTMLParser):
    """Checks that every element is closed in order, and collects links."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href") and not v.startswith("#")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag != "meta":
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_file_that_needs_no_network():
    page, text = Page(), ROWS.to_html("A & B")
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.links == []
    assert "@import" not in text
    assert (page.tags.count("table"), page.tags.count("svg"), page.tags.count("script")) == (2, 3, 0)
    assert "<title>A &amp; B</title>" in text
    assert "pruned &lt;b&gt;|" in text
    assert "pruned <b>" not in text
    assert plt.get_fignums() == []
    for note in ("Zeros save no FLOPs", "FLOPs: of the matrix products"):
        assert note in text


@pytest.mark.parametrize("count", [1, 6, 7, 12, 13])
def test_the_page_shows_each_model_once_in_tables_that_fit(count):
    text = many(count).to_html()
    summary, *parts = [
        [[part.text for part in one.iter() if part.tag in ("th", "span")] for one in table.iter("tr")]
        for table in map(ElementTree.fromstring, re.findall("<table.*?</table>", text, re.DOTALL))
    ]
    assert [cells[0] for cells in summary[1:]] == list(many(count).rows)
    assert max(len(part[0]) for part in parts) <= 7
    assert [name for part in parts for name in part[0][1:]] == list(many(count).rows)
    for line in many(count).to_markdown(verbose=True).splitlines()[2:]:
        if line.startswith("| "):
            label, *cells = line[2:-2].split(" | ")
            assert [cell for part in parts for cells in part if cells[0] == label for cell in cells[1:]] == cells


def test_a_narrow_screen_shows_the_head_of_each_cell():
    for table in map(ElementTree.fromstring, re.findall("<table.*?</table>", ROWS.to_html(), re.DOTALL)):
        head, *rows = table.iter("tr")
        for one in rows:
            assert [cell.get("data-head") for cell in one.iter("td")] == [cell.text for cell in head][1:]


def test_the_pictures_of_the_page_are_as_wide_as_a_telephone():
    widths = [float(width) for width in re.findall(r'<svg[^>]* width="([\d.]+)pt"', many(12).to_html())]
    assert len(widths) == 3
    assert max(widths) * 4 / 3 < 1.3 * 358  # pixels; a telephone of 390 shows their text in almost full size


def test_the_page_has_no_black_or_white_of_its_own():
    text = ROWS.to_html()
    assert "currentColor" in text
    pictures = "".join(re.findall("<svg.*?</svg>", text, re.DOTALL))
    assert "#000000" not in pictures
    assert "#ffffff" not in pictures.replace("var(--background, #ffffff)", "")
    assert "prefers-color-scheme: dark" in text


def test_the_page_names_the_models_on_the_pareto_front():
    text = " ".join(ROWS.to_html().split())
    assert "by time:</b> BERT; pruned &lt;b&gt;|; small." in text
    assert "by size:</b> pruned &lt;b&gt;|; small." in text


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_a_table_is_folded_to_the_width_of_a_terminal(width):
    blocks = [block.splitlines() for block in ROWS.to_text(width=width).split("\n\n")]
    if len(blocks) > 1:
        blocks.pop()  # the notes
    tables = [lines[:5] for lines in blocks]
    assert max(len(line) for table in tables for line in table) <= width
    heads = [[part for part in re.split("  +", table[0]) if part] for table in tables]
    assert {head[0] for head in heads} == {"model"}
    assert [part for head in heads for part in head[1:]] == re.split("  +", str(ROWS).splitlines()[0])[1:]
    cells = [cell for table in tables for cell in table[1].split()[1:]]
    assert cells == str(ROWS).splitlines()[1].split()[1:]
    assert max(map(len, ROWS.to_text(width=width).splitlines())) <= width


def test_a_page_without_accuracy_needs_no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "<svg" not in Comparison({"a": row(100, times=FIRST)}).to_html()
    with pytest.raises(ImportError, match=r"pip install 'hfcompress\[plots\]'"):
        ROWS.to_html()


def test_a_notebook_shows_the_same_table():
    tree = ElementTree.fromstring(f"<div>{ROWS._repr_html_()}</div>")
    rows = [" ".join(" ".join(cell.text or "" for cell in one).split()) for one in tree.iter("tr")]
    assert rows == [" ".join(line.split()) for line in str(ROWS).splitlines()[:5]]


@pytest.mark.parametrize("name", ["$x^$", "cost $5 and $6", "_old", "a|b\\c"])
def test_a_picture_shows_any_name_literally(name):
    times = [10.0] * 8
    found = Comparison({"BERT": row(100, times=times, correct=0.8), name: row(50, times=times, correct=0.7)})
    figure, _ = found.plot()
    figure.draw_without_rendering()
    shown = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert any(text.strip().replace("\\$", "$") == name for text in shown)
    plt.close(figure)
    assert "<svg" in found.to_html()
