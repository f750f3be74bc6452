"""Progress on standard error: on a terminal a line that is drawn again, elsewhere a line every half minute."""

import io
import os
import shutil
import sys
import time
from types import SimpleNamespace

import pytest
from command_line import COLUMNS

import hfcompress as hfc
from hfcompress.progress import listening, stage, track
from hfcompress.search.progress import Progress
from hfcompress_cli import display


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Told:
    """A listener that remembers what it was told."""

    def __init__(self):
        self.events = []

    def begin(self, what, total):
        self.events.append(("begin", what, total))

    def advance(self):
        self.events.append("advance")

    def set_done(self, done):
        self.events.append(done)

    def rename(self, what):
        self.events.append(("rename", what))

    def end(self):
        self.events.append("end")


def test_a_loop_is_reported_to_who_listens_alone():
    told = Told()
    assert list(track([1, 2], "counting")) == [1, 2]
    with listening(told):
        assert list(track(iter([1, 2]), "counting", 2)) == [1, 2]
        with stage("resting"):
            pass
        for _ in track(range(9), "leaving"):
            break
    assert list(track([3], "counting")) == [3]
    counted = [("begin", "counting", 2), "advance", "advance", "end"]
    assert told.events[:6] == [*counted, ("begin", "resting", None), "end"]
    assert told.events[6] == ("begin", "leaving", 9)


def test_a_ladder_is_one_stage_whose_name_changes(capsys):
    told = Told()
    with listening(told):
        progress = Progress(True, True, total=2.0)
        progress.at("times", 0.5)
        with stage("ranking"):
            progress.say("a line")
        progress.at("2x: training", 1.0)
        progress.close()
    within = [("begin", "ranking", None), "end"]
    first, second = [("rename", "times"), 25], [("rename", "2x: training"), 50]
    assert told.events == [("begin", "compress", 100), *first, *within, *second, "end"]
    assert capsys.readouterr().err == "a line\n"  # and no bar beside


def shown(stream, monkeypatch, work, patience=0.05):
    monkeypatch.setattr(display, "_PATIENCE", patience)
    monkeypatch.setattr(display, "_REDRAWN", 0.05)
    monkeypatch.setattr(display, "_EVERY", 0.1)
    with display.Display("beginning", stream) as made, listening(made):
        work(made)
    return stream.getvalue()


def stepped(stream, monkeypatch):
    """What is shown of a loop of four steps, each of which ends while a drawing is waited for; and how long that is."""
    waits, stage_of = [], display._Stage
    monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=lambda: sum(waits)))
    monkeypatch.setattr(display, "_Stage", lambda what, total: stage_of(what, total, begun=sum(waits)))
    made = display.Display("beginning", stream)
    with listening(made):
        loop = iter(track(range(4), "counting sheep"))

        def wait(seconds):
            waits.append(seconds)
            return next(loop, None) is None

        made._closed = SimpleNamespace(wait=wait, is_set=lambda: False, set=lambda: None)
        made._run()
        made.__exit__(None, None, None)
    return stream.getvalue(), waits


def test_a_terminal_gets_one_line_that_is_removed(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    printed, waits = stepped(Terminal(), monkeypatch)
    assert waits == [2, 0.5, 0.5, 0.5, 0.5]
    before, *drawn, end = printed.split("\r")
    assert (before, len(drawn), end) == ("", 4, "\x1b[K")
    for step, line in enumerate(drawn):
        assert f"| {step}/4 [" in line
        assert line.endswith("\x1b[K")
        assert len(line.removesuffix("\x1b[K")) < 60
    assert "\n" not in printed


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_the_line_fits_the_terminal_where_the_results_go_elsewhere(monkeypatch):
    import fcntl
    import pty
    import struct
    import termios

    monkeypatch.delenv("COLUMNS", raising=False)
    primary, secondary = pty.openpty()
    with open(secondary, "w") as stream:
        for given in (50, 0):  # 0: a terminal that does not say
            fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, given, 0, 0))
            assert display.Display("beginning", stream)._columns() == (given or shutil.get_terminal_size().columns)
    os.close(primary)


