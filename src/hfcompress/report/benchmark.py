"""Measures the size, time, FLOPs, memory and quality of models; several models in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hfcompress.errors import CompressionError
from hfcompress.models.classifier import (
    check_model_kind,
    count_outputs,
    evaluation_mode,
    get_config,
    get_logits,
    max_tokens,
    unwrap,
)
from hfcompress.models.exported import ExportedClassifier, ExportedModule, as_module
from hfcompress.models.inputs import Batch, Examples, check_columns, dummy_inputs, read_examples
from hfcompress.models.labels import LABELS, check_class_names, label_order
from hfcompress.models.padding import reading, without_padding
from hfcompress.models.plain_weights import quantized_weight
from hfcompress.models.profiling import count_flops, keep_freed_memory, peak_bytes, synchronize
from hfcompress.models.tensors import (
    check_has_values,
    count_nonzero,
    is_torchao,
    memory_bytes,
    packed_tensors,
    stored_bytes,
    stored_tensors,
    tensor_bytes,
    wrapped_tensors,
)
from hfcompress.models.tokenizers import check_tokenizer, encode_texts
from hfcompress.models.weights import select_matrices
from hfcompress.progress import track
from hfcompress.report.comparison import Comparison
from hfcompress.report.measurements import Measurement
from hfcompress.report.quality import check_labels, common_problem, compare_with_reference, score
from hfcompress.report.sparsity import make_report
from hfcompress.report.times import ForwardPass
from hfcompress.validation import check_count

_WARM_UP = 3  # rounds that are not counted

Inputs = Mapping[str, Tensor] | Sequence[Mapping[str, Any]] | Any  # a batch of tensors, or a sequence of rows


def measure(
    model: nn.Module | ExportedClassifier,
    inputs: Inputs | None = None,
    *,
    batch_size: int | Sequence[int] = 16,
    length: int | Sequence[int] | None = None,
    repeats: int = 20,
    processing_class: PreTrainedTokenizerBase | None = None,
    reference: nn.Module | ExportedClassifier | None = None,
) -> Measurement:
    """Measure one model. Its weights, gradients and mode are not changed.

    Args:
        model: A Hugging Face classifier, or an exported one (see `load_exported`), of which there are no counts of
            parameters, zeros and FLOPs and no peak memory.
        inputs: Inputs of the model: tensors with one row an example, as a tokenizer returns them with
            ``return_tensors="pt"``; or a data set, a sequence of rows each with ``input_ids``; or a sequence of texts,
            of pairs of texts, or of rows with ``text`` (and ``text_pair``), which the tokenizer truncates to what the
            model reads. With ``"labels"``, the quality
            of the predictions for all examples is measured: class indices, for a multi-label model 1 or 0 for each
            label, for a regression model numbers. Without inputs, and without a length, only the size is measured.
        batch_size: Examples of the timed batch, or several numbers to time several batches.
        length: Tokens of each timed text, or several numbers; the texts are dummy inputs without padding. If None, the
            first rows of the inputs are timed, with their padding.
        repeats: Number of timed passes of each batch, after three that warm up; fewer than eight cannot show a
            difference.
        processing_class: Tokenizer that encodes texts, and pads the rows of a timed batch. Without one, rows are padded
            on the right with the model's ``pad_token_id``. The quality is measured without padding: rows of one length
            are read together.
        reference: Another model for the same inputs, with whose predictions those of the model are compared.

    Returns:
        The measurement.

    Raises:
        CompressionError: The inputs are empty, of different lengths, longer than the model reads or not readable; a
            label is not one for the model's problem type; a number is not positive; or the model is on the meta device.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
        >>> model = BertForSequenceClassification(config)
        >>> ids = torch.ones(4, 8, dtype=torch.long)
        >>> result = measure(model, {"input_ids": ids, "labels": torch.zeros(4, dtype=torch.long)})
        >>> result.flops, result.examples
        (565760, 4)
    """
    models, own_inputs, tokenizers = {"model": model}, {"model": inputs}, {"model": processing_class}
    if reference is not None:
        _check_models({"reference": reference})
    other = None if reference is None else as_module("reference", reference)
    return _compare(models, own_inputs, tokenizers, batch_size, length, repeats, other).first


def compare(
    models: Mapping[str, nn.Module | ExportedClassifier],
    inputs: Inputs | Mapping[str, Inputs] | None = None,
    *,
    batch_size: int | Sequence[int] = 16,
    length: int | Sequence[int] | None = None,
    repeats: int = 20,
    processing_class: PreTrainedTokenizerBase | Mapping[str, PreTrainedTokenizerBase] | None = None,
) -> Comparison:
    """Measure several models side by side, in turns, so that a change of the machine's speed affects all of them.

    Each round times every model once, in the reverse order of the previous round. Ratios are to the first model, with
    whose predictions those of the others are compared (agreement, and McNemar's test of classes or a permutation test
    of several labels or numbers). The models are not changed.

    Args:
        models: Models by name, exported ones among them if there are any.
        inputs: As for `measure`, for all models; or by the same names where each model has its own tokenizer. The
            predictions are compared where the labels are the same, example by example.
        batch_size: As for `measure`.
        length: As for `measure`.
        repeats: Number of timed rounds.
        processing_class: As for `measure`, for all models or by the same names.

    Returns:
        The measurements by name.

    Raises:
        CompressionError: There are no models, one of them has no inputs, those with labels have different problem
            types, or as for `measure`.

    Example:
        ``print(compare({"BERT": model, "pruned 20 %": pruned}, tokenizer(texts, padding=True, return_tensors="pt")))``
    """
    if not isinstance(models, Mapping):
        raise CompressionError(
            f"models is a {type(models).__name__}, and models by name are needed: {{'full': model, 'pruned': other}}."
        )
    if not models:
        raise CompressionError("models is empty; pass at least one, as {name: model}.")
    by_name = isinstance(inputs, Mapping) and (
        not set(models).isdisjoint(inputs) or any(isinstance(value, Mapping) for value in inputs.values())
    )
    own_inputs = _by_model("inputs", inputs, models, by_name)
    tokenizers = _by_model("processing_class", processing_class, models, isinstance(processing_class, Mapping))
    return _compare(models, own_inputs, tokenizers, batch_size, length, repeats)


def packed_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's distinct tensors, each stored densely or packed, whichever is smaller.

    Packed, a tensor takes its non-zero values and their places. The places take at least the binary entropy of the
    density, in bits, for each number, which a good coder comes close to.

    Args:
        model: Any module.

    Example:
        >>> layer = nn.Linear(100, 10, bias=False)
        >>> layer.weight.data[:9] = 0  # 100 of 1000 are not zero; their places take 0.469 bits a number
        >>> packed_bytes(layer)
        459
    """
    total = 0
    for tensor in stored_tensors(model):
        size, kept, dense = tensor.numel(), count_nonzero(tensor), tensor_bytes(tensor)
        entropy = -sum(p * math.log2(p) for p in (kept / size, 1 - kept / size) if p) if size else 0.0
        packed = math.ceil(kept * dense / size) + math.ceil(size * entropy / 8) if size else 0
        total += min(dense, packed)
    return total


