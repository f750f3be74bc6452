"""Signals that stop the command: nothing is left behind, whenever they come."""

import importlib
import os
import signal
import subprocess
import sys
import time

import pytest
from command_line import COLUMNS, contents

import hfcompress as hfc
from hfcompress_cli.stopping import stopped_by_signals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")

PLACES = {
    "before the folder": "hfcompress.atomic_folder:_check_writable",
    "the hidden folder": "hfcompress.atomic_folder:Path.mkdir",
    "its lock": "hfcompress.atomic_folder:_lock",
    "the model's weights": "transformers.modeling_utils:safe_save_file",
    "the tokenizer": "transformers:PreTrainedTokenizerBase.save_pretrained",
    "the flush": "hfcompress.atomic_folder:_flush",
    "the exchange": "hfcompress.atomic_folder:_move_into_place",
    "the end": "hfcompress.atomic_folder:_remove",
    "the tree": "shutil:rmtree",
}


@pytest.fixture(autouse=True)
def _as_in_a_new_process():
    """Signals do what they do in a new process, whatever the shell or a library that other tests used has set."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler or signal.SIG_DFL)  # None: it was not set by Python


@pytest.fixture
def stopped(monkeypatch, run):
    """Run the command, and send this process a signal where a function is called, as it begins or has returned."""

    def call(place, name, *arguments, after=False, status):
        module, _, path = place.rpartition(":")
        owner, name_in_owner = importlib.import_module(module), path.rpartition(".")[2]
        for part in path.split(".")[:-1]:
            owner = getattr(owner, part)
        inner, reached = getattr(owner, name_in_owner), []

        def stops(*given, **kwargs):
            found = inner(*given, **kwargs) if after else None
            if not reached:
                reached.append(place)
                signal.raise_signal(getattr(signal, name))
            return found if after else inner(*given, **kwargs)

        monkeypatch.setattr(owner, name_in_owner, stops)
        run(*arguments, status=status)
        assert reached

    return call


@pytest.mark.parametrize("after", [False, True], ids=["at", "after"])
@pytest.mark.parametrize("place", PLACES)
def test_sigterm_leaves_the_old_folder_or_the_new_one(place, after, models, tmp_path, run, stopped):
    exists = place in ("the exchange", "the tree", "its lock")  # also where something is replaced
    if exists:
        run("prune", models / "bert", "--amount", 0.1, "-o", tmp_path / "new" / "out")
    before = contents(tmp_path)
    command = ["prune", models / "bert", "--amount", 0.5, "-o", tmp_path / "new" / "out"]
    command += ["--overwrite"] if exists else []
    stopped(PLACES[place], "SIGTERM", *command, after=after, status=143)
    assert "Traceback" not in run.error
    found = contents(tmp_path)
    written = found != before
    assert ("nothing was written" in run.error) is not written
    assert f"{tmp_path / 'new' / 'out'} was written" in run.error or not written
    assert [one.name for one in tmp_path.iterdir()] == (["new"] if exists or written else [])
    assert not (tmp_path / "new").exists() or [one.name for one in (tmp_path / "new").iterdir()] == ["out"]


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGHUP", 129), ("SIGTERM", 143)])
def test_the_status_is_that_of_a_shell(name, status, models, tmp_path, run, stopped):
    before = signal.getsignal(getattr(signal, name))
    command = ["prune", models / "bert", "--amount", 0.5, "-o", tmp_path / "out"]
    stopped("hfcompress.prune.magnitude:compute_masks", name, *command, status=status)
    assert run.error == "\nhfcompress: interrupted; nothing was written.\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(getattr(signal, name)) is before


@pytest.mark.parametrize("verb", ["finetune", "distill"])
def test_a_training_that_is_stopped_keeps_what_was_asked(verb, models, data, tmp_path):
    command = [verb, models / "bert", "--data", data / "test.jsonl", *COLUMNS, "--max-steps", 100000, "--save-steps", 5]
    command += ["--eval-strategy", "steps", "--eval-steps", 5, "--save-strategy", "steps", "-o", tmp_path / "new/out"]
    command += ["--student-layers", 1] if verb == "distill" else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    kept = ["--output-dir", tmp_path / "kept"] if verb == "distill" else []
    started = [sys.executable, "-m", "hfcompress_cli", *map(str, [*command, *kept])]
    process = subprocess.Popen(started, stderr=subprocess.PIPE, text=True, env=environment)
    for line in process.stderr:
        if "eval_loss" in line:
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 143, rest
    assert "nothing was written" in rest
    assert [one.name for one in tmp_path.iterdir()] == (["kept"] if kept else [])
    assert not kept or any(one.name.startswith("checkpoint-") for one in (tmp_path / "kept").iterdir())


def test_a_signal_while_results_are_printed_says_what_was_written(models, tmp_path, run, stopped):
    command = ["prune", models / "bert", "--amount", 0.5, "-o", tmp_path / "out"]
    stopped("hfcompress_cli.application:_print", "SIGINT", *command, status=130)
    assert run.error.endswith(f"\nhfcompress: interrupted; {tmp_path / 'out'} was written.\n")
    stopped("hfcompress_cli.application:_print", "SIGTERM", "report", tmp_path / "out", status=143)
    assert run.error.endswith("interrupted; nothing was written.\n")


@pytest.mark.parametrize("kind", [RuntimeError, OSError, ImportError])
def test_a_library_that_makes_another_error_of_the_signal(kind, models, tmp_path, run, monkeypatch):
    def count(*_, **__):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise kind("the callback failed") from error

    monkeypatch.setattr("hfcompress.prune.magnitude.compute_masks", count)
    run("prune", models / "bert", "--amount", 0.5, "-o", tmp_path / "out", status=143)
    assert run.error.endswith("\nhfcompress: interrupted; nothing was written.\n")
    assert "Traceback" not in run.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_that_comes_where_nothing_can_be_raised(name, models, tmp_path, run, monkeypatch):
    class Removed:
        def __del__(self):
            signal.raise_signal(getattr(signal, name))

    def count(*_, **__):
        Removed()
        time.sleep(20)
        raise AssertionError("it goes on")

    monkeypatch.setattr("hfcompress.prune.magnitude.compute_masks", count)
    status = 128 + getattr(signal, name)
    run("prune", models / "bert", "--amount", 0.5, "-o", tmp_path / "out", status=status)
    assert run.error == "\nhfcompress: interrupted; nothing was written.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("begun", ["ladder.json", ".work/logits"])
def test_a_ladder_that_is_stopped_says_what_goes_on(begun, models, data, tmp_path, run, monkeypatch):
    def begin(*_, output_dir, **__):
        (output_dir / begun).parent.mkdir(parents=True)
        (output_dir / begun).write_text("{}")
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(hfc, "compress", begin)
    run("compress", models / "bert", "--data", data / "train.csv", *COLUMNS, "-o", tmp_path / "ladder", status=143)
    place = tmp_path / "ladder"
    assert f"what is done of the ladder is in {place}, and the same command goes on from there." in run.error


def test_a_signal_that_is_ignored_stays_so(models, tmp_path, stopped, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        command = ["prune", models / "bert", "--amount", 0.5, "-o", tmp_path / "out"]
        stopped("hfcompress.prune.magnitude:compute_masks", "SIGHUP", *command, status=0)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_worker_that_is_forked_dies_of_the_signal_alone(tmp_path):
    with stopped_by_signals():
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
            finally:
                os._exit(1)  # reached only if an exception was raised in it
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
