"""Classifiers, tokenizers and devices by name."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

import hfcompress as hfc
from hfcompress.compat import current_accelerator
from hfcompress.deploy.folder import is_exported
from hfcompress.errors import CompressionError
from hfcompress.models.classifier import get_problem_type
from hfcompress.models.exported import as_module
from hfcompress.models.labels import are_default_names, label_maps, label_names, readable_maps
from hfcompress.models.new_head import mark_new_head, new_head
from hfcompress_cli.new_labels import NewLabels

# Where none of these is in a folder, transformers makes an empty tokenizer.
TOKENIZER_FILES = {"tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model"}
TOKENIZER_FILES |= {"spiece.model", "spm.model", "sentencepiece.model", "sentencepiece.bpe.model"}


def load(
    name: str,
    *,
    trained: bool = False,
    reads_texts: bool = False,
    labels_from: PreTrainedModel | None = None,
    needs_names: bool = True,
) -> tuple[PreTrainedModel, Any]:
    """Load a classifier, and its tokenizer; None if it has none.

    A trained model must have a trained head, and one that reads texts a tokenizer, which is made to pad them. A head
    that is new, or whose labels have no names, takes those of ``labels_from``. The config of a model whose head is new
    says so (see `hfcompress.models.new_head`), and so does what is saved of it. Label maps that contradict each other
    are refused, or noted where no ``needs_names``.
    """
    source = find_model(name)
    model, missing = _from_pretrained(source)
    is_marked = not missing and bool(new_head(model))
    untrained = missing or new_head(model)
    if labels_from is not None:
        given = labels_from.config
        names = label_maps(given, "teacher")
        if untrained:
            settings = {"num_labels": given.num_labels, "problem_type": given.problem_type}
            model, missing = _from_pretrained(source, other_head=True, **settings, **names)
            untrained = missing or untrained
        elif model.config.num_labels == given.num_labels and are_default_names(label_names(model, "student")):
            model.config.update(names)
    if untrained:
        message = f"{name} has no trained classification head ({', '.join(sorted(untrained))})"
        if trained:
            raise CompressionError(
                f"{message}; fine-tune it first: hfcompress finetune {shlex.quote(name)} --data FILE.csv -o OUT."
            )
        print(f"{message}; {'it stays untrained' if is_marked else 'it gets a new one'}.", file=sys.stderr)
    mark_new_head(model, untrained)
    try:
        label_names(model, f"model {name}")
    except CompressionError as error:
        if needs_names:
            raise
        print(error, file=sys.stderr)
    tokenizer = _load_tokenizer(source, model.config)
    if reads_texts:
        if tokenizer is None:
            raise CompressionError(f"{name} has no tokenizer; save one there with tokenizer.save_pretrained().")
        set_pad_token(tokenizer, model)
    return model, tokenizer


def load_for_labels(
    name: str, find: Callable[[], NewLabels], check: Callable[[PreTrainedModel], None], *, replace_head: bool
) -> tuple[PreTrainedModel, Any, bool]:
    """Load a model to be trained on labels, and its tokenizer; return also whether its head is new.

    A head that is new is made for the labels of the data; a trained one stays, and must know them.

    Args:
        name: Folder or id.
        find: Returns what a new head is to predict.
        check: Refuses a model whose labels are not those of the data.
        replace_head: Whether a trained head is replaced too.
    """
    source = find_model(name)
    model, missing = _from_pretrained(source)
    _check_body(name, model, missing)
    is_new = bool(missing) or replace_head or bool(new_head(model))
    if is_new:
        labels, had_head = find(), not missing
        model, missing = _from_pretrained(source, other_head=had_head, **labels.settings)
        if had_head:
            _renew_head(model)
        what = "to predict numbers" if not labels.names else f"for {len(labels.names)} labels"
        print(f"{name} gets a new head {what}.", file=sys.stderr)
    else:
        try:
            check(model)
        except CompressionError as error:
            raise CompressionError(
                f"{error} {name} has a head that was trained for these; with --new-head it gets one for the data's."
            ) from error
        names = [repr(one) for one in label_names(model).values()]
        what = (
            "to predict numbers" if get_problem_type(model, "model") == "regression" else f"for {', '.join(names[:5])}"
        )
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        print(
            f"{name} keeps its head, which was trained {what}{more}; --new-head gives it one for the data's labels.",
            file=sys.stderr,
        )
    tokenizer = _load_tokenizer(source, model.config)
    if tokenizer is None:
        raise CompressionError(f"{name} has no tokenizer; save one there with tokenizer.save_pretrained().")
    set_pad_token(tokenizer, model)
    if model.config.pad_token_id is None:  # without it some classifiers read no batches
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.float(), tokenizer, is_new  # half precision is for autocast, not for the weights that learn


def _check_body(name: str, model: PreTrainedModel, missing: Sequence[str]) -> None:
    """Refuse weights that are not those of the model: what of its body is not among them would be new.

    Poolers may be: pretraining without a sentence's label has none.
    """
    body = {key for key in missing if key.startswith(f"{model.base_model_prefix}.") and "pool" not in key}
    count = sum(1 for _ in model.base_model.parameters())
    if body:
        raise CompressionError(
            f"{name} has no trained body: {len(body)} of its {count} tensors are not among the weights, such as "
            f"{min(body)}. Its config.json and its weights are of different models."
        )


def _renew_head(model: PreTrainedModel) -> None:
    """Draw the weights of what is not in the body anew, as transformers does for a head that is not in a file."""
    body = {id(module) for module in model.base_model.modules()}
    head = [module for module in model.modules() if id(module) not in body and module is not model]
    for module in head:
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = False  # else it is left as it was loaded
        module._is_hf_initialized = False
        model._init_weights(module)


def load_exported(name: str) -> tuple[nn.Module, Any] | None:
    """Load an exported classifier and its tokenizer; None if the directory does not hold one."""
    folder = Path(name).expanduser()
    if not is_exported(folder):
        return None
    model = hfc.load_exported(folder)
    return as_module(name, model), _load_tokenizer(str(folder), model.config)


def set_pad_token(tokenizer: Any, model: PreTrainedModel) -> None:
    """Give a tokenizer without a padding token, such as GPT-2's, the one of the model or the end of a text."""
    if tokenizer.pad_token is None:
        index = model.config.pad_token_id
        known = isinstance(index, int) and 0 <= index < len(tokenizer)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(index) if known else tokenizer.eos_token
        if tokenizer.pad_token is None:
            raise CompressionError("The tokenizer has no token for padding and none for the end of a text; add one.")