def _compare(
    given: Mapping[str, nn.Module | ExportedClassifier],
    inputs: Mapping[str, Inputs | None],
    tokenizers: Mapping[str, PreTrainedTokenizerBase | None],
    batch_size: int | Sequence[int],
    length: int | Sequence[int] | None,
    repeats: int,
    reference: nn.Module | None = None,
) -> Comparison:
    """Measure models whose inputs and tokenizers are given by name."""
    sizes = _read_counts("batch_size", batch_size)
    lengths = [None] if length is None else _read_counts("length", length)
    check_count("repeats", repeats)
    _check_models(given)
    for tokenizer in tokenizers.values():
        check_tokenizer(tokenizer)
    models = {name: as_module(name, model) for name, model in given.items()}
    for name, model in models.items():
        _check_model(name, model, max(tokens or 0 for tokens in lengths))
    readable = {name: model for name, model in models.items() if inputs[name] is not None}
    examples = {name: _read_examples(name, model, inputs[name], tokenizers[name]) for name, model in readable.items()}

    with ExitStack() as padding:
        for name, model in [*models.items(), *([] if reference is None else [("model", reference)])]:
            if tokenizers[name] is not None:  # so that what has no config.pad_token_id can be padded
                padding.enter_context(without_padding(model))
        return _measure_all(models, inputs, tokenizers, examples, sizes, lengths, int(repeats), reference)


def _measure_all(
    models: Mapping[str, nn.Module],
    inputs: Mapping[str, Inputs | None],
    tokenizers: Mapping[str, PreTrainedTokenizerBase | None],
    examples: Mapping[str, Examples],
    sizes: Sequence[int],
    lengths: Sequence[int | None],
    repeats: int,
    reference: nn.Module | None,
) -> Comparison:
    """Measure models whose examples were read."""
    figures = {name: _measure_size(model) for name, model in models.items()}
    for name, quality in _measure_quality(models, inputs, tokenizers, examples, max(sizes), reference).items():
        figures[name] |= quality
    passes: dict[str, list[ForwardPass]] = {name: [] for name in models}
    for size, tokens in product(sizes, lengths):
        if tokens is None:
            count = min([size, *(len(own.lengths) for own in examples.values())])  # the same of each model
            batches = {name: own.take(range(count)) for name, own in examples.items()}
        else:
            batches = {name: dummy_inputs(model, tokens, size) for name, model in models.items()}
        times = _time_rounds(models, batches, repeats)
        for name, batch in batches.items():
            flops, peak = _count_cost(models[name], batch)
            rows, columns = (*batch.get("input_ids", next(iter(batch.values()))).shape, 1)[:2]
            passes[name].append(ForwardPass(rows, columns, flops, peak, tuple(times[name])))
    return Comparison({name: Measurement(**figures[name], passes=tuple(passes[name])) for name in models})


