"""A compressed model read from its folder, with everything checked before a model is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any

import transformers
from huggingface_hub import snapshot_download
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from hfcompress.errors import CompressionError
from hfcompress.models.shape_plan import build_from_config
from hfcompress.storage.layout import CONFIG, Folder, check_folder, weight_files
from hfcompress.storage.model_card import CARD
from hfcompress.storage.quantizer import check_size
from hfcompress.storage.safetensors_file import shapes_of

_FETCHED = ["*.json", "*.safetensors", "*.txt", "*.model", CARD]  # vocabularies are texts and models of sentencepiece


def load_compressed(
    directory: Folder,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load what `save_compressed` or ``save_pretrained`` wrote, trusting nothing that stands in the folder.

    Plain ``from_pretrained`` loads the same model. This function moreover checks the config before a model is made of
    it, reads nothing but safetensors, runs no code of the folder's, and refuses a folder with missing or superfluous
    weights where ``from_pretrained`` warns. What is allocated is at most 1,024 times the size of the files.

    Args:
        directory: A folder, or the id of a model on the hub.
        revision: Branch, tag or commit on the hub.
        token: The hub token.
        local_files_only: Whether to use only what was downloaded before.
        cache_dir: Where downloads are kept.
        kwargs: For ``from_pretrained``, for example ``dtype`` or ``device_map``.

    Returns:
        An ordinary model, in eval mode, of the class that the config names, or else a sequence classifier.

    Raises:
        CompressionError: The folder is missing, damaged or of a newer version, or says what cannot be true. The message
            names file and tensor.

    Example:
        See `save_compressed`.
    """
    for name in ("subfolder", "variant"):
        if name in kwargs:
            raise CompressionError(f"{name}= is not read here; name the folder itself, or use from_pretrained.")
    folder = model_folder(
        directory, revision=revision, token=token, local_files_only=local_files_only, cache_dir=cache_dir
    )
    config = check_folder(folder)
    kind = _kind_of(config)
    options = {"use_safetensors": True, "trust_remote_code": False} | kwargs
    # To be told which weights do not fit; they are refused below.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with _parts_limited(folder):
            if config.get("quantization_config") is None:
                _check_plain_size(folder, kind)
            model, info = kind.from_pretrained(folder, **options)
    except CompressionError as error:
        raise CompressionError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from error
    except Exception as error:  # whatever a config that was tampered with leads to
        raise CompressionError(f"{folder} cannot be loaded: {type(error).__name__}: {error}") from error
    for problem in ("mismatched_keys", "missing_keys", "unexpected_keys"):
        if not info[problem] or (problem == "mismatched_keys" and kwargs.get("ignore_mismatched_sizes")):
            continue
        first = min(info[problem], key=str)
        if problem == "mismatched_keys":
            first = f"{first[0]} of shape {tuple(first[1])} where the config says {tuple(first[2])}"
        raise CompressionError(
            f"{folder} does not hold a {type(model).__name__}: {problem.replace('_', ' ')}, such as {first}. "
            "What a class of your own saved, its own from_pretrained loads."
        )
    loaded: PreTrainedModel = model
    return loaded


def model_folder(directory: Folder, **download: Any) -> Path:
    """Return a folder as it is, or where a model of the hub is after it was downloaded.

    Args:
        directory: A folder, or the id of a model on the hub: its config, safetensors and tokenizer are fetched.
        download: For ``huggingface_hub.snapshot_download``, for example ``revision``.

    Raises:
        CompressionError: There is neither such a folder nor such a model.
    """
    if Path(directory).is_dir():
        return Path(directory)
    try:
        return Path(snapshot_download(str(directory), allow_patterns=_FETCHED, ignore_patterns=["*/*"], **download))
    except Exception as error:  # no network, no such model, no access: huggingface_hub says which
        reason = str(error).strip().partition("\n")[0]
        raise CompressionError(
            f"{str(directory)!r} is neither a folder here nor a model that the hub gives: {reason}"
        ) from error


@contextmanager
def _parts_limited(folder: Path) -> Iterator[None]:
    """Refuse a config whose model would have far more modules than there are weights, while it is being built."""
    most, thread, made = 1000 + 16 * sum(len(shapes_of(file)) for file in weight_files(folder)), get_ident(), 0

    def count(*_: object) -> None:
        nonlocal made
        made += get_ident() == thread
        if made > most:
            raise CompressionError(f"{folder / CONFIG} describes a model of more than {most:,} parts.")

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _check_plain_size(folder: Path, kind: Any) -> None:
    """Refuse a dense folder whose config describes a larger model, as the loader does where something is packed."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if kind is AutoModelForSequenceClassification:
        kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    check_size(build_from_config(config, kind), sum(file.stat().st_size for file in weight_files(folder)))


def _kind_of(config: Mapping[str, Any]) -> Any:
    """The class of the model that a config names, if it is one of transformers'."""
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    is_model = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    return kind if is_model else AutoModelForSequenceClassification