def find_model(name: str) -> str:
    """Return the folder of that name, or else the name as an id of the hub.

    Raises:
        CompressionError: There is no such folder, or it holds an exported model, which has no weights of torch.
    """
    folder = Path(name).expanduser()
    if is_exported(folder):
        raise CompressionError(
            f"{name} holds an exported model, which only runs; name the folder that it was exported from. Of exported "
            "ones there is hfcompress report and hfcompress compare."
        )
    if (folder / "ladder.json").is_file() and not (folder / "config.json").exists():
        made = sorted(one.parent.name for one in folder.glob("*/config.json"))
        which = f"; name one of them: {', '.join(str(folder / one) for one in made)}" if made else ", none of them done"
        raise CompressionError(f"{name} holds a ladder of models{which}.")
    if not folder.is_dir() and (name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1):
        raise CompressionError(f"There is no directory {name}.")
    return str(folder) if folder.is_dir() else name


def find_device(name: str | None) -> torch.device:
    """Return the device of that name; without one, the accelerator if there is one."""
    try:
        device = (current_accelerator() or torch.device("cpu")) if name is None else torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CompressionError(f"The device {name} cannot be used: {first_sentence(error)}") from error
    return device


def first_sentence(error: BaseException) -> str:
    r"""Return the first sentence of an error, which other libraries make long.

    Example:
        >>> first_sentence(OSError("No connection. See how to work offline:\nhttps://..."))
        'No connection.'
    """
    line = str(error).strip().partition("\n")[0]
    return f"{line.partition('. ')[0][:300].removesuffix('.')}." if line else f"{type(error).__name__}."


def _from_pretrained(source: str, *, other_head: bool = False, **config: Any) -> tuple[PreTrainedModel, list[str]]:
    settings = _read_config(source) | config
    forced = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        if "config" in settings:  # then no other is read, nor changed by settings
            for name in set(config):
                setattr(settings["config"], name, settings.pop(name))
        model, info = AutoModelForSequenceClassification.from_pretrained(source, **settings, **forced)
    except Exception as error:  # whatever a config that makes no sense leads to
        what = f"The model {source} is not a directory, and cannot be loaded from the hub"
        if os.path.isdir(source):
            what = f"The folder {source} does not load as a text classifier"
        raise CompressionError(f"{what}: {first_sentence(error)}") from error
    mismatched = info["mismatched_keys"]
    if other_head:  # which may have another shape; the body may not
        mismatched = [one for one in mismatched if one[0].startswith(f"{model.base_model_prefix}.")]
    if mismatched:
        name, found, described = min(mismatched, key=str)[:3]
        raise CompressionError(
            f"{source} does not load as a text classifier: its {name} is of shape {tuple(found)}, and its config.json "
            f"describes {tuple(described)}; set id2label and label2id, or what else is wrong there, to what the "
            "weights are."
        )
    return model.eval(), list(info["missing_keys"])


def _read_config(source: str) -> dict[str, Any]:
    """Return what transformers must be given of a config that it does not read as it is.

    These are both label maps where a config has ``label2id`` alone, which would be overwritten, and the whole config
    where the maps are lists.
    """
    try:
        written, _ = PreTrainedConfig.get_config_dict(source)
    except Exception:  # reported when the model is loaded
        return {}
    given = {name: written.get(name) for name in ("id2label", "label2id")}
    maps = readable_maps(SimpleNamespace(**given), f"model {source}")
    if not any(given[name] is not None and not isinstance(given[name], Mapping) for name in given):
        return maps
    try:
        kind = type(AutoConfig.for_model(written["model_type"]))
        return {"config": kind.from_dict(written | maps)}
    except Exception:  # reported when the model is loaded
        return {}


def _load_tokenizer(source: str, config: PreTrainedConfig) -> Any:
    if os.path.isdir(source) and not any(os.path.exists(os.path.join(source, file)) for file in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(source, config=config)  # which it may not read itself
    except (OSError, ValueError, KeyError, ImportError) as error:
        print(f"{source} has no tokenizer that loads: {first_sentence(error)}", file=sys.stderr)
        return None
