"""A folder is replaced completely or not at all, whatever fails, is killed or writes there at the same time."""

import errno
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from architectures import build, same_bits, state_of
from model_folders import file_bytes, pruned
from transformers.utils import logging

import hfcompress as hfc
import hfcompress.atomic_folder
from hfcompress.atomic_folder import replacing
from hfcompress.storage.convert import pack_folder


def test_a_save_into_the_working_directory_stays_in_it(tmp_path, monkeypatch):
    (tmp_path / "model" / "runs").mkdir(parents=True)
    for place in (tmp_path / "model", tmp_path / "model" / "runs"):
        monkeypatch.chdir(place)
        target = os.path.relpath(tmp_path / "model")
        for amount in (0.3, 0.6):
            model = pruned(amount=amount)
            hfc.save_compressed(model, target)
            assert os.getcwd() == str(place)
            assert same_bits(hfc.load_compressed(target).state_dict(), model.state_dict())


def test_files_that_others_write_during_a_save_stay(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    hfc.save_compressed(pruned(), folder)
    (folder / "runs").mkdir()
    exchange = hfcompress.atomic_folder._exchange

    def meanwhile(one, other):
        (folder / "notes.txt").write_text("mine")
        (folder / "runs" / "events").write_text("mine too")
        return exchange(one, other)

    monkeypatch.setattr("hfcompress.atomic_folder._exchange", meanwhile)
    model = pruned(amount=0.7)
    hfc.save_compressed(model, folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "runs" / "events").read_text() == "mine too"
    assert same_bits(hfc.load_compressed(folder).state_dict(), model.state_dict())


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
def test_pipes_and_look_alikes_of_the_user_stay(tmp_path):
    folder = tmp_path / "model"
    hfc.save_compressed(pruned(), folder)
    os.mkfifo(folder / "pipe")
    (tmp_path / ".model.important.saving").mkdir()
    hfc.save_compressed(pruned(amount=0.7), folder)
    assert (folder / "pipe").is_fifo()
    assert (tmp_path / ".model.important.saving").is_dir()


def test_weights_are_not_saved_beside_an_adapter(tmp_path):
    model = pruned()
    hfc.save_compressed(model, tmp_path / "model", sparse=False)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    for save in (
        lambda: hfc.save_compressed(model, tmp_path / "adapter"),
        lambda: pack_folder(tmp_path / "model", tmp_path / "adapter"),
    ):
        with pytest.raises(hfc.CompressionError, match="holds a PEFT adapter, which would be applied"):
            save()
    assert os.listdir(tmp_path / "adapter") == ["adapter_config.json"]


def test_other_files_stay_and_old_weights_are_removed(tmp_path):
    folder = tmp_path / "model"
    hfc.save_compressed(pruned(), folder, max_shard_size="20KB")
    (folder / "notes.txt").write_text("mine")
    (folder / "runs").mkdir()
    (folder / "runs" / "log").write_text("mine too")
    (folder / "link").symlink_to("notes.txt")
    os.chmod(folder, 0o750)
    hfc.save_compressed(pruned(amount=0.7), folder)
    names = ["README.md", "config.json", "link", "model.safetensors", "notes.txt", "runs"]
    assert sorted(os.listdir(folder)) == names
    assert (folder / "runs" / "log").read_text() == "mine too"
    assert (folder / "link").is_symlink()
    assert folder.stat().st_mode & 0o777 == 0o750
    assert os.listdir(tmp_path) == ["model"]


def test_a_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    hfc.save_compressed(build(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").exists()


def test_two_renames_replace_a_missing_exchange_call(tmp_path, monkeypatch):
    hfc.save_compressed(pruned(), tmp_path / "model")
    monkeypatch.setattr("hfcompress.atomic_folder._exchange", lambda one, other: False)
    model = pruned(amount=0.7)
    hfc.save_compressed(model, tmp_path / "model")
    assert same_bits(hfc.load_compressed(tmp_path / "model").state_dict(), model.state_dict())
    assert os.listdir(tmp_path) == ["model"]


def test_what_a_kill_between_two_renames_left_is_put_back(tmp_path, monkeypatch):
    """With the files that are not the model's, of which there is no other copy."""
    monkeypatch.setattr("hfcompress.atomic_folder._exchange", lambda one, other: False)
    hfc.save_compressed(pruned(), tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    (tmp_path / "model").rename(tmp_path / f".model.{32 * '0'}.replaced")
    (tmp_path / f".model.{32 * '1'}.saving").mkdir()
    model = pruned(amount=0.7)
    hfc.save_compressed(model, tmp_path / "model")
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
    assert same_bits(hfc.load_compressed(tmp_path / "model").state_dict(), model.state_dict())
    assert os.listdir(tmp_path) == ["model"]
    (tmp_path / "model" / "hfcompress_export.json").write_text("{}")  # what is put back is looked at first
    (tmp_path / "model").rename(tmp_path / f".model.{32 * '0'}.replaced")
    with pytest.raises(hfc.CompressionError, match="holds an exported model"):
        hfc.save_compressed(model, tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("when", ["save_pretrained", "pack", "flush", "exchange"])
def test_a_failed_save_leaves_the_old_folder_and_no_debris(when, tmp_path, monkeypatch):
    model = pruned()
    hfc.save_compressed(model, tmp_path / "model")
    before = file_bytes(tmp_path)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    target = {
        "save_pretrained": "transformers.PreTrainedModel.save_pretrained",
        "pack": "hfcompress.storage.save.pack_file",
        "flush": "os.fsync",
        "exchange": "hfcompress.atomic_folder._exchange",
    }[when]
    monkeypatch.setattr(target, fail)
    with pytest.raises(hfc.CompressionError, match=r"cannot be written.*No space left"):
        hfc.save_compressed(pruned(amount=0.7), tmp_path / "model")
    monkeypatch.undo()
    assert file_bytes(tmp_path) == before


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
@pytest.mark.parametrize("kind", [stat.S_ISDIR, stat.S_ISREG])
def test_a_file_system_may_flush_no_folders_but_must_flush_files(kind, number, tmp_path, monkeypatch):
    flush = os.fsync

    def refuse(handle):
        if kind(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        flush(handle)

    monkeypatch.setattr("os.fsync", refuse)
    model = pruned()
    if kind is stat.S_ISDIR and number != errno.EIO:
        hfc.save_compressed(model, tmp_path / "model")
        assert same_bits(hfc.load_compressed(tmp_path / "model").state_dict(), model.state_dict())
    else:
        with pytest.raises(hfc.CompressionError, match=re.escape(os.strerror(number))):
            hfc.save_compressed(model, tmp_path / "model")
        assert os.listdir(tmp_path) == []


def test_the_new_folder_is_there_where_the_one_around_it_cannot_be_flushed(tmp_path, monkeypatch):
    """It is in its place by then, so an error that says that the old one is as it was would be wrong."""
    flush, around = os.fsync, os.stat(tmp_path)

    def refuse(handle):
        if os.path.samestat(os.fstat(handle), around):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(handle)

    for amount in (0.1, 0.7):
        model = pruned(amount=amount)
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", refuse)
            hfc.save_compressed(model, tmp_path / "model")
        assert same_bits(hfc.load_compressed(tmp_path / "model").state_dict(), model.state_dict())
        assert os.listdir(tmp_path) == ["model"]


def test_a_full_disk_leaves_the_old_folder(tmp_path):
    """A limit on the size of files is used as the disk: writing beyond it fails as on a full one."""
    import resource

    model = pruned()
    hfc.save_compressed(model, tmp_path / "model")
    before = file_bytes(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(hfc.CompressionError, match="cannot be written"):
            hfc.save_compressed(model, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert file_bytes(tmp_path) == before


def test_a_full_disk_that_a_tokenizer_meets_is_told_in_a_sentence(tmp_path):
    folder = tmp_path / "model"
    for message, kind in (
        ("No space left on device (os error 28)", hfc.CompressionError),
        ("its own fault", Exception),
    ):
        with pytest.raises(kind, match=re.escape(message)) as refused, replacing(folder, lambda name: True):
            raise Exception(message)  # a plain one, as tokenizers raises
        assert type(refused.value) is kind
        assert list(tmp_path.iterdir()) == []


def test_a_folder_needs_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(hfc.CompressionError, match=r"name of the folder to write is empty; .*'\.' for the working"):
        hfc.save_compressed(build(), "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file/model", "file/a/model"])
def test_no_folder_is_written_below_a_file(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(hfc.CompressionError, match=r"model' cannot be written: .*file is a file; name a folder"):
        hfc.save_compressed(build(), tmp_path / name)


def test_a_file_cannot_be_replaced_by_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(hfc.CompressionError, match="is a file; name a folder"):
        hfc.save_compressed(build(), tmp_path / "file")


@pytest.mark.parametrize("place", ["file/inside", "/proc/nothing/model"])
def test_a_place_that_cannot_be_written_is_named(place, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(hfc.CompressionError, match=rf"{place}' cannot be written"):
        hfc.save_compressed(build(), tmp_path / place)


@pytest.mark.parametrize("place", ["data", "runs/my data", "file", "."])
def test_what_is_mounted_in_a_folder_is_not_emptied(place, tmp_path):
    folder, mine = tmp_path / "model", tmp_path / "mine"
    hfc.save_compressed(pruned(), folder)
    before, point = file_bytes(folder), folder / place
    if place == "file":
        mine.write_text("mine")
        point.write_text("")
    else:
        mine.mkdir()
        (mine / "notes.txt").write_text("mine")
        point.mkdir(parents=True, exist_ok=True)
    if not shutil.which("mount") or subprocess.run(["mount", "--bind", mine, point], stderr=subprocess.PIPE).returncode:
        pytest.skip("needs the right to mount")
    try:
        with pytest.raises(hfc.CompressionError, match="is a mount point") as refused:
            hfc.save_compressed(pruned(amount=0.7), folder)
    finally:
        for line in Path("/proc/self/mountinfo").read_text().splitlines():  # it may have been moved
            if line.split()[4].startswith(str(tmp_path)):
                subprocess.run(["umount", line.split()[4].replace("\\040", " ")], check=True)
    assert str(point) in str(refused.value)
    assert file_bytes(mine) == {"notes.txt": b"mine"} if mine.is_dir() else mine.read_text() == "mine"
    assert {name: data for name, data in file_bytes(folder).items() if name != "file"} == before
    assert sorted(os.listdir(tmp_path)) == ["mine", "model"]


@pytest.fixture
def no_progress_bars():
    """tqdm's bars share a lock with forked processes, which one that is killed may take with it."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.mark.usefixtures("no_progress_bars")
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_save_leaves_the_old_or_the_new_folder(tmp_path):
    """A child that holds two models saves them in turn until it is killed; HFCOMPRESS_KILLS=100 for a long run."""
    folder, moments = tmp_path / "model", int(os.environ.get("HFCOMPRESS_KILLS", "12"))
    models = [pruned(amount=0.3), pruned(amount=0.8)]
    states = [state_of(model) for model in models]
    start = time.perf_counter()
    hfc.save_compressed(models[0], folder)
    duration = time.perf_counter() - start
    chance = random.Random(0)
    seen = set()
    for moment in range(moments):
        through, saved = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                while True:
                    for model in (models[1], models[0]):
                        hfc.save_compressed(model, folder)
                        os.write(saved, b".")
            finally:
                os._exit(1)
        if moment % 3 == 0:
            os.read(through, 1)  # the first save got through
        if moment:
            time.sleep(chance.uniform(0, 4 * duration))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(through)
        os.close(saved)
        again = hfc.load_compressed(folder).state_dict()
        found = [same_bits(again, state) for state in states]
        assert sum(found) == 1
        seen.add(found.index(True))
    assert 1 in seen  # in the first round at the latest, which is killed right after a save
    hfc.save_compressed(models[0], folder)
    assert os.listdir(tmp_path) == ["model"]  # what the killed ones left is gone


@pytest.mark.usefixtures("no_progress_bars")
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_of_two_processes_saving_to_one_folder_one_wins(tmp_path):
    folder = tmp_path / "model"
    models = [pruned(amount=0.3), pruned(amount=0.8)]
    states = [state_of(model) for model in models]
    children = []
    for model in models:
        child = os.fork()
        if child == 0:
            try:
                for _ in range(10):
                    hfc.save_compressed(model, folder)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    again = hfc.load_compressed(folder).state_dict()
    assert sum(same_bits(again, state) for state in states) == 1
    assert os.listdir(tmp_path) == ["model"]
