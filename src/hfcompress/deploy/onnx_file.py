"""Writes ONNX models: in one file, or with the weights in a file beside it where they are too large for one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hfcompress.deploy.runtime import import_exporter

_LARGEST = 2_000_000_000  # bytes of weights in a model file: a protobuf file holds less than 2 GiB
_SMALL = 1024  # bytes: smaller weights stay in the model file, where the exporter's constants are read


def weights_file(file: Path) -> Path:
    """Return the file in which the weights of a large model are, beside the model file."""
    return file.with_name(f"{file.name}.data")


def save_model(model: Any, file: Path) -> None:
    """Write an ONNX model, one of more than 2 GB with its weights beside it.

    Args:
        model: Of such a large one the weights are in the file afterwards, and no longer in memory. What is made of it
            refers to that file, so it is saved in the same folder, by another name.
        file: The model file; `weights_file` is written too, or removed if the model does not need it.

    Raises:
        OSError: The files cannot be written.
    """
    onnx = import_exporter()
    helper = onnx.external_data_helper
    weights = weights_file(file)
    weights.unlink(missing_ok=True)  # onnx would append to it
    sizes = [(one, _count_bytes(one)) for one in model.graph.initializer if not helper.uses_external_data(one)]
    if sum(size for _, size in sizes) > _LARGEST:
        for one, size in sizes:
            if size >= _SMALL and one.HasField("raw_data"):
                helper.set_external_data(one, weights.name)
    onnx.save(model, file)


def read_weights(tensor: Any, folder: Path) -> Any:
    """Return weights of a model as an array; those of a large model are in a file in this folder."""
    return import_exporter().numpy_helper.to_array(tensor, str(folder))


def _count_bytes(tensor: Any) -> int:
    size = int(import_exporter().helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return size * math.prod(tuple[int, ...](tensor.dims))