def test_a_note_takes_the_place_of_the_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")

    def work(made):
        time.sleep(0.2)
        made.write("A note of many words that is broken between these.\n")
        time.sleep(0.2)

    printed = shown(Terminal(), monkeypatch, work)
    assert "\r\x1b[KA note of many words that is\nbroken between these.\n" in printed
    assert "\r" in printed.rpartition("these.\n")[2]  # drawn again


def test_without_a_terminal_there_are_whole_lines(monkeypatch):
    printed, waits = stepped(io.StringIO(), monkeypatch)
    assert waits == [30] * 5
    starts = ["0/4 [00:00<?", "1/4 [00:30<01:30", "2/4 [01:00<01:00", "3/4 [01:30<00:30"]
    for line, start in zip(printed.splitlines(), starts, strict=True):
        assert line.startswith("counting sheep: ")
        assert f"| {start}" in line
        assert len(line) <= 80


def test_what_takes_no_time_shows_nothing(monkeypatch):
    for stream in (Terminal(), io.StringIO()):
        assert shown(stream, monkeypatch, lambda made: list(track(range(9), "counting")), patience=5) == ""


def test_a_step_that_reports_nothing_is_seen_too(monkeypatch):
    assert "beginning [00:00]" in shown(io.StringIO(), monkeypatch, lambda made: time.sleep(0.25))


def test_a_reader_that_is_gone_does_not_stop_the_work(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(display, "_EVERY", 0.01)
    stream = open(writer, "w", buffering=1)  # noqa: SIM115  # which cannot be flushed when it is closed
    with display.Display("writing", stream) as made:
        time.sleep(0.1)
    assert made._closed.is_set()
    with pytest.raises(BrokenPipeError):
        stream.close()


@pytest.mark.parametrize("verb", ["finetune", "distill", "shrink", "compare", "prune"])
def test_long_work_says_what_it_does(verb, models, data, tmp_path, run, monkeypatch):
    monkeypatch.setattr(display, "_EVERY", 0.02)
    options = {
        "finetune": ["--epochs", 2],
        "distill": ["--student-layers", 1, "--epochs", 2],
        "shrink": ["--heads", 0.25],
        "compare": ["--repeats", 20],
        "prune": ["--amount", "20%", "--epochs", 2],
    }
    output = [] if verb == "compare" else ["-o", tmp_path / "out"]
    run(verb, models / "bert", "--data", data / "test.jsonl", *COLUMNS, *options[verb], *output)
    stages = {
        "compare": "timing: ",
        "shrink": "reconstructing outputs: ",
    }
    assert stages.get(verb, "training: ") in run.error
    lines = [line for line in run.error.splitlines() if "it/s]" in line]
    assert max(map(len, lines)) <= 80


def test_the_library_is_silent_in_python(models, capfd):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(models / "bert")
    rows = [{"input_ids": [2, 3, 4 + n % 3], "labels": n % 2} for n in range(40)]
    capfd.readouterr()
    hfc.prune_structured(model, heads=0.25, dataset=rows)
    hfc.compare({"one": model}, rows, repeats=1)
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal_the_command_draws_and_cleans_up(models, data, tmp_path):
    import pty
    import subprocess

    primary, secondary = pty.openpty()
    (tmp_path / "bert").symlink_to(models / "bert")
    (tmp_path / "test.jsonl").symlink_to(data / "test.jsonl")  # names that fit a line, wherever the tests run
    command = [sys.executable, "-m", "hfcompress_cli", "finetune", "bert", "--data", "test.jsonl", *COLUMNS]
    command += ["--max-steps", 300, "--eval-strategy", "no", "-o", "out"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "80"}
    with open(tmp_path / "stdout", "w") as out:
        process = subprocess.Popen(list(map(str, command)), stderr=secondary, stdout=out, env=environment, cwd=tmp_path)
    os.close(secondary)
    printed = b""
    while True:
        try:
            part = os.read(primary, 4096)
        except OSError:
            break
        if not part:
            break
        printed += part
    os.close(primary)
    assert process.wait() == 0
    text = printed.decode().replace("\r\n", "\n")
    assert "importing torch and transformers [" in text
    assert "training: " in text
    for line in text.split("\n"):
        assert max(map(len, line.replace("\x1b[K", "").split("\r"))) <= 80
    assert max(map(len, (tmp_path / "stdout").read_text().splitlines())) <= 80
