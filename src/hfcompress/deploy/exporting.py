"""Exports a classifier to a folder from which another runtime serves it."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfcompress.compat import package_version, processor_features
from hfcompress.deploy.card import write_card
from hfcompress.deploy.export_report import ExportReport
from hfcompress.deploy.exported_model import ExportedModel
from hfcompress.deploy.folder import Folder, describe_config, replacing_exported, write_record
from hfcompress.deploy.formats import FORMATS, count_bytes
from hfcompress.deploy.held_out import HeldOut, split_dataset
from hfcompress.deploy.onnx_candidates import Candidates
from hfcompress.deploy.onnx_file import save_model
from hfcompress.deploy.onnx_graph import GraphInputs, build_graph, check_logits
from hfcompress.deploy.openvino_candidates import OpenVinoCandidates
from hfcompress.deploy.openvino_model import convert, import_nncf, import_openvino
from hfcompress.deploy.quality_gate import choose
from hfcompress.deploy.quantization import Machine, weight_bits
from hfcompress.deploy.runtime import import_exporter
from hfcompress.deploy.speed import ALL_INT8, is_slower, label, time_models
from hfcompress.deploy.transformers_runner import write_manifest
from hfcompress.errors import CompressionError
from hfcompress.models.classifier import check_model_kind, evaluation_mode, get_problem_type, max_tokens, unwrap
from hfcompress.models.exported import ExportedModule
from hfcompress.models.heads_and_neurons import find_linear_paths
from hfcompress.models.inputs import check_dataset, check_ids, read_examples
from hfcompress.models.labels import check_class_names, label_maps
from hfcompress.models.padding import lacks_pad_id, pad_like
from hfcompress.models.plain_weights import check_no_adapter, check_no_computed_weights, check_not_quantized
from hfcompress.models.tensors import check_has_values, stored_bytes
from hfcompress.models.tokenizers import check_tokenizer, encode_texts
from hfcompress.models.weights import check_one_attention
from hfcompress.storage.layout import write_labels
from hfcompress.validation import check_choice, check_count, check_fraction

_PACKAGES = ("hfcompress", "torch", "transformers")


def export(
    model: nn.Module,
    directory: Folder,
    *,
    processing_class: PreTrainedTokenizerBase,
    format: Literal["onnx", "openvino"] = "onnx",
    dtype: Literal["float32", "int8"] = "float32",
    dataset: Any = None,
    max_drop: float = 0.01,
    static: bool | None = None,
    equalize: bool = True,
    machine: Machine = "any",
    repeats: int = 8,
) -> ExportReport:
    """Export a classifier to a folder that ONNX Runtime or OpenVINO serves, without torch or this library.

    The folder has the model, its config and tokenizer, a model card with the lines that run it, and a record of what
    was done. It replaces an older one at once, when all is written and checked: the logits of the exported model are
    compared with those of the classifier for texts of several lengths, padded and not.

    An int8 model must pass a gate. First all weights are int8, embeddings included; then all but the embeddings; then
    all but the modules whose output suffers most, ranked on one half of the rows by what leaving each in float32
    repairs. The first that passes on the other half is written: its accuracy is at most ``max_drop`` below that of the
    float32 model, and it predicts 95 % of the rows (or 1 - ``max_drop``) as that does, whether texts are read alone or
    16 at once. Before that, the half that ranks decides whether channels are equalized, by factors of SmoothQuant (Xiao
    et al. 2023) that move between weights; the float32 model stays the same.

    Args:
        model: A Hugging Face classifier, shrunken or not; it is not changed. One in half precision is exported from a
            copy in float32.
        directory: The folder to write.
        processing_class: The tokenizer, saved beside the model; the model file has the inputs that it makes.
        format: ``"onnx"``, by `torch.onnx.export`; or ``"openvino"``, which OpenVINO makes of that.
        dtype: ``"float32"``, or ``"int8"``: weights quantized by columns, activations while the model runs, by
            onnxruntime.quantization, or by nncf for OpenVINO.
        dataset: Rows with ``input_ids``, or texts (``text``, ``text_pair``), and ``labels`` that no training has seen;
            needed for int8. Their lengths are those that are timed.
        max_drop: The loss that an int8 model may have on these rows, in accuracy (label accuracy of a multi-label
            model, R2 of a regression). Without int8 it says nothing, nor do ``equalize`` and ``machine``.
        static: Whether the scales of int8 activations are measured, on rows that do not judge, by their least and
            largest values; else they are computed while the model runs. None is what is fastest: for ``"onnx"`` they
            are computed; for ``"openvino"`` they are measured, and computed only if no such model passes, whole or with
            float32 embeddings. For int8 alone.
        equalize: Whether channels are equalized before they become int8, if that helps.
        machine: What the folder is made for. ``"any"``: weights of 7 bits, which no processor saturates, and int8
            is written also if it is slower here. ``"this"``: 8 bits where this processor has VNNI or AMX, and float32
            if int8 is slower than that.
        repeats: Rounds in which torch and the runtime are timed, texts alone and 16 at once; 0 for none.

    Returns:
        What was written, checked and timed.

    Raises:
        CompressionError: The model cannot be exported, its logits would differ, no int8 model passes, or the folder
            cannot be written; an old folder is unchanged.
        ImportError: A package is not installed: ``pip install 'hfcompress[onnx]'`` or ``'hfcompress[openvino]'``.

    Example:
        ``report = hfc.export(model, "onnx/", processing_class=tokenizer); exported = hfc.load_exported("onnx/")``
    """
    check_choice("format", format, tuple(FORMATS))
    check_choice("dtype", dtype, ("float32", "int8"))
    check_choice("machine", machine, ("any", "this"))
    check_choice("static", static, (None, True, False))
    check_fraction("max_drop", max_drop, "the loss of accuracy that int8 may have")
    check_count("repeats", repeats, least=0)
    if static is not None and dtype != "int8":
        raise CompressionError(f"static={static} is about int8 activations; pass dtype='int8' too, or leave it out.")
    if machine == "this" and dtype == "int8" and not repeats:
        raise CompressionError(
            "machine='this' writes float32 where int8 is slower, which repeats=0 does not time; leave repeats= out, or "
            "choose machine='any'."
        )
    if dataset is not None:
        check_dataset(dataset)
    packages = _import_packages(format, dtype)
    source = _check_exportable(model, processing_class)
    if dataset is not None:
        check_class_names("dataset", source, dataset)
        dataset = dataset if hasattr(dataset, "__len__") else [*dataset]
        dataset = encode_texts("dataset", source, dataset, processing_class)
    halves = split_dataset(dataset) if dtype == "int8" else None
    texts = [processing_class("a")["input_ids"]]
    made = [index for index in (*texts[0], processing_class.pad_token_id) if index is not None]
    check_ids("The tokenizer", source, [made] if made else [])
    if dataset is not None:  # what cannot be read is refused before the export
        rows = dataset if halves is None else [*halves[0], *halves[1]]
        examples = read_examples("dataset", source, rows, processing_class)
        texts += [batch["input_ids"][0].tolist() for _, batch in examples.batches(1)]
        check_ids("A row of dataset", source, texts[1:])
    _check_ends(source, processing_class, texts)
    with replacing_exported(directory) as new, tempfile.TemporaryDirectory(dir=new, prefix="work-") as place:
        work, own = Path(place), _float32_copy(source, processing_class)
        with evaluation_mode(own):
            inputs = GraphInputs(own, processing_class)
            graph = build_graph(own, inputs)
            file = work / FORMATS[format].graph
            save_model(graph, work / FORMATS["onnx"].graph)
            if format == "openvino":
                convert(work / FORMATS["onnx"].graph, file)
            difference = check_logits(file, own, inputs)
        record = {
            "max_tokens": max_tokens(own),
            "config": describe_config(own.config),
            "inputs": {name: inputs.defaults.get(name) for name in inputs.names},
            "limits": inputs.limits,
        }

        def open_model(file: Path, kind: str) -> ExportedModel:
            return ExportedModel(file, own.config, record | {"dtype": kind})

        float32, int8 = label(format, "float32"), label(format, "int8")
        models, gate, bits, written = {float32: open_model(file, "float32")}, None, None, float32
        if halves is not None:
            kind = Candidates if format == "onnx" else OpenVinoCandidates
            candidates = kind(graph, work, weight_bits(machine), lambda file: open_model(file, "int8"))
            held_out = HeldOut(ExportedModule(models[float32]), processing_class, *halves)
            if static or (static is None and format == "openvino"):
                candidates.calibrate(models[float32], held_out, else_dynamic=static is None)
            paths = find_linear_paths(own) if equalize else None
            gate = choose(candidates, models[float32], held_out, max_drop, paths)
            models[int8], written, bits = open_model(work / "int8" / file.name, "int8"), int8, candidates.bits
            if gate.left_in_float32:
                models[ALL_INT8] = candidates.build([], "all")
        timed = dataset if halves is None else halves[1]
        times = time_models(own, models, timed, processing_class, repeats) if repeats else None
        if machine == "this" and times is not None and int8 in models and is_slower(times, int8, float32):
            written, bits = float32, None
        for found in models[written].files:
            os.replace(found, new / found.name)
        shutil.rmtree(work)
        report = ExportReport(
            directory=str(directory),
            format=format,
            dtype=models[written].dtype,
            inputs=inputs.names,
            bytes=(stored_bytes(source), count_bytes(new / FORMATS[format].graph)),
            difference=difference,
            weight_bits=bits,
            static=gate is not None and gate.static and models[written].dtype == "int8",
            gate=gate,
            times=times,
            processor=tuple(processor_features()),
            versions={package: package_version(package) for package in packages},
        )
        own.config.save_pretrained(new)
        write_labels(new, own.config)
        processing_class.save_pretrained(new)
        write_manifest(new, type(own).__name__, report)
        write_card(new, Path(directory), own, processing_class, report, inputs.names)
        write_record(new, report.to_dict() | record)
    return report


def _import_packages(format: str, dtype: str) -> list[str]:
    """Return the names of all packages that write a model, after checking that they are installed."""
    import_exporter()
    always, for_int8 = FORMATS[format].packages
    if format == "openvino":
        import_openvino()
        if dtype == "int8":
            import_nncf()
    return [*_PACKAGES, *always, *(for_int8 if dtype == "int8" else ())]


def _check_exportable(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return the model without its wrapper, or refuse what cannot be exported."""
    check_model_kind(model)
    check_tokenizer(tokenizer)
    check_no_adapter(model)
    inner = unwrap(model)
    name = type(inner).__name__
    if not isinstance(inner, PreTrainedModel):
        raise CompressionError(f"{name} is not a Hugging Face model, so it cannot be exported.")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise CompressionError(
            f"processing_class={tokenizer!r:.60} is not a tokenizer; pass the model's, which is saved beside it."
        )
    check_not_quantized(inner, "exported")
    check_no_computed_weights(inner, "exported")
    check_one_attention(inner)
    label_maps(inner.config)  # which are written at the end
    check_has_values(inner.named_parameters())
    get_problem_type(inner, "model")
    pads = inner.config.get_text_config().pad_token_id, tokenizer.pad_token_id
    if pads == (None, None):
        raise CompressionError(
            f"Neither the config of {name} nor the tokenizer has a padding token, so no batch could be read; set "
            "processing_class.pad_token, for example to processing_class.eos_token."
        )
    return inner


def _check_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[list[int]]) -> None:
    """Refuse texts that end with padding which the model reads, as it has no id of padding, and its copy would not."""
    pad = tokenizer.pad_token_id
    if lacks_pad_id(model) and pad is not None and any(ids[-1:] == [pad] for ids in texts):
        raise CompressionError(
            f"The config of {type(model).__name__} has no pad_token_id, and the tokenizer pads with "
            f"{tokenizer.pad_token!r}, which ends texts too: the exported model would not read it there. Set "
            f"model.config.pad_token_id={pad} if it was trained so; if not, give the tokenizer another pad_token."
        )


def _float32_copy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return a copy on the CPU that can be traced, with the id that the tokenizer pads with where it has none."""
    own = copy.deepcopy(model).cpu().float()
    own.config.dtype = torch.float32
    own.config.architectures = [type(own).__name__]
    vars(own.config).pop("quantization_config", None)  # a plan of shapes, which are in the graph
    pad_like(own, tokenizer)
    if str(own.config._attn_implementation).startswith(("flash_", "flex_")):  # kernels that no exporter expresses
        own.set_attn_implementation("eager")
    return own
