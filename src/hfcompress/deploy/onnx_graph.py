"""Writes a classifier as an ONNX model, by torch's exporter, and checks that it has the logits of the classifier."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedTokenizerBase

from hfcompress.deploy.formats import describe_failure, open_model
from hfcompress.deploy.runtime import first_line, quietly
from hfcompress.errors import CompressionError
from hfcompress.models.classifier import count_outputs, get_logits, input_names, max_tokens
from hfcompress.models.inputs import Batch, Padder, dummy_inputs
from hfcompress.models.padding import fill_padding, find_padding, padded_with, split_rows, vocabulary_size

INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # that a graph may have, in this order
TOLERANCE = 1e-4  # of logits, absolute and relative
_EXAMPLE = (9, 12)  # tokens of the texts that are traced; Funnel does not read much shorter ones
_CHECKED = ((1,), (2,), (5, 3, 4), (12, 7), (33, 20))
_LONG = 600  # tokens, or as many as a model reads: beyond the windows of local attention


class _Logits(nn.Module):
    """A classifier that returns its logits alone, and reads the attention mask in a dtype."""

    def __init__(self, model: nn.Module, mask_dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.mask_dtype = model, mask_dtype

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        mask = None if attention_mask is None else attention_mask.to(self.mask_dtype)
        given = dict(zip(INPUTS, (input_ids, mask, token_type_ids), strict=True))
        return get_logits(self.model(**{name: value for name, value in given.items() if value is not None}))


class GraphInputs:
    """The inputs that the graph of a model has, and made-up batches of them.

    Args:
        model: The classifier, in eval mode on the CPU.
        tokenizer: What makes its inputs.

    Attributes:
        names: In the order of the graph.
        defaults: By name, what an input is filled with where it is not given.
        limits: By name, how many rows there are in the table that an input's ids are looked up in.
        pads_left: Whether texts are padded at their start.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model, self._padder, self._tokenizer = model, Padder(model, tokenizer), tokenizer
        try:
            model.get_input_embeddings()  # type: ignore[operator] # typed as Module
        except NotImplementedError as error:
            raise CompressionError(
                f"{type(model).__name__} cannot be exported: it has no table of tokens to make texts of."
            ) from error
        taken = input_names(model)
        made = set(tokenizer("a")) | set(tokenizer.model_input_names)
        unknown = sorted((made & taken) - set(INPUTS))
        if unknown:
            raise CompressionError(
                f"{type(model).__name__} takes {', '.join(unknown)} of its tokenizer, which cannot be exported; only "
                f"{', '.join(INPUTS)} can."
            )
        self.names = tuple(name for name in INPUTS[:2] if name in taken)
        self.defaults: dict[str, int] = dict.fromkeys(self.names[1:], 1)
        if "token_type_ids" in taken:
            optional = self._zeros_are_the_default()
            if optional or "token_type_ids" in made:
                self.names += ("token_type_ids",)
                self.defaults |= {"token_type_ids": 0} if optional else {}
        self.limits = self._table_sizes()
        self.pads_left = self._padder.side == "left"

    def batch(self, lengths: Sequence[int]) -> Batch:
        """Make a batch of texts with so many tokens, padded as the tokenizer pads."""
        rows = []
        for length in lengths:
            ids = dummy_inputs(self._model, length)["input_ids"][0]
            row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if "token_type_ids" in self.names:
                kinds = getattr(self._model.config, "type_vocab_size", 2) or 1
                row["token_type_ids"] = (torch.arange(len(ids)) >= (len(ids) + 1) // 2).long() * min(1, kinds - 1)
            rows.append({name: row[name] for name in self.names})
        batch = self._padder(rows)
        return {name: batch[name] for name in self.names}

    def padded_by_tokenizer(self) -> tuple[Batch, str]:
        """Make a batch whose padding has the id of the tokenizer, though the model may not read that; and name it."""
        batch, index = self.batch(_EXAMPLE), self._padder.pad_token_id
        padding, name = find_padding(batch), f"{self._tokenizer.pad_token!r} ({index})"
        if padding is not None and index is not None:
            batch["input_ids"] = batch["input_ids"].masked_fill(padding, index)
        return batch, name

    def _table_sizes(self) -> dict[str, int]:
        found = {"input_ids": vocabulary_size(self._model)}
        if "token_type_ids" in self.names:
            found |= {"token_type_ids": getattr(self._model.config, "type_vocab_size", None)}
        return {name: size for name, size in found.items() if size}

    def _zeros_are_the_default(self) -> bool:
        batch = self.batch(_EXAMPLE)
        try:
            without = get_logits(self._model(**batch))
            zeros = get_logits(self._model(**batch, token_type_ids=torch.zeros_like(batch["input_ids"])))
        except (IndexError, RuntimeError, ValueError):
            return False
        return torch.equal(without, zeros)


def build_graph(model: nn.Module, inputs: GraphInputs) -> Any:
    """Return the ONNX model of a classifier; batch and length are any.

    The nodes that multiply by a weight, or look rows up in one, have the names of the modules that do.

    Args:
        model: In float32 and eval mode, on the CPU.
        inputs: The inputs of the graph.

    Raises:
        CompressionError: torch's exporter cannot express the model.
    """
    name = type(model).__name__
    _check_classifies(model, inputs)
    _check_padding(model, inputs)
    try:
        graph = _export(_Logits(model, torch.int64), inputs)
    except Exception as error:  # of any layer of torch's exporter
        try:  # it fails on XLNet's 1.0 - mask, where the mask has integers
            graph = _export(_Logits(model, torch.float32), inputs)
        except Exception:
            raise CompressionError(
                f"{name} cannot be exported: torch.onnx.export fails with {_describe_cause(error)}"
            ) from error
    fixed = [dim.dim_value for one in graph.graph.input for dim in one.type.tensor_type.shape.dim if not dim.dim_param]
    if fixed:
        raise CompressionError(
            f"{name} cannot be exported: torch.onnx.export makes a model for texts of {fixed[-1]} tokens alone, "
            "because the classifier computes with the length outside of tensors."
        )
    _name_nodes_by_module(graph)
    return graph


def _check_classifies(model: nn.Module, inputs: GraphInputs) -> None:
    """Refuse a model that does not return logits of shape (texts, labels)."""
    name, batch = type(model).__name__, inputs.batch(_EXAMPLE)
    try:
        shape = tuple(get_logits(model(**batch)).shape)
    except CompressionError as error:
        raise CompressionError(f"{name} cannot be exported, as it is no sequence classifier. {error}") from error
    except Exception as error:  # whatever its forward pass meets
        raise CompressionError(
            f"{name} cannot be exported: it does not read a batch of texts: {_describe_cause(error)}"
        ) from error
    if len(shape) != 2 or shape[0] != len(_EXAMPLE):
        raise CompressionError(
            f"{name} cannot be exported, as it is no sequence classifier: its logits have the shape {shape} for "
            f"{len(_EXAMPLE)} texts, not (texts, labels)."
        )
    named = count_outputs(model.config)
    if named not in (None, shape[1]):
        raise CompressionError(
            f"{name} cannot be exported: it returns {shape[1]} logits for a text, and its config names {named} labels; "
            "set id2label and label2id in the config so that they name each logit once."
        )


def _check_padding(model: nn.Module, inputs: GraphInputs) -> None:
    """Refuse a tokenizer that pads with an id which the model takes for text, or where the model reads no padding."""
    batch, name = inputs.padded_by_tokenizer()
    readable, index = fill_padding(model, batch)
    try:
        with padded_with(model, index):
            expected = get_logits(model(**readable))
        same = torch.allclose(get_logits(model(**batch)), expected, rtol=TOLERANCE, atol=TOLERANCE)
    except (IndexError, RuntimeError, ValueError):
        same = False
    if not same:
        raise CompressionError(
            f"{type(model).__name__} does not take what its tokenizer pads with, {name}, for padding, so that a text "
            "would have other logits beside a longer one; set the tokenizer's pad_token and the config's pad_token_id "
            "to one token, that of training."
        )
    if not inputs.pads_left:
        return
    for row, logits in zip(split_rows(readable), expected, strict=True):
        alone = get_logits(model(**{input: value[None] for input, value in row.items()}))[0]
        if not torch.allclose(alone, logits, rtol=TOLERANCE, atol=TOLERANCE):
            raise CompressionError(
                f"{type(model).__name__} counts positions from the left of a batch, where its tokenizer pads, so that "
                "a text would have other logits beside a longer one; set the tokenizer's padding_side to 'right'."
            )


def _export(module: nn.Module, inputs: GraphInputs) -> Any:
    shape = {0: Dim("batch"), 1: Dim("length", min=2)}
    with quietly():
        program = torch.onnx.export(
            module.eval(),
            (),
            kwargs=inputs.batch(_EXAMPLE),
            input_names=list(inputs.names),
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(inputs.names, shape),
            dynamo=True,
            verbose=False,
            optimize=True,
        )
    return program.model_proto  # type: ignore[union-attr] # None only without dynamo


def check_logits(file: Path, model: nn.Module, inputs: GraphInputs) -> float:
    """Compare the logits of a model file with those of the classifier, for texts of several lengths, padded or not.

    Returns:
        The largest difference.

    Raises:
        CompressionError: They differ by more than `TOLERANCE`, or are not finite; or the runtime cannot run the file.
    """
    differences = list[float]()
    try:
        session = open_model(file)
    except CompressionError as error:  # its folder is a temporary one
        cause = str(error).replace(str(file), "the exported model")
        raise CompressionError(f"{type(model).__name__} cannot be exported: {cause}") from error
    for batch in _checked_batches(model, inputs):
        try:
            expected = get_logits(model(**batch)).numpy()
        except (IndexError, RuntimeError, ValueError):  # Funnel does not read texts of a token
            continue
        rows, tokens = batch["input_ids"].shape
        shape = f"{rows} x {tokens} tokens"
        if not np.isfinite(expected).all():
            raise CompressionError(f"{type(model).__name__} returns NaN or infinity for a text of {tokens} tokens.")
        try:
            found = session.run(["logits"], {name: value.numpy() for name, value in batch.items()})[0]
        except Exception as error:  # the runtimes' own classes have no public base
            raise CompressionError(
                f"{type(model).__name__} cannot be exported: for {shape}, {describe_failure(file, error)}"
            ) from error
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
            apart = "their shape" if found.shape != expected.shape else f"{np.abs(found - expected).max():.2g}"
            raise CompressionError(
                f"{type(model).__name__} cannot be exported: for {shape} the logits of the exported model differ from "
                f"those of the original by {apart}."
            )
        differences.append(float(np.abs(found - expected).max()))
    if not differences:
        raise CompressionError(f"{type(model).__name__} cannot be exported: it reads none of the texts made up for it.")
    return max(differences)


def _checked_batches(model: nn.Module, inputs: GraphInputs) -> Iterator[Batch]:
    limit = max_tokens(model)
    longest = _LONG if limit is None else min(limit, _LONG)
    for lengths in (*_CHECKED, (longest,)):
        if limit is None or max(lengths) <= limit:
            yield inputs.batch(lengths)


def _describe_cause(error: BaseException) -> str:
    """Name what lies at the bottom of an error of torch's exporter, whose own message is a page."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"


def _name_nodes_by_module(model: Any) -> None:
    """Give nodes with a weight the name of their module, and remove where in which file each node was written."""
    weights = {one.name for one in model.graph.initializer if len(one.dims) > 1}
    taken: dict[str, int] = {}
    for node in model.graph.node:
        scopes = next((one.value for one in node.metadata_props if one.key == "pkg.torch.onnx.name_scopes"), "[]")
        modules = [name.removeprefix("model.") for name in ast.literal_eval(scopes)[:-1] if name.startswith("model.")]
        if modules and weights.intersection(node.input):
            taken[modules[-1]] = taken.get(modules[-1], 0) + 1
            node.name = f"{modules[-1]}#{taken[modules[-1]]}"
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        if hasattr(value, "metadata_props"):
            del value.metadata_props[:]
    del model.graph.metadata_props[:]
