"""Exports a classifier to a folder from which another runtime serves it."""

from __future__ import annotations

import copy
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfcompress.deploy.card import write_card
from hfcompress.deploy.export_report import ExportReport
from hfcompress.deploy.folder import GRAPH, Folder, describe_config, replacing_exported, write_record
from hfcompress.deploy.onnx_graph import GraphInputs, build_graph, check_logits
from hfcompress.deploy.runtime import import_exporter
from hfcompress.errors import CompressionError
from hfcompress.models.classifier import evaluation_mode, get_problem_type, max_tokens, unwrap
from hfcompress.models.tensors import check_has_values, stored_bytes
from hfcompress.models.weights import check_no_computed_weights, check_not_quantized
from hfcompress.storage.layout import write_labels
from hfcompress.validation import check_choice

_PACKAGES = ("hfcompress", "torch", "transformers", "onnx", "onnxruntime")


def export(
    model: nn.Module,
    directory: Folder,
    *,
    processing_class: PreTrainedTokenizerBase,
    format: Literal["onnx"] = "onnx",
    dtype: Literal["float32"] = "float32",
) -> ExportReport:
    """Export a classifier to a folder that ONNX Runtime serves, without torch, transformers or this library.

    The folder has the model, its config and tokenizer, a model card with the lines that run it, and a record of what
    was done. It replaces an older one at once, when all is written and checked: the logits of the exported model are
    compared with those of the classifier for texts of several lengths, padded and not.

    Args:
        model: A Hugging Face classifier, shrunken or not; it is not changed. One in half precision is exported from a
            copy in float32.
        directory: The folder to write.
        processing_class: The tokenizer, saved beside the model; the model file has the inputs that it makes.
        format: ``"onnx"``, by `torch.onnx.export`.
        dtype: ``"float32"``.

    Returns:
        What was written and checked.

    Raises:
        CompressionError: The model cannot be exported, its logits would differ, or the folder cannot be written; an old
            folder is unchanged.
        ImportError: onnx, onnxscript or onnxruntime is not installed: ``pip install 'hfcompress[onnx]'``.

    Example:
        ``report = hfc.export(model, "onnx/", processing_class=tokenizer); exported = hfc.load_exported("onnx/")``
    """
    check_choice("format", format, ("onnx",))
    check_choice("dtype", dtype, ("float32",))
    onnx = import_exporter()
    source = _check_exportable(model, processing_class)
    with replacing_exported(directory) as new:
        own = _float32_copy(source, processing_class)
        with evaluation_mode(own):
            inputs = GraphInputs(own, processing_class)
            onnx.save(build_graph(own, inputs), new / GRAPH)
            difference = check_logits(new / GRAPH, own, inputs)
        report = ExportReport(
            directory=str(directory),
            format=format,
            dtype=dtype,
            inputs=inputs.names,
            bytes=(stored_bytes(source), (new / GRAPH).stat().st_size),
            difference=difference,
            versions={package: version(package) for package in _PACKAGES},
        )
        own.config.save_pretrained(new)
        write_labels(new, own.config)
        processing_class.save_pretrained(new)
        write_card(new, Path(directory), own, processing_class, report)
        record = report.to_dict() | {"max_tokens": max_tokens(own), "config": describe_config(own.config)}
        write_record(new, record | {"inputs": {name: inputs.defaults.get(name) for name in inputs.names}})
    return report


def _check_exportable(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return the model without its wrapper, or refuse what cannot be exported."""
    inner = unwrap(model)
    name = type(inner).__name__
    if not isinstance(inner, PreTrainedModel):
        raise CompressionError(f"{name} is not a Hugging Face model, so it cannot be exported.")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise CompressionError(
            f"processing_class={tokenizer!r:.60} is not a tokenizer; pass the model's, which is saved beside it."
        )
    if getattr(inner, "_hf_peft_config_loaded", False) or any(hasattr(m, "base_layer") for m in inner.modules()):
        raise CompressionError("The model has a PEFT adapter; merge it first: model = model.merge_and_unload().")
    check_not_quantized(inner, "exported")
    check_no_computed_weights(inner, "exported")
    check_has_values(inner.named_parameters())
    get_problem_type(inner, "model")
    pads = inner.config.get_text_config().pad_token_id, tokenizer.pad_token_id
    if pads == (None, None):
        raise CompressionError(
            f"Neither the config of {name} nor the tokenizer has a padding token, so no batch could be read; set "
            "processing_class.pad_token, for example to processing_class.eos_token."
        )
    return inner


def _float32_copy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return a copy on the CPU that can be traced, with the id that the tokenizer pads with where it has none."""
    own = copy.deepcopy(model).cpu().float()
    own.config.dtype = torch.float32
    own.config.architectures = [type(own).__name__]
    vars(own.config).pop("quantization_config", None)  # a plan of shapes, which are in the graph
    text = own.config.get_text_config()
    if text.pad_token_id is None:
        text.pad_token_id = own.config.pad_token_id = tokenizer.pad_token_id
    return own
