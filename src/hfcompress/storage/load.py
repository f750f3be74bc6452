"""Loads a compressed model from its folder, after checking everything in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any, TypedDict, cast

import torch
import transformers
from huggingface_hub import snapshot_download
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from typing_extensions import Unpack

from hfcompress.errors import CompressionError
from hfcompress.models.shape_plan import build_from_config
from hfcompress.storage.layout import CONFIG, Folder, most_modules, read_config, weight_files
from hfcompress.storage.model_card import CARD
from hfcompress.storage.quantizer import check_size
from hfcompress.validation import check_folder_name

_DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.model", CARD]  # vocabularies are .txt, sentencepiece's are .model


class LoadOptions(TypedDict, total=False):
    """The usual arguments of ``from_pretrained``; at run time, any other is passed on too."""

    attn_implementation: str
    device_map: str | int | torch.device | dict[str, int | str | torch.device]
    dtype: str | torch.dtype
    ignore_mismatched_sizes: bool
    max_memory: dict[int | str, int | str]
    num_labels: int
    offload_folder: str
    problem_type: str


def load_compressed(
    directory: Folder,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    **kwargs: Unpack[LoadOptions],
) -> PreTrainedModel:
    """Load what `save_compressed` or ``save_pretrained`` wrote, without trusting the folder.

    Plain ``from_pretrained`` loads the same model. This function also checks the config before it builds a model from
    it, reads no weights but safetensors, runs no code from the folder, and refuses missing or unexpected weights, where
    ``from_pretrained`` only warns. It allocates at most 1,024 times the size of the files.

    Args:
        directory: A folder, or the id of a model on the hub.
        revision: Branch, tag or commit on the hub.
        token: The hub token.
        local_files_only: Whether to use only what was downloaded before.
        cache_dir: Where downloads are kept.
        kwargs: Passed to ``from_pretrained``, for example ``dtype`` or ``device_map``.

    Returns:
        An ordinary model in eval mode, of the class that the config names, or else a sequence classifier.

    Raises:
        CompressionError: The folder is missing, damaged, of a newer version, or contradicts itself. The message names
            file and tensor.

    Example:
        See `save_compressed`.
    """
    for name in {"subfolder", "variant"} & kwargs.keys():
        raise CompressionError(f"{name}= is not supported; name the folder itself, or use from_pretrained.")
    folder = model_folder(
        directory, revision=revision, token=token, local_files_only=local_files_only, cache_dir=cache_dir
    )
    config = read_config(folder)
    if kwargs.get("quantization_config") is not None and config.get("quantization_config") is not None:
        raise CompressionError(
            f"{folder} has its shapes, or what is packed, under quantization_config, so that no other can be applied "
            "while it is loaded. Load it without, and quantize the model then, such as with torchao: "
            "quantize_(model, Int8WeightOnlyConfig())."
        )
    kind = model_class(config)
    # Weights that do not fit are to be listed, not raised: they are refused below.
    forced = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    options = {"use_safetensors": True, "trust_remote_code": False} | dict(kwargs) | forced
    try:
        with _modules_limited(folder):
            if config.get("quantization_config") is None:
                _check_plain_size(folder, kind)
            model, info = kind.from_pretrained(folder, **options)
    except CompressionError as error:
        raise CompressionError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from error
    except Exception as error:  # whatever a manipulated config leads to
        raise CompressionError(f"{folder} cannot be loaded: {type(error).__name__}: {error}") from error
    refused = ["missing_keys", "unexpected_keys"]
    for problem in refused if kwargs.get("ignore_mismatched_sizes") else ["mismatched_keys", *refused]:
        if not info[problem]:
            continue
        first = min(info[problem], key=str)
        if problem == "mismatched_keys":
            first = f"{first[0]} of shape {tuple(first[1])} where the config describes {tuple(first[2])}"
        raise CompressionError(
            f"{folder} does not hold a {type(model).__name__}: {problem.replace('_', ' ')}, such as {first}. "
            "If it holds a model of a class of your own, load it with the from_pretrained of that class."
        )
    return cast(PreTrainedModel, model)


def model_folder(directory: Folder, **download: Any) -> Path:
    """Return the folder of a model; of one on the hub, download config, safetensors and tokenizer first.

    Raises:
        CompressionError: There is neither such a directory nor such a model, or the name is empty.
    """
    check_folder_name(directory, "read")
    if Path(directory).is_dir():
        return Path(directory)
    try:
        return Path(snapshot_download(str(directory), allow_patterns=_DOWNLOADED, ignore_patterns=["*/*"], **download))
    except Exception as error:  # no network, no such model, no access: huggingface_hub says which
        reason = str(error).strip().partition("\n")[0]
        raise CompressionError(f"{str(directory)!r} is neither a directory nor a model on the hub: {reason}") from error


@contextmanager
def _modules_limited(folder: Path) -> Iterator[None]:
    """Refuse a config whose model has far more modules than the folder has weights, while the model is being built."""
    most, thread, made = most_modules(weight_files(folder)), get_ident(), 0

    def count(*_: object) -> None:
        nonlocal made
        made += get_ident() == thread
        if made > most:
            raise CompressionError(f"{folder / CONFIG} describes a model of more than {most:,} modules.")

    with register_module_module_registration_hook(count):
        yield


def _check_plain_size(folder: Path, kind: Any) -> None:
    """Refuse a folder without a plan whose config describes a far larger model, as the quantizer does with a plan."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    check_size(
        build_from_config(config, concrete_class(kind, config)),
        sum(file.stat().st_size for file in weight_files(folder)),
    )


def concrete_class(found: Any, config: PreTrainedConfig) -> Any:
    """Return a class of models, or the sequence classifier of a config where it is the automatic one."""
    automatic = found is AutoModelForSequenceClassification
    return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)] if automatic else found


def model_class(config: Mapping[str, Any]) -> Any:
    """Return the class of transformers that a config names, or else that of sequence classifiers."""
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    is_model = isinstance(found, type) and issubclass(found, PreTrainedModel)
    return found if is_model else AutoModelForSequenceClassification
