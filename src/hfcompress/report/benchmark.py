"""Measures what a model costs and how well it answers; several models in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from hfcompress.errors import CompressionError
from hfcompress.metrics import calibration_error, f1_score
from hfcompress.models.classifier import evaluation_mode, get_config, get_logits, label_order, max_tokens, unwrap
from hfcompress.models.inputs import Batch, Examples, dummy_inputs, read_examples
from hfcompress.models.profiling import count_flops, peak_bytes, synchronize
from hfcompress.models.tensors import check_has_values, distinct, memory_bytes, stored_bytes
from hfcompress.models.weights import select_matrices
from hfcompress.report.comparison import Comparison
from hfcompress.report.intervals import mcnemar, wilson_interval
from hfcompress.report.measurements import ForwardPass, Measurement
from hfcompress.report.sparsity import make_report
from hfcompress.validation import check_count, is_integer

_WARM_UP = 3  # rounds that are not counted

# A batch of tensors, or a sequence of rows.
Inputs = Mapping[str, Tensor] | Sequence[Mapping[str, Any]] | Any


def measure(
    model: nn.Module,
    inputs: Inputs | None = None,
    *,
    batch_size: int | Sequence[int] = 16,
    length: int | Sequence[int] | None = None,
    repeats: int = 20,
    processing_class: PreTrainedTokenizerBase | None = None,
    reference: nn.Module | None = None,
) -> Measurement:
    """Measure one model. It is not changed: its mode and gradients are as before.

    Args:
        model: A Hugging Face classifier.
        inputs: What the model reads: tensors with one row an example, as a tokenizer returns them with
            ``return_tensors="pt"``; or a data set, a sequence of rows each with ``input_ids``. With class indices under
            ``"labels"``, the quality of the answers to all of them is measured. Without inputs, and without a length,
            only the size is measured.
        batch_size: Examples of the batch that is timed, or several numbers to time several batches.
        length: Tokens of the texts that are timed, or several numbers. The texts are made up, without padding. If None,
            the first rows of the inputs are timed as they are.
        repeats: How often each batch is timed, after three passes that warm up; a difference needs eight to be shown.
        processing_class: The tokenizer that pads the rows of a data set. Without it, they are padded on the right with
            the model's ``pad_token_id``.
        reference: Another model, which reads the same inputs; the agreement with its answers is measured.

    Returns:
        The measurement.

    Raises:
        CompressionError: The inputs are empty, of different lengths or cannot be read, labels are no classes of the
            model, a number is not positive, or the model is on the meta device.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
        >>> model = BertForSequenceClassification(config)
        >>> ids = torch.ones(4, 8, dtype=torch.long)
        >>> result = measure(model, {"input_ids": ids, "labels": torch.zeros(4, dtype=torch.long)})
        >>> result.flops, result.examples
        (565760, 4)
    """
    options: Any = {"batch_size": batch_size, "length": length, "repeats": repeats}
    tokenizers = None if processing_class is None else {"model": processing_class}
    found = _compare({"model": model}, {"model": inputs}, processing_class=tokenizers, reference=reference, **options)
    return found.rows["model"]


def compare(
    models: Mapping[str, nn.Module],
    inputs: Inputs | Mapping[str, Inputs] | None = None,
    *,
    batch_size: int | Sequence[int] = 16,
    length: int | Sequence[int] | None = None,
    repeats: int = 20,
    processing_class: PreTrainedTokenizerBase | Mapping[str, PreTrainedTokenizerBase] | None = None,
) -> Comparison:
    """Measure several models side by side, in turns: a machine's change of pace hits all alike.

    Each round times every model once, the next round in the opposite order. Ratios are to the first model, and its
    answers are what the others' are compared with (agreement, McNemar's test).

    Args:
        models: Models by name.
        inputs: As for `measure`, for all models; or by the same names where each has its own tokenizer. The answers are
            compared where the labels are the same, example by example.
        batch_size: As for `measure`.
        length: As for `measure`.
        repeats: Rounds of timing.
        processing_class: As for `measure`, for all models or by the same names.

    Returns:
        The measurements by name.

    Raises:
        CompressionError: No models, inputs missing for one of them, or as for `measure`.

    Example:
        ``print(compare({"BERT": model, "pruned 20 %": pruned}, tokenizer(texts, padding=True, return_tensors="pt")))``
    """
    if not models:
        raise CompressionError("models is empty; pass at least one, as {name: model}.")
    own: Any = inputs
    if not (isinstance(own, Mapping) and (set(own) & set(models) or any(isinstance(v, Mapping) for v in own.values()))):
        own = dict.fromkeys(models, inputs)
    tokenizers: Any = processing_class
    if not isinstance(tokenizers, Mapping):
        tokenizers = dict.fromkeys(models, processing_class)
    for name in models:
        for argument, given in (("inputs", own), ("processing_class", tokenizers)):
            if name not in given:
                raise CompressionError(f"{argument} has none for {name!r}; it has {', '.join(map(repr, given))}.")
    return _compare(
        models, own, batch_size=batch_size, length=length, repeats=repeats, processing_class=tokenizers, reference=None
    )


def packed_bytes(model: nn.Module) -> int:
    """Bytes of a model's distinct tensors, each stored densely or packed, whichever is smaller.

    Packed, a tensor takes its non-zero values and their places. The places cost at least the binary entropy of the
    density, in bits, for each number, which a good coder comes close to.

    Args:
        model: Any module.

    Example:
        >>> layer = nn.Linear(100, 10, bias=False)
        >>> layer.weight.data[:9] = 0  # of 1000, 100 are not zero, and 0.469 bits each say where they are
        >>> packed_bytes(layer)
        459
    """
    total = 0
    for tensor in distinct(model.state_dict().values()):
        size, kept = tensor.numel(), int(torch.count_nonzero(tensor))
        entropy = -sum(p * math.log2(p) for p in (kept / size, 1 - kept / size) if p) if size else 0.0
        packed = kept * tensor.element_size() + math.ceil(size * entropy / 8)
        total += min(size * tensor.element_size(), packed)
    return total


def _compare(
    models: Mapping[str, nn.Module],
    inputs: Mapping[str, Inputs | None],
    *,
    batch_size: int | Sequence[int],
    length: int | Sequence[int] | None,
    repeats: int,
    processing_class: Mapping[str, PreTrainedTokenizerBase | None] | None,
    reference: nn.Module | None,
) -> Comparison:
    sizes, lengths = _numbers("batch_size", batch_size), [None] if length is None else _numbers("length", length)
    (repeats,) = _numbers("repeats", [repeats])
    for name, model in models.items():
        _check(name, model, max(tokens or 0 for tokens in lengths))
    tokenizers = processing_class or {}
    examples = {
        name: _read_classes(name, model, inputs[name], tokenizers.get(name))
        for name, model in models.items()
        if inputs[name] is not None
    }

    fields = {name: _size(model) for name, model in models.items()}
    answers: dict[str, tuple[Tensor, Tensor]] = {}  # logits and labels
    for name, one in examples.items():
        if one.labels is None:
            continue
        first = next(iter(models))
        order = label_order(models[first], models[name])
        if order is not None and inputs[name] is inputs[first]:
            raise CompressionError(
                f"The models {first!r} and {name!r} have their classes in different orders, so the same labels mean "
                "different classes to them; pass inputs={name: inputs of the model}, each with its own labels."
            )
        labels = one.labels.cpu()
        logits = _logits(name, models[name], one, max(sizes))
        fields[name] |= _quality(name, models[name], logits, labels)
        if order is not None:  # from here on as the first model has them
            logits, labels = logits[:, order], torch.tensor(order).argsort()[labels]
        answers[name] = logits, labels
        if reference is not None:
            others = _read_classes("reference", reference, inputs[name], tokenizers.get(name))
            answered, places = _logits("reference", reference, others, max(sizes)), label_order(models[name], reference)
            fields[name] |= _against(answered if places is None else answered[:, places], logits, labels)
        elif len(answers) > 1 and first in answers and torch.equal(answers[first][1], labels):
            fields[name] |= _against(answers[first][0], logits, labels)

    passes: dict[str, list[ForwardPass]] = {name: [] for name in models}
    for size, tokens in product(sizes, lengths):
        batches: dict[str, Batch] = {}
        for name, model in models.items():
            if tokens is not None:
                batches[name] = dummy_inputs(model, tokens, size)
            elif name in examples:
                batches[name] = examples[name].take(range(min(size, len(examples[name].lengths))))
        times = _times({name: models[name] for name in batches}, batches, repeats)
        for name, batch in batches.items():
            flops, peak = count_flops(models[name], batch), peak_bytes(models[name], batch)
            ids = batch.get("input_ids", next(iter(batch.values())))
            rows, columns = (*ids.shape, 1)[:2]
            passes[name].append(ForwardPass(rows, columns, flops, peak, tuple(times[name])))
    return Comparison({name: Measurement(**found, passes=tuple(passes[name])) for name, found in fields.items()})


def _read_classes(name: str, model: nn.Module, inputs: Any, tokenizer: PreTrainedTokenizerBase | None) -> Examples:
    """Read inputs whose labels, if they have any, are class indices."""
    found = read_examples(f"the inputs for {name!r}", model, inputs, tokenizer)
    labels = found.labels
    if labels is None:
        return found
    if labels.dim() != 1 or labels.is_floating_point() or int(labels.min()) < 0:
        raise CompressionError(
            f"The labels of the inputs for {name!r} must be class indices, one an example, to measure accuracy; leave "
            "them out to measure size and speed only."
        )
    return replace(found, labels=labels.long())


def _numbers(argument: str, given: int | Sequence[int]) -> list[int]:
    numbers: list[Any] = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if not numbers or not all(is_integer(number) and number >= 1 for number in numbers):
        check_count(argument, numbers[0] if len(numbers) == 1 else given)
    return [int(number) for number in numbers]


def _check(name: str, model: nn.Module, longest: int) -> None:
    check_has_values(model.named_parameters(), f"The model {name!r} cannot be measured: ")
    if next(model.parameters(), None) is None:
        raise CompressionError(f"The model {name!r} has no parameters, so it cannot be measured.")
    if longest and not hasattr(unwrap(model), "get_input_embeddings"):
        raise CompressionError(f"No dummy text can be made for the model {name!r}; leave out length= and pass inputs.")
    limit = max_tokens(model)
    if limit is not None and longest > limit:
        raise CompressionError(f"length={longest} is more than the {limit} tokens that the model {name!r} reads.")


def _size(model: nn.Module) -> dict[str, Any]:
    selection = select_matrices(model)
    report = make_report(model, selection)
    device = next(model.parameters()).device
    dtypes = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()}
    return {
        "parameters": report.whole_model.weights,
        "nonzeros": report.whole_model.weights - report.whole_model.zeros,
        "zeros": report.zeros,
        "sparsity": report.sparsity,
        "bytes": stored_bytes(model),
        "bytes_packed": packed_bytes(model),
        "bytes_in_memory": memory_bytes([*model.parameters(), *model.buffers()]),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": ", ".join(sorted(dtypes)),
        "threads": torch.get_num_threads(),
    }


def _logits(name: str, model: nn.Module, examples: Examples, batch_size: int) -> Tensor:
    """Answers to all examples, in their order, on the CPU in float64."""
    order = sorted(range(len(examples.lengths)), key=examples.lengths.__getitem__)  # little padding
    with evaluation_mode(model):
        found = [
            get_logits(_forward(name, model, examples.take(order[start : start + batch_size]))).cpu()
            for start in range(0, len(order), batch_size)
        ]
    return torch.cat(found)[torch.tensor(order).argsort()].double()


def _forward(name: str, model: nn.Module, batch: Batch) -> Any:
    try:
        return model(**batch)
    except ValueError as error:  # such as GPT-2's, where no token for padding is set
        raise CompressionError(f"The model {name!r} does not read the inputs: {error}") from error


def _quality(name: str, model: nn.Module, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    if getattr(get_config(model), "problem_type", None) in ("multi_label_classification", "regression"):
        raise CompressionError(
            f"The inputs for {name!r} have class indices as labels, but the model's problem_type is "
            f"{get_config(model).problem_type!r}; leave out the labels to measure size and speed only."
        )
    if logits.dim() != 2 or logits.shape[1] < 2 or int(labels.max()) >= logits.shape[1]:
        raise CompressionError(
            f"The labels of the inputs for {name!r} go up to {int(labels.max())}, and the model's answers are of shape "
            f"{tuple(logits.shape)}: one number for each of two or more classes is needed; leave out the labels to "
            "measure size and speed only."
        )
    broken = int((~logits.isfinite()).any(-1).sum())
    if broken:
        raise CompressionError(f"The model {name!r} answers {broken} of {len(logits)} examples with NaN or infinity.")
    predictions = logits.argmax(-1)
    correct = int((predictions == labels).sum())
    return {
        "examples": len(labels),
        "accuracy": correct / len(labels),
        "accuracy_interval": wilson_interval(correct, len(labels)),
        "f1": f1_score(predictions, labels, logits.shape[1]),
        "cross_entropy": float(cross_entropy(logits, labels)),
        "calibration_error": calibration_error(logits.softmax(-1), labels),
    }


def _against(reference: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    first, this = reference.argmax(-1), logits.argmax(-1)
    return {
        "agreement": int((first == this).sum()) / len(labels),
        "mcnemar": mcnemar(first == labels, this == labels),
    }


def _times(models: Mapping[str, nn.Module], batches: Mapping[str, Batch], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each model's passes, in rounds; the order turns round from one to the next."""
    times: dict[str, list[float]] = {name: [] for name in models}
    order = list(models)
    for repeat in range(-_WARM_UP, repeats):
        for name in order:
            model, batch = models[name], batches[name]
            device = next(iter(batch.values())).device
            with evaluation_mode(model):
                synchronize(device)
                start = time.perf_counter()
                _forward(name, model, batch)
                synchronize(device)
                elapsed = time.perf_counter() - start
            if repeat >= 0:
                times[name].append(1000 * elapsed)
        order.reverse()
    return times
