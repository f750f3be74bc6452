"""A classifier as a whole: what is inside its wrappers, what it takes and returns."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfcompress.errors import CompressionError
from hfcompress.losses import Problem, check_problem
from hfcompress.models.architectures import OFFSET_POSITIONS, TOKEN_LIMITS
from hfcompress.models.exported import ExportedModule

_TEXT_INPUTS = {"input_ids", "inputs_embeds"}
_CLASSIFIER = "ForSequenceClassification"  # in the name of every text classifier of transformers
_LOAD = "AutoModelForSequenceClassification.from_pretrained"
# What other models of transformers predict, by the names of their classes.
_OTHER_HEADS = {
    "MaskedLM|CausalLM|LMHead|ConditionalGeneration": "has a head with an output for each token of its vocabulary",
    "ForQuestionAnswering": "finds answers in texts",
    "ForTokenClassification": "has a class for each token",
    "For[A-Z]|DoubleHeads|WithHeads": "predicts something else",
}


def check_model_kind(model: object, name: str = "model", *, needed: str = "a model", classifier: bool = True) -> None:
    """Refuse what is no model, and a model of transformers that does not classify texts.

    Args:
        model: What was passed: wrapped or not.
        name: The argument.
        needed: What it may be, for the message.
        classifier: Whether a model of transformers must be a sequence classifier. Classes of the user's own, and
            modules that are not of transformers, may be anything.

    Raises:
        CompressionError: It is a name, a class, something that holds a model, no model at all, or of another kind.

    Example:
        >>> check_model_kind(None)
        Traceback (most recent call last):
        hfcompress.errors.CompressionError: model must be a model, not None; load one: \
