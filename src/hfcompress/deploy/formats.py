"""The formats of exported models: their files, and the runtimes that open them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcompress.deploy.onnx_file import weights_file
from hfcompress.deploy.openvino_model import OpenVinoSession, describe
from hfcompress.deploy.runtime import first_line, open_session

_MODEL = Path("model.onnx")
_WEIGHTS = ".bin"  # beside a model of OpenVINO


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        runtime: The name of what runs it.
        package: What is imported to run it.
        files: The model file, and what belongs to it.
        packages: What writes it, and what makes it int8.
        large: What belongs to a large model too.
    """

    runtime: str
    package: str
    files: tuple[str, ...]
    packages: tuple[tuple[str, ...], tuple[str, ...]]
    large: tuple[str, ...] = ()

    @property
    def graph(self) -> str:
        """The file that is opened."""
        return self.files[0]


FORMATS = {
    "onnx": Format(
        "ONNX Runtime", "onnxruntime", (_MODEL.name,), (("onnx", "onnxruntime"), ()), (weights_file(_MODEL).name,)
    ),
    # optimum-intel looks for these names
    "openvino": Format(
        "OpenVINO",
        "openvino",
        ("openvino_model.xml", "openvino_model.bin"),
        (("onnx", "onnxruntime", "openvino"), ("nncf",)),
    ),
}


def is_openvino(file: Path) -> bool:
    """Whether a model file is one of OpenVINO."""
    return file.suffix == ".xml"


def open_model(file: str | os.PathLike[str]) -> Any:
    """Open a model file in the runtime of its format, on the CPU.

    Raises:
        CompressionError: The runtime cannot run it.
        ImportError: The runtime is not installed.
    """
    return OpenVinoSession(file) if is_openvino(Path(file)) else open_session(file)


def describe_failure(file: Path, error: BaseException) -> str:
    """Say which runtime does not run a model file, and what it says."""
    name, cause = ("openvino", describe(error)) if is_openvino(file) else ("onnx", first_line(error))
    return f"{FORMATS[name].runtime} does not run the exported model: {cause}"


def model_files(file: Path) -> list[Path]:
    """Return a model file and what belongs to it."""
    if is_openvino(file):
        return [file, file.with_suffix(_WEIGHTS)]
    return [file, *(one for one in (weights_file(file),) if one.exists())]


def count_bytes(file: Path) -> int:
    """Return the bytes of a model file and of what belongs to it."""
    return sum(one.stat().st_size for one in model_files(file))
