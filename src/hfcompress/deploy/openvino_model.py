"""OpenVINO and NNCF (the extra ``openvino``): converts an ONNX model, quantizes it to int8, and runs the result."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from hfcompress.compat import package_version
from hfcompress.deploy.quantization import Operator
from hfcompress.deploy.runtime import quietly
from hfcompress.errors import CompressionError

_REMEDY = "pip install 'hfcompress[openvino]'"
_WITHOUT_BIASES = "/WithoutBiases"  # OpenVINO's name for the product in a Gemm


class Value(NamedTuple):
    """An input or output of a model."""

    name: str
    shape: str


class OpenVinoSession:
    """A model that OpenVINO runs on the CPU in float32, with the methods of an ``onnxruntime.InferenceSession``.

    Args:
        file: The ``.xml`` file, with a ``.bin`` file of that name beside it.

    Raises:
        CompressionError: It is no such model, or has an operator that this OpenVINO does not know.
    """

    def __init__(self, file: str | os.PathLike[str]) -> None:
        openvino = import_openvino()
        # Where a processor has bfloat16, OpenVINO would compute in it.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        try:
            with _own_signal_stack():
                self._model = _start(openvino).compile_model(os.fspath(file), "CPU", settings)
        except Exception as error:  # a RuntimeError, for now
            raise CompressionError(
                f"{os.fspath(file)} cannot be run by OpenVINO {package_version('openvino')}: {describe(error)}"
            ) from error

    def get_inputs(self) -> list[Value]:
        """Return the inputs."""
        return [Value(one.get_any_name(), str(one.partial_shape)) for one in self._model.inputs]

    def get_outputs(self) -> list[Value]:
        """Return the outputs."""
        return [Value(one.get_any_name(), str(one.partial_shape)) for one in self._model.outputs]

    def run(self, names: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the outputs of these names.

        Raises:
            RuntimeError: OpenVINO fails, or computes nothing, as for texts that are longer than a table of positions.
        """
        # A request of its own for each call: one that fails silently would return what it computed before.
        found = self._model.create_infer_request().infer(dict(inputs))
        rows = len(next(iter(inputs.values())))
        outputs: list[NDArray[Any]] = [found[name] for name in names]
        if any(len(output) != rows for output in outputs):
            raise RuntimeError("no output for these inputs")
        return outputs


def import_openvino() -> Any:
    """Import openvino.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError(f"OpenVINO models need openvino: {_REMEDY}") from error
    return openvino


def import_nncf() -> Any:
    """Import nncf, OpenVINO's quantizer, which prints and reports less than it does by default.

    Raises:
        ImportError: It is not installed.
    """
    # Without this package, nncf sends no statistics of its use.
    absent = "nncf" not in sys.modules and "openvino_telemetry" not in sys.modules
    if absent:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # an import of it fails
    try:
        import nncf
    except ImportError as error:
        raise ImportError(f"int8 in OpenVINO needs nncf: {_REMEDY}") from error
    finally:
        if absent:
            del sys.modules["openvino_telemetry"]
    return nncf


def convert(source: Path, target: Path) -> None:
    """Write an ONNX model as one of OpenVINO, a ``.xml`` and a ``.bin`` file, in the same dtype.

    Raises:
        CompressionError: OpenVINO cannot read it.
        OSError: The files cannot be written.
    """
    openvino = import_openvino()
    try:
        with quietly():
            model = _start(openvino).read_model(os.fspath(source))
    except Exception as error:  # a RuntimeError, for now
        raise CompressionError(
            f"OpenVINO {package_version('openvino')} cannot read the model: {describe(error)}"
        ) from error
    _save(openvino, model, target)


def compress_weights(source: Path, target: Path, *, float32: Collection[Operator] = ()) -> None:
    """Write a model with int8 weights, one scale a column; OpenVINO scales activations where the processor has VNNI.

    Args:
        source: A float32 model of OpenVINO.
        target: The file to write.
        float32: The operators that are left as they are.

    Raises:
        CompressionError: The quantizer fails.
        OSError: The files cannot be written.
    """
    nncf = import_nncf()

    def compress(model: Any) -> Any:
        left = nncf.IgnoredScope(names=_nodes(float32), validate=False)
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=left)

    _write_int8(compress, source, target)


def quantize_static(
    source: Path,
    target: Path,
    *,
    bits: int,
    int8: Collection[Operator],
    calibration: Iterable[Mapping[str, Tensor]],
) -> None:
    """Write a model with int8 weights, one scale a column, and int8 activations, whose scales are measured here.

    All else, such as products of activations, stays in float32. NNCF's own SmoothQuant is left out: channels are
    equalized before, where that helps.

    Args:
        source: A float32 model of OpenVINO.
        target: The file to write.
        bits: Of a weight: 7 or 8.
        int8: The operators that are quantized.
        calibration: Inputs of the model, whose least and largest activations set the scales of all later ones.

    Raises:
        CompressionError: The quantizer fails.
        OSError: The files cannot be written.
    """
    nncf = import_nncf()
    from nncf.quantization.advanced_parameters import OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    settings = nncf.AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.ENABLE if bits == 7 else OverflowFix.DISABLE,
        disable_bias_correction=True,
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1),
    )
    batches = [{name: value.numpy() for name, value in batch.items()} for batch in calibration]

    def quantize(model: Any) -> Any:
        left = {one.get_friendly_name() for one in model.get_ops()}.difference(_nodes(int8))
        return nncf.quantize(
            model,
            nncf.Dataset(batches),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=sorted(left), validate=False),
            advanced_parameters=settings,
        )

    _write_int8(quantize, source, target)


def _write_int8(quantize: Callable[[Any], Any], source: Path, target: Path) -> None:
    """Let NNCF change a model, and write what it returns."""
    openvino, nncf = import_openvino(), import_nncf()
    nncf.set_log_level(logging.ERROR)
    try:
        with quietly(), _own_signal_stack(), redirect_stdout(StringIO()):  # it shows its progress
            made = quantize(_start(openvino).read_model(os.fspath(source)))
    except Exception as error:  # whatever the quantizer meets in a graph
        raise CompressionError(f"NNCF cannot quantize the model: {describe(error)}") from error
    _save(openvino, made, target)


class _SignalStack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _own_signal_stack() -> Iterator[None]:
    """Leave this thread the stack on which its signals are handled.

    OpenVINO's plugin gives it another. Of several that are removed in the order in which they were made, the last one
    gives back the stack of one that is gone, and the next signal, such as Ctrl-C, ends the process.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


def _nodes(operators: Collection[Operator]) -> list[str]:
    """Return the names that nodes of these operators may have in OpenVINO."""
    return [name + end for one in operators for name in one.nodes for end in ("", _WITHOUT_BIASES)]


def _start(openvino: Any) -> Any:
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # or else a file could not be replaced while it is open
    return core


def _save(openvino: Any, model: Any, target: Path) -> None:
    try:
        openvino.save_model(model, os.fspath(target), compress_to_fp16=False)
    except Exception as error:  # a RuntimeError, for now, such as where the disk is full
        raise OSError(f"OpenVINO cannot write {target.name}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """Return what an error of OpenVINO says, without the places in its own source."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    return f"{' '.join(kept or [type(error).__name__])[:300].rstrip('.')}."
