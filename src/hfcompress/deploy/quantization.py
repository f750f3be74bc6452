"""Quantizes an ONNX model to int8, by ONNX Runtime's own quantizer: weights at once, activations while it runs."""

from __future__ import annotations

import copy
import errno
import os
import shutil
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from hfcompress.compat import processor_features
from hfcompress.deploy.onnx_file import save_model, weights_file
from hfcompress.deploy.runtime import first_line, import_exporter, open_session, quietly
from hfcompress.errors import CompressionError

Machine = Literal["any", "this"]
_EXACT = {"AVX-512 VNNI", "AMX"}  # with one of them, int8 products are summed in 32 bits
_OPERATIONS = ("MatMul", "Gemm", "Gather")
# Of static models, as of dynamic ones: products of activations, and outputs, which are added up, stay in float32.
_STATIC = {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": list(_OPERATIONS)}


@dataclass(frozen=True)
class Operator:
    """A module that multiplies by a weight, or looks rows up in one.

    Attributes:
        name: Of the module.
        table: Whether it looks rows up: an embedding.
        nodes: Its nodes in the graph, several where layers share it.
    """

    name: str
    table: bool
    nodes: tuple[str, ...]


def find_operators(model: Any) -> list[Operator]:
    """Return what can be quantized in an ONNX model, in its order."""
    floats = {one.name for one in model.graph.initializer if one.data_type == 1 and len(one.dims) == 2}
    nodes: dict[tuple[str, bool], list[str]] = {}
    for node in model.graph.node:
        table = node.op_type == "Gather"
        if node.op_type in _OPERATIONS and node.input[0 if table else 1] in floats:
            nodes.setdefault((node.name.partition("#")[0], table), []).append(node.name)
    return [Operator(name, table, tuple(names)) for (name, table), names in nodes.items()]


def weight_bits(machine: Machine) -> int:
    """Return how many bits of a weight are used: 8 where the processor multiplies int8 exactly, else 7.

    Without VNNI and AMX, sums of two products of an 8-bit activation and an 8-bit weight saturate at 16 bits. With 7
    bits they cannot, on any processor, and the file is as large.

    Args:
        machine: ``"this"`` or ``"any"``: what the file is made for.
    """
    return 8 if machine == "this" and _EXACT & set(processor_features()) else 7


def save_for_quantizer(model: Any, file: Path) -> None:
    """Save a float32 model that torch's exporter has optimized, and say so, or else the quantizer logs advice.

    The shapes that the exporter noted are left out: the quantizer infers them anew, after it has transposed weights,
    and refuses a model in which they then differ (with torch 2.11 those of a classifier do).
    """
    onnx = import_exporter()
    tagged = copy.deepcopy(model)
    del tagged.graph.value_info[:]
    onnx.helper.set_model_props(tagged, {"onnx.quant.pre_process": "onnxruntime.quant"})
    save_model(tagged, file)


def quantize(
    source: Path,
    target: Path,
    *,
    bits: int,
    float32: Collection[Operator] = (),
    calibration: Iterable[Mapping[str, Tensor]] | None = None,
) -> None:
    """Write a model with int8 weights: one scale a column, and of a table of embeddings one in all.

    Args:
        source: A float32 model, as `save_for_quantizer` saved it.
        target: The file to write.
        bits: Of a weight: 7 or 8.
        float32: The operators that are left as they are.
        calibration: Inputs of the model, whose least and largest activations set the scales of all later ones; if None,
            activations are scaled while the model runs.

    Raises:
        CompressionError: The quantizer fails.
        OSError: The file cannot be written.
    """
    onnx = import_exporter()
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

    # A Gemm becomes a MatMul of another name before nodes are left out by name.
    excluded = [name + end for one in float32 for name in one.nodes for end in ("", "_MatMul")]
    settings: dict[str, Any] = {
        "op_types_to_quantize": list(_OPERATIONS),
        "per_channel": True,
        "reduce_range": bits == 7,
        "weight_type": QuantType.QInt8,
        "nodes_to_exclude": excluded,
        "use_external_data_format": True,  # needed for a large model, and it is written anew below
    }
    written = target.with_name(f"{uuid.uuid4().hex}.onnx")  # onnx refuses one that the working directory has
    try:
        with quietly():
            if calibration is None:
                quantize_dynamic(source, written, **settings)
            else:
                settings |= {"activation_type": QuantType.QUInt8, "extra_options": _STATIC}
                quantize_static(source, written, _Reader(calibration), **settings)
    except OSError:
        raise
    except Exception as error:  # whatever the quantizer meets in a graph
        if shutil.disk_usage(target.parent).free < source.stat().st_size:  # onnx writes half a file, and says nothing
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
        raise CompressionError(f"ONNX Runtime cannot quantize the model: {first_line(error)}") from error
    made = onnx.load(written)
    for file in (written, weights_file(written)):
        file.unlink(missing_ok=True)
    del made.metadata_props[:]
    save_model(made, target)


class _Reader:
    """Hands inputs to the quantizer one by one, as it asks for them."""

    def __init__(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next inputs; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {name: value.numpy() for name, value in batch.items()}


def output_errors(
    model: Any, operators: Sequence[Operator], batches: Iterable[Mapping[str, Tensor]], *, bits: int, folder: Path
) -> dict[str, float]:
    """Return by name the error that quantizing an operator alone makes in its output, relative to the output.

    Args:
        model: In float32; it is not changed.
        operators: Of the model.
        batches: Inputs of the model.
        bits: Of a weight.
        folder: For files.
    """
    onnx = import_exporter()
    inputs = {one.name for one in model.graph.input}
    constants = {one.name: one for one in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    probed = copy.deepcopy(model)
    alone: dict[str, tuple[Operator, Any, list[str]]] = {}
    for number, (one, name) in enumerate((owner, name) for owner in operators for name in owner.nodes):
        node = nodes[name]
        free = [given for given in node.input if given and given not in constants]
        kind = onnx.TensorProto.INT64 if one.table else onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            [node],
            "operator",
            [onnx.helper.make_tensor_value_info(given, kind, None) for given in free],
            [onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)],
            [constants[given] for given in node.input if given in constants],
        )
        files = folder / f"operator-{number}.onnx", folder / f"operator-{number}-int8.onnx"
        single = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
        save_for_quantizer(single, files[0])
        quantize(*files, bits=bits)
        alone[name] = one, open_session(files[1]), free
        seen = [*free, node.output[0]]
        known = inputs | {value.name for value in probed.graph.output}
        probed.graph.output.extend(onnx.ValueInfoProto(name=given) for given in seen if given not in known)
    save_model(probed, folder / "probed.onnx")
    session = open_session(folder / "probed.onnx")
    outputs = [one.name for one in session.get_outputs()]
    errors = {one.name: [0.0, 0.0] for one in operators}
    for batch in batches:
        feeds = {name: value.numpy() for name, value in batch.items()}
        values = feeds | dict(zip(outputs, session.run(outputs, feeds), strict=True))
        for name, (one, quantized, free) in alone.items():
            expected = values[nodes[name].output[0]]
            (found,) = quantized.run(None, {given: values[given] for given in free})
            errors[one.name][0] += float(np.square(found - expected, dtype=np.float64).sum())
            errors[one.name][1] += float(np.square(expected, dtype=np.float64).sum())
    return {name: wrong / total if total else 0.0 for name, (wrong, total) in errors.items()}
