"""Equalizes the channels that int8 operators read, by factors moved between weights; the model computes the same.

An int8 activation has one scale for all channels, so one large channel costs the others their precision. The factors
are those of SmoothQuant (Xiao et al. 2023, equation 4, at one half): a channel is divided by the square root of its
largest value over that of the weights which read it, and these are multiplied by that. Here each is the next power of
two, by which a floating-point number is multiplied exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hfcompress.deploy.onnx_file import read_weights, save_model
from hfcompress.deploy.runtime import import_exporter, open_session
from hfcompress.models.heads_and_neurons import LinearPath

Floats = NDArray[np.float32]
_NORMS = {"LayerNormalization": (1, 2), "RMSNormalization": (1,), "SimplifiedLayerNormalization": (1,)}


class _Graph:
    """A copy of an ONNX model whose weights can be scaled; weights that other nodes read too are copied first."""

    def __init__(self, model: Any, folder: Path) -> None:
        self._onnx, self._folder = import_exporter(), folder
        self.model = copy.deepcopy(model)
        self.nodes = self.model.graph.node
        self.weights = {one.name: one for one in self.model.graph.initializer if one.data_type == 1}
        self.outputs = {one.name for one in self.model.graph.output}
        self.readers: dict[str, list[Any]] = {}
        self.modules: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)
            if self.is_linear(node):
                self.modules.setdefault(_module(node), []).append(node)

    def is_linear(self, node: Any) -> bool:
        """Whether a node multiplies what it is given by a matrix of weights."""
        weight = self.weights.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
        return weight is not None and len(weight.dims) == 2 and node.input[0] not in self.weights

    def vector(self, name: str) -> bool:
        """Whether a name is that of weights with one number a channel."""
        return name in self.weights and len(self.weights[name].dims) == 1 and self.weights[name].dims[0] > 1

    def matrix(self, node: Any) -> Floats:
        """Return the weights of a linear node, inputs first."""
        weight = self._array(node.input[1])
        return weight.T if _is_transposed(node) else weight

    def scale(self, nodes: Iterable[Any], index: int, factor: Floats) -> None:
        """Multiply the weights that nodes have as this input."""
        made: dict[str, str] = {}
        for node in nodes:
            old = node.input[index]
            if old not in made:
                made[old] = self.add(f"{old}/{len(self.weights)}", self._array(old) * factor)
            node.input[index] = made[old]

    def add(self, name: str, array: Floats) -> str:
        """Add weights, and return their name."""
        tensor = self._onnx.numpy_helper.from_array(np.ascontiguousarray(array, dtype=np.float32), name)
        self.model.graph.initializer.append(tensor)
        self.weights[name] = tensor
        return name

    def multiply_behind(self, node: Any, factor: Floats, readers: Sequence[Any]) -> None:
        """Let these readers of a node's output read it times a factor."""
        name, output = node.output[0], f"{node.output[0]}/residual"
        made = self._onnx.helper.make_node("Mul", [name, self.add(f"{output}/factor", factor)], [output], name=output)
        for reader in readers:
            for place, given in enumerate(reader.input):
                if given == name:
                    reader.input[place] = output
        self.nodes.insert(list(self.nodes).index(node) + 1, made)

    def finish(self) -> Any:
        """Return the model without the weights that nothing reads any longer."""
        read = {name for node in self.nodes for name in node.input} | self.outputs
        kept = [one for one in self.model.graph.initializer if one.name in read]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)
        return self.model

    def _array(self, name: str) -> Floats:
        array: Floats = read_weights(self.weights[name], self._folder)
        return array


def largest_inputs(model: Any, batches: Iterable[Mapping[str, Tensor]], folder: Path) -> dict[str, Floats]:
    """Return by name, of each tensor that a matrix of weights multiplies, the largest absolute value of each channel.

    Args:
        model: An ONNX model in float32; it is not changed.
        batches: Its inputs.
        folder: For a file; that of the weights, where the model is large.
    """
    onnx = import_exporter()
    graph = _Graph(model, folder)
    names = list(dict.fromkeys(node.input[0] for nodes in graph.modules.values() for node in nodes))
    known = graph.outputs | {one.name for one in model.graph.input}
    graph.model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    save_model(graph.model, folder / "probed.onnx")
    session, largest = open_session(folder / "probed.onnx"), dict[str, Floats]()
    for batch in batches:
        values = session.run(names, {name: value.numpy() for name, value in batch.items()})
        for name, value in zip(names, values, strict=True):
            found = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
            largest[name] = np.maximum(largest.get(name, found), found)
    return largest