def _check_models(models: Mapping[str, object]) -> None:
    """Refuse what is neither a classifier nor exported, by its name."""
    for name, model in models.items():
        if not isinstance(name, str):
            raise CompressionError(f"The model {name!r:.40} has no text for a name; call it {str(name)!r:.40}.")
        if isinstance(model, type) or not isinstance(model, ExportedClassifier):
            check_model_kind(model, name if name in ("model", "reference") else f"models[{name!r}]")


def _by_model(argument: str, given: Any, models: Collection[str], by_name: bool) -> Mapping[str, Any]:
    """Return what an argument gives to each model, whether by name or to all of them."""
    if not by_name:
        return dict.fromkeys(models, given)
    for name in models:
        if name not in given:
            raise CompressionError(f"{argument} has none for {name!r}; it has {', '.join(map(repr, given))}.")
    return cast(Mapping[str, Any], given)


def _read_counts(argument: str, given: Any) -> list[int]:
    """Read one or several positive numbers."""
    counts = list(given) if isinstance(given, Sequence) and given and not isinstance(given, str) else [given]
    for count in counts:
        check_count(argument, count)
    return [int(count) for count in counts]


def _check_model(name: str, model: nn.Module, longest: int) -> None:
    """Refuse a model that cannot be measured, or that cannot read dummy texts of this many tokens."""
    check_has_values(model.named_parameters(), f"The model {name!r} cannot be measured: ")
    if next(model.parameters(), None) is None:
        raise CompressionError(f"The model {name!r} has no parameters, so it cannot be measured.")
    if longest and not hasattr(unwrap(model), "get_input_embeddings"):
        raise CompressionError(f"No dummy text can be made for the model {name!r}; leave out length= and pass inputs.")
    limit = max_tokens(model)
    if limit is not None and longest > limit:
        raise CompressionError(f"length={longest} is more than the {limit} tokens that the model {name!r} reads.")