AutoModelForSequenceClassification.from_pretrained(...).
    """
    if isinstance(model, nn.Module):
        if classifier:
            _check_classifier(unwrap(model), name)
        return
    found, remedy = type(model).__name__, "pass a module of torch, such as a classifier of transformers"
    if model is None:
        found, remedy = "None", f"load one: {_LOAD}(...)"
    elif isinstance(model, str | os.PathLike):
        shown = f"{os.fspath(model)!r:.100}"
        found, remedy = f"{found} ({shown})", f"load it first: {_LOAD}({shown})"
    elif isinstance(model, type):
        found, remedy = f"the class {model.__name__}", f"make one of it: {model.__name__}.from_pretrained(...)"
    elif isinstance(getattr(model, "model", None), nn.Module):  # a pipeline, a Trainer
        remedy = "pass the model in it, its .model"
    raise CompressionError(f"{name} must be {needed}, not {found}; {remedy}.")


def _check_classifier(inner: nn.Module, name: str) -> None:
    if not isinstance(inner, PreTrainedModel):
        return
    kinds, found = type(inner).__mro__, type(inner).__name__
    if any(_CLASSIFIER in kind.__name__ for kind in kinds):
        if not _TEXT_INPUTS & input_names(inner):
            raise CompressionError(
                f"{name} must be a classifier of texts; {found} reads {inner.main_input_name}. Pass one that reads "
                "input_ids."
            )
        return
    # FSDP2 makes a class of its own, and a class of the user's own may have added a head to a base model.
    own = next(kind for kind in kinds if not kind.__module__.startswith("torch.distributed."))
    known = [kind for kind in kinds if kind.__module__.startswith("transformers.models.")]
    head = next(
        (made for pattern, made in _OTHER_HEADS.items() for kind in known if re.search(pattern, kind.__name__)), ""
    )
    if own in known or head:
        raise CompressionError(
            f"{name} must be a sequence classifier; {found} {head or 'has no classification head'}. Load its weights "
            f"as one, {_LOAD}(...), and fine-tune it if its head is new."
        )


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model below wrappers that only add a layer around it (DDP, DataParallel, ``torch.compile``, PEFT)."""
    inner: Any = model  # nn.Module's attributes are typed Tensor | Module
    while True:
        if isinstance(inner, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = inner.module
        elif hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        else:
            return cast(nn.Module, inner)


def get_name(model: nn.Module) -> str:
    """Return what messages call a model, wrapped or not: its class, or the file of an exported one."""
    inner = unwrap(model)
    return inner.name if isinstance(inner, ExportedModule) else type(inner).__name__


def get_config(model: nn.Module) -> Any:
    """Return the config of a model, wrapped or not; None if it has none."""
    return getattr(unwrap(model), "config", None)


def input_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the inputs that a model takes; of one that only passes them on, those of what it passes to.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> class Tuples(BertForSequenceClassification):
        ...     def forward(self, *args, **kwargs):
        ...         return super().forward(*args, **kwargs).to_tuple()
        >>> "input_ids" in input_names(Tuples(BertConfig(num_hidden_layers=1)))
        True
    """
    inner = unwrap(model)
    if isinstance(inner, ExportedModule):
        return inner.inputs
    parameters = inspect.signature(inner.forward).parameters
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if passes_on and parameters.keys().isdisjoint(_TEXT_INPUTS):
        forwards = (vars(kind).get("forward") for module in inner.modules() for kind in type(module).__mro__)
        signatures = (inspect.signature(forward).parameters for forward in forwards if callable(forward))
        named = (one.keys() for one in signatures if not one.keys().isdisjoint(_TEXT_INPUTS))
        return frozenset(parameters) | (frozenset(next(named, ())) - {"self"})
    return frozenset(parameters)


def get_logits(outputs: Any) -> Tensor:
    """Return the logits among a model's outputs: a mapping, an object or a tuple that holds them, or they themselves.

    Of a tuple they are the first tensor with a row for each example: the loss, where there is one, is a scalar.

    Raises:
        CompressionError: There are none.

    Example:
        >>> loss, logits = torch.tensor(0.5), torch.zeros(4, 2)
        >>> [get_logits(outputs).shape[0] for outputs in ({"logits": logits}, (loss, logits), (logits,), logits)]
        [4, 4, 4, 4]
    """
    logits = outputs
    if isinstance(outputs, Mapping):
        logits = outputs.get("logits")
    elif hasattr(outputs, "logits"):
        logits = outputs.logits
    elif isinstance(outputs, tuple | list):
        logits = next((one for one in outputs if isinstance(one, Tensor) and one.dim()), None)
    if not isinstance(logits, Tensor):
        found = f"{type(outputs).__name__} of {', '.join(outputs)}" if isinstance(outputs, Mapping) else outputs
        raise CompressionError(
            f"The model returns no logits, but a {found if isinstance(found, str) else type(found).__name__}: a "
            "classifier returns them as 'logits', as the first tensor of a tuple, or alone."
        )
    return logits


def max_tokens(model: nn.Module) -> int | None:
    """Return how many tokens of a text a model can read; None if there is no limit.

    Example:
        >>> from transformers import RobertaConfig, RobertaForSequenceClassification
        >>> config = RobertaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
        >>> config.max_position_embeddings
        512
        >>> max_tokens(RobertaForSequenceClassification(config))  # its positions start behind the padding index, 1
        510
    """
    config, inner = get_config(model), unwrap(model)
    if isinstance(inner, ExportedModule) and inner.max_tokens is not None:
        return inner.max_tokens
    limits = [limit for name in TOKEN_LIMITS if isinstance(limit := getattr(config, name, None), int) and limit > 0]
    module: Any
    for name, module in inner.named_modules():
        if name.rpartition(".")[2] in OFFSET_POSITIONS and getattr(module, "padding_idx", None) is not None:
            limits.append(len(module.weight) - module.padding_idx - 1)
    return min(limits, default=None)


def count_outputs(config: Any) -> int | None:
    """Return the number of labels that a config states; None if it states none."""
    if getattr(config, "id2label", ()) is None:  # num_labels is its length, and transformers 5.0 has no other
        return len(getattr(config, "label2id", None) or ()) or None
    return getattr(config, "num_labels", None)


def get_problem_type(model: nn.Module, role: str) -> Problem:
    """Return what the outputs of a model mean, by its config as transformers reads it.

    Args:
        model: A classifier.
        role: What to call it in messages.

    Raises:
        CompressionError: The config names no problem that there is, or a choice of a single class.
    """
    config = get_config(model)
    outputs = count_outputs(config) or 2
    problem = getattr(config, "problem_type", None)
    if problem is None:
        problem = "regression" if outputs == 1 else "single_label_classification"
    if outputs == 1 and problem == "single_label_classification":
        raise CompressionError(
            f"The {role} has num_labels=1 and problem_type={problem!r}; a choice needs at least two classes."
        )
    check_problem(problem)
    return cast(Problem, problem)


@contextmanager
def evaluation_mode(model: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Put a model into eval mode while the context lasts, and compute gradients for no parameter or for all of them.

    It computes in its own precision, also where a Trainer has trained it in bf16 or fp16: accelerate replaces the
    forward of the model by one under autocast, and leaves it there.
    """
    with ExitStack() as undo:
        own: Any = unwrap(model)
        if "_original_forward" in vars(own):
            undo.callback(setattr, own, "forward", own.forward)
            own.forward = own._original_forward
        for module in model.modules():
            undo.callback(setattr, module, "training", module.training)
        for parameter in filter(torch.is_floating_point, model.parameters()):
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(gradients)  # the FLOP counter fails on views of those that require some (DeBERTa)
        model.eval()
        with torch.set_grad_enabled(gradients), returning_mappings(model):
            yield


@contextmanager
def returning_mappings(model: nn.Module) -> Iterator[None]:
    """Set ``config.return_dict`` while the context lasts: some classifiers of transformers fail without it (GPT-2)."""
    with ExitStack() as undo:
        if getattr(get_config(model), "return_dict", True) is False:
            configs = {id(config): config for module in model.modules() if (config := vars(module).get("config"))}
            for config in configs.values():
                if getattr(config, "return_dict", True) is False:
                    undo.callback(setattr, config, "return_dict", False)
                    config.return_dict = True
        yield


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Hold a model's half-precision numbers in float32 while the context lasts; each comes back as it was."""
    halves = (torch.float16, torch.bfloat16)
    before = {name: (tensor, tensor.dtype) for name, tensor in _tensors(model) if tensor.dtype in halves}
    try:
        for tensor, _ in before.values():
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in before.values():
            tensor.data = tensor.data.to(dtype)
        for name, tensor in _tensors(model):  # what has taken their place
            if name in before:
                tensor.data = tensor.data.to(before[name][1])


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