def equalize(
    model: Any, paths: Sequence[LinearPath], largest: Mapping[str, Floats], *, residuals: bool, folder: Path
) -> tuple[Any, tuple[str, ...]]:
    """Return an ONNX model with equalized channels that computes the same, and which channels these are.

    Args:
        model: In float32; it is not changed.
        paths: Modules of the classifier between which factors move: from values to the attention output, and from
            the neurons behind a gate to what reads them.
        largest: As `largest_inputs` returns it for this model.
        residuals: Whether norms that are read by others than matrices are equalized too, those of BERT for example: one
            multiplication undoes the factors for these others. Norms that only matrices read always are.
        folder: Where the weights of a large model are.

    Returns:
        The model, and ``"values"``, ``"neurons"``, ``"norms"``, ``"residuals"``, those that were found.
    """
    graph, found = _Graph(model, folder), set[str]()
    for path in paths:
        found |= _equalize_path(graph, path, largest)
    for node in list(graph.nodes):
        found |= _equalize_norm(graph, node, largest, residuals)
    return graph.finish(), tuple(one for one in ("values", "neurons", "norms", "residuals") if one in found)


def _equalize_path(graph: _Graph, path: LinearPath, largest: Mapping[str, Floats]) -> set[str]:
    made, read = graph.modules.get(path.producer.module, []), graph.modules.get(path.consumer.module, [])
    if not made or not read:
        return set()
    values, repeats, width = path.producer.size, path.producer.repeats, path.consumer.size
    shape = path.count, width // values, values  # several queries read the values of one key under grouped queries
    inputs = np.max([largest[node.input[0]] for node in read], axis=0).reshape(shape).max(axis=1)
    weights = _largest_weights(graph, read).reshape(shape).max(axis=1)
    factor = _powers_of_two(inputs, weights)
    ones = np.ones((repeats - 1) * factor.size, np.float32)
    divided: Floats = np.concatenate([ones, 1 / factor.reshape(-1)]).astype(np.float32)
    _scale_inputs(graph, read, np.repeat(factor[:, None], shape[1], axis=1).reshape(-1))
    for transposed in (False, True):
        chosen = [node for node in made if _is_transposed(node) == transposed]
        graph.scale(chosen, 1, divided[:, None] if transposed else divided)
    graph.scale([node for node in made if node.op_type == "Gemm" and len(node.input) > 2], 2, divided)
    readers = [graph.readers.get(node.output[0], []) for node in made if node.op_type == "MatMul"]
    sums = [ends[0] for ends in readers if len(ends) == 1 and ends[0].op_type == "Add"]
    for index in (0, 1):
        graph.scale([node for node in sums if graph.vector(node.input[index])], index, divided)
    return {path.kind}


def _equalize_norm(graph: _Graph, norm: Any, largest: Mapping[str, Floats], residuals: bool) -> set[str]:
    places = _NORMS.get(norm.op_type, (0, 1) if norm.op_type == "Mul" else ())
    places = tuple(index for index in places if index < len(norm.input) and graph.vector(norm.input[index]))
    if not places or norm.output[0] in graph.outputs:
        return set()
    linear, others = [], []
    for reader in graph.readers.get(norm.output[0], []):
        ends = graph.readers.get(reader.output[0], []) if reader.op_type == "Reshape" else [reader]
        # A module that is run several times reads other tensors elsewhere, so its weights must stay.
        if ends and all(node in graph.modules.get(_module(node), []) and _is_alone(graph, node) for node in ends):
            linear += ends
        elif reader.op_type != "Shape":
            others.append(reader)
    width = graph.weights[norm.input[places[0]]].dims[0]
    if not linear or (others and not residuals) or any(len(graph.matrix(node)) != width for node in linear):
        return set()
    inputs = np.max([largest[node.input[0]] for node in linear], axis=0)
    factor = _powers_of_two(inputs, _largest_weights(graph, linear))
    for index in places:
        graph.scale([norm], index, np.reciprocal(factor))
    _scale_inputs(graph, linear, factor)
    if others:
        graph.multiply_behind(norm, factor, others)
    return {"residuals" if others else "norms"}


def _powers_of_two(inputs: Floats, weights: Floats) -> Floats:
    """Return what each channel is divided by; 1 where nothing passes through it."""
    used = (inputs > 0) & (weights > 0)
    ratio = np.divide(inputs, weights, out=np.ones_like(inputs), where=used)
    return np.exp2(np.round(np.log2(ratio) / 2)).astype(np.float32)


def _largest_weights(graph: _Graph, nodes: Iterable[Any]) -> Floats:
    """Return by input the largest absolute weight, relative to the largest of its column, which sets the scale."""
    found = []
    for node in nodes:
        weights = np.abs(graph.matrix(node))
        columns = weights.max(axis=0)
        found.append(np.divide(weights, columns, out=np.zeros_like(weights), where=columns > 0).max(axis=1))
    largest: Floats = np.max(found, axis=0)
    return largest


def _scale_inputs(graph: _Graph, nodes: Sequence[Any], factor: Floats) -> None:
    for transposed in (False, True):
        chosen = [node for node in nodes if _is_transposed(node) == transposed]
        graph.scale(chosen, 1, factor if transposed else factor[:, None])


def _is_alone(graph: _Graph, node: Any) -> bool:
    return len(graph.modules[_module(node)]) == 1


def _is_transposed(node: Any) -> bool:
    return any(one.name == "transB" and one.i == 1 for one in node.attribute)


def _module(node: Any) -> str:
    name: str = node.name.partition("#")[0]
    return name