def _read_examples(name: str, model: nn.Module, inputs: Inputs, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
    owner = f"the inputs for {name!r}"
    check_class_names(owner, model, inputs)
    encoded = encode_texts(owner, model, inputs, tokenizer)
    if isinstance(encoded, Sequence):
        check_columns(owner, encoded, LABELS)
    return read_examples(owner, model, encoded, tokenizer)


def _count_cost(model: nn.Module, batch: Batch) -> tuple[int | None, int | None]:
    """Return the FLOPs and the bytes at the peak of a forward pass; what another runtime does is not known."""
    if isinstance(model, ExportedModule):
        return None, None
    uncounted = any(map(is_torchao, model.parameters()))  # the products of integers that its kernels compute
    return None if uncounted else count_flops(model, batch), peak_bytes(model, batch)


def _measure_size(model: nn.Module) -> dict[str, Any]:
    if isinstance(model, ExportedModule):
        size, dtype = model.exported.stored_bytes, str(getattr(model.exported, "dtype", "unknown"))
        unknown = dict.fromkeys(("parameters", "nonzeros", "zeros", "sparsity", "bytes_in_memory"))
        sizes = {"bytes": size, "bytes_packed": size, "device": "cpu", "dtype": dtype}
        return unknown | sizes | {"threads": torch.get_num_threads()}
    selection = select_matrices(model)
    report, packed = make_report(model, selection), packed_tensors(model)
    quantized = [quantized_weight(model.get_submodule(name)) for name in selection.quantized]
    prunable = report.weights + sum(weight.numel() for weight in quantized)
    zeros = report.zeros + sum(weight.numel() - count_nonzero(weight) for weight in quantized)
    device = next(model.parameters()).device
    floats = (p for p in model.parameters() if p.is_floating_point())
    dtypes = {str(part.dtype).removeprefix("torch.") for one in (*floats, *packed) for part in wrapped_tensors(one)}
    return {
        "parameters": report.whole_model.weights + sum(tensor.numel() for tensor in packed),
        "nonzeros": report.whole_model.weights - report.whole_model.zeros + sum(map(count_nonzero, packed)),
        "zeros": zeros,
        "sparsity": zeros / prunable if prunable else 0.0,
        "bytes": stored_bytes(model),
        "bytes_packed": packed_bytes(model),
        "bytes_in_memory": memory_bytes([*model.parameters(), *model.buffers(), *packed]),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": ", ".join(sorted(dtypes)),
        "threads": torch.get_num_threads(),
    }


def _measure_quality(
    models: Mapping[str, nn.Module],
    inputs: Mapping[str, Inputs | None],
    tokenizers: Mapping[str, PreTrainedTokenizerBase | None],
    examples: Mapping[str, Examples],
    batch_size: int,
    reference: nn.Module | None,
) -> dict[str, dict[str, Any]]:
    """Return the figures of quality of each model whose examples have labels."""
    first = next(iter(models))
    labelled = {name: models[name] for name, own in examples.items() if own.labels is not None}
    problem = common_problem(labelled if reference is None or not labelled else labelled | {"reference": reference})
    own_labels = {
        name: check_labels(name, own.labels, problem) for name, own in examples.items() if own.labels is not None
    }
    one_output = count_outputs(get_config(models[first])) == 1  # whatever its name is
    figures: dict[str, dict[str, Any]] = {}
    outputs: dict[str, tuple[Tensor, Tensor]] = {}  # logits and labels, with the classes in the first model's order
    for name in labelled:
        shared = inputs[name] is inputs[first]
        roles = (f"model {first!r}", f"model {name!r}")
        order = None if one_output else label_order(models[first], models[name], roles, strict=shared)
        if order is not None and shared:
            raise CompressionError(
                f"The models {first!r} and {name!r} have their classes in different orders, so the same labels mean "
                "different classes to them; pass inputs={name: inputs of the model}, each with its own labels."
            )
        logits, labels = predict_logits(name, models[name], examples[name], batch_size), own_labels[name].cpu()
        figures[name] = score(name, logits, labels, problem)
        if order is not None:
            single = problem == "single_label_classification"
            labels = torch.tensor(order).argsort()[labels] if single else labels[:, order]
            logits = logits[:, order]
            figures[name] = score(name, logits, labels, problem)  # F1 is that of class 1 of the first model
        outputs[name] = logits, labels
        if reference is not None:
            same = _read_examples("reference", reference, inputs[name], tokenizers[name])
            expected = predict_logits("reference", reference, same, batch_size)
            roles = (f"model {name!r}", "reference")
            order = None if one_output else label_order(models[name], reference, roles, strict=True)
            expected = expected if order is None else expected[:, order]
        elif name != first and first in outputs and torch.equal(outputs[first][1], labels):
            expected = outputs[first][0]
        else:
            continue
        figures[name] |= compare_with_reference(name, expected, logits, labels, problem)
    return figures


def predict_logits(name: str, model: nn.Module, examples: Examples, batch_size: int) -> Tensor:
    """Return the logits of all examples, in their order, on the CPU in float64."""
    order, logits = [], []
    total = -(-len(examples.lengths) // batch_size)
    with evaluation_mode(model):
        for indices, batch in track(examples.batches(batch_size), f"measuring {name}", total):
            order += indices
            with reading(model, batch):
                logits.append(get_logits(_forward(name, model, batch)).cpu())
    return torch.cat(logits)[torch.tensor(order).argsort()].double()


def _forward(name: str, model: nn.Module, batch: Batch) -> Any:
    try:
        return model(**batch)
    except (TypeError, ValueError) as error:  # such as GPT-2's without a padding token, or an input of another name
        remedy = "" if "padding token" not in str(error) else " Pass the tokenizer, or set config.pad_token_id."
        raise CompressionError(f"The model {name!r} does not read the inputs: {error}{remedy}") from error


def _forward_timed(name: str, model: nn.Module, batch: Batch) -> None:
    try:
        _forward(name, model, batch)
    except torch.OutOfMemoryError:
        raise
    except (IndexError, RuntimeError) as error:  # such as Funnel's at short texts, or of int8 embeddings at several
        shape = " x ".join(map(str, batch.get("input_ids", next(iter(batch.values()))).shape[:2]))
        raise CompressionError(
            f"The model {name!r} does not read the timed batch, of shape {shape}: {str(error).rstrip('.')}. Time other "
            "batches (batch_size=, length=), such as one text, or pass no inputs to measure the size only."
        ) from error


def _time_rounds(models: Mapping[str, nn.Module], batches: Mapping[str, Batch], repeats: int) -> dict[str, list[float]]:
    """Return the milliseconds of each model's passes, timed in rounds; each round reverses the order of the models."""
    times: dict[str, list[float]] = {name: [] for name in batches}
    order = list(batches)
    keep_freed_memory()
    for _ in track(range(_WARM_UP + repeats), "timing"):
        for name in order:
            model, batch = models[name], batches[name]
            device = next(iter(batch.values())).device
            with evaluation_mode(model):
                synchronize(device)
                start = time.perf_counter()
                _forward_timed(name, model, batch)
                synchronize(device)
                times[name].append(1000 * (time.perf_counter() - start))
        order.reverse()
    return {name: rounds[_WARM_UP:] for name, rounds in times.items()}
