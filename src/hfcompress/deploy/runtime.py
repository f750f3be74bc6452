"""Imports ONNX and ONNX Runtime (the extra ``onnx``) where they are used, and opens a model file with the latter."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

from hfcompress.errors import CompressionError

_REMEDY = "pip install 'hfcompress[onnx]'"


def import_runtime() -> Any:
    """Import onnxruntime.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"Running exported models needs onnxruntime: {_REMEDY}") from error
    return onnxruntime


def import_exporter() -> Any:
    """Import onnx, after checking that everything which an export needs is installed.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed.
    """
    try:
        onnx, *_ = (import_module(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    except ImportError as error:
        raise ImportError(f"Exporting needs onnx, onnxscript and onnxruntime: {_REMEDY}") from error
    return onnx


def open_session(file: str | os.PathLike[str], *, threads: int | None = None) -> Any:
    """Open a model file in ONNX Runtime, on the CPU.

    Args:
        file: An ONNX model.
        threads: Of the CPU, for one pass; as many as torch uses if None.

    Raises:
        CompressionError: It is no ONNX model, or has an operator that this ONNX Runtime does not know.
    """
    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.inter_op_num_threads = 1
    # Its threads wait in a loop for the next pass, and would take the time of what is timed in turns with it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors, which are raised as well
    try:
        return runtime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes have no public base
        name, cause = os.fspath(file), str(error) or type(error).__name__
        cause = first_line(cause.replace(name, "it"))  # a long path would leave no room
        raise CompressionError(f"{name} cannot be run by ONNX Runtime {runtime.__version__}: {cause}") from error


def first_line(error: BaseException | str) -> str:
    """Return the first line of an error of another library, cut where it is long."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0][:300].rstrip('.')}."


@contextmanager
def quietly() -> Iterator[None]:
    """Keep warnings and log lines of the exporter and the quantizer, which are not about the model, off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
