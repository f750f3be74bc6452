"""Saves a compressed model as a folder, its zeros packed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.utils import logging

from hfcompress.atomic_folder import flushing
from hfcompress.errors import CompressionError
from hfcompress.models.classifier import check_model_kind, unwrap
from hfcompress.models.new_head import update_mark
from hfcompress.models.plain_weights import check_no_adapter, check_no_computed_weights, check_not_quantized
from hfcompress.models.shape_plan import build_from_config, is_plan
from hfcompress.models.tensors import check_has_values
from hfcompress.models.tokenizers import check_tokenizer
from hfcompress.storage.layout import (
    INDEX,
    ONE_FILE,
    Folder,
    check_written,
    replacing_model,
    weight_files,
    write_index_and_plan,
    write_labels,
)
from hfcompress.storage.model_card import CARD, Table, is_our_card, write_card
from hfcompress.storage.safetensors_file import pack_file
from hfcompress.validation import check_choice, check_folder_name, is_number

_SIZE = re.compile(r"\s*[\d.e+]+\s*[kmgt]b\s*", re.IGNORECASE)  # as huggingface_hub reads them


def save_compressed(
    model: nn.Module,
    directory: Folder,
    *,
    sparse: Literal["auto", False] = "auto",
    processing_class: Any = None,
    results: Table | None = None,
    notes: Mapping[str, object] | None = None,
    max_shard_size: int | str = "50GB",
    push_to_hub: bool = False,
    repo_id: str | None = None,
    token: str | bool | None = None,
    private: bool | None = None,
) -> None:
    """Save a model as a small folder that loads anywhere: its zeros packed, with a model card.

    After ``import hfcompress``, plain ``from_pretrained`` and ``pipeline`` load it, bit for bit (of mixed dtypes, all
    in that of the config), as an ordinary dense model; without it they refuse to, if anything is packed or shrunken
    unevenly. The folder replaces an old one at once, when all is written: a process killed half-way leaves the old one.
    Files that a save does not write stay as they are. Another process whose working directory is the old folder has
    none afterwards.

    Args:
        model: A Hugging Face model; it is not changed. Merge a PEFT adapter before.
        directory: The folder to write.
        sparse: ``"auto"`` packs each matrix that becomes smaller by it; False packs nothing.
        processing_class: The tokenizer, saved beside the model.
        results: What the model card shows as measured: anything with ``to_markdown()``, for example what `compare`
            returns.
        notes: More lines for the card, for example ``{"teacher": "bert-base-uncased", "data": "IMDB reviews"}``.
        max_shard_size: As for ``save_pretrained``, of the dense weights: packed files are smaller.
        push_to_hub: Whether to upload the folder afterwards.
        repo_id: The repository to upload to; by default the name of the folder, in your own namespace.
        token: The hub token; by default the one of ``hf auth login``.
        private: Whether a new repository is private.

    Raises:
        CompressionError: The model cannot be saved, or the folder cannot be written; an old folder is unchanged.

    Example:
        >>> import tempfile
        >>> import hfcompress as hfc
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
        >>> model = BertForSequenceClassification(config)
        >>> zeros = hfc.prune_global_l1(model, 0.9).zeros
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_compressed(model, folder)
        ...     again = hfc.load_compressed(folder)
        >>> int((again.bert.encoder.layer[0].output.dense.weight == 0).sum()) > 0
        True
    """
    check_choice("sparse", sparse, ("auto", False))
    check_tokenizer(processing_class)
    check_folder_name(directory, "write")
    _check_arguments(results, notes, max_shard_size)
    inner = _check_savable(model)
    card = Path(directory) / CARD
    with replacing_model(directory) as new:
        update_mark(inner)
        try:
            inner.save_pretrained(new, max_shard_size=max_shard_size)
        except (KeyError, RuntimeError, ValueError) as error:
            # A dtype that safetensors does not know, undeclared shared memory.
            raise CompressionError(f"{type(inner).__name__} cannot be saved: {error}") from error
        if sparse:
            _pack_weights(new)
        with flushing(weight_files(new)):
            write_labels(new, inner.config)
            if processing_class is not None:
                processing_class.save_pretrained(new)
            if is_our_card(card) or not card.exists():
                write_card(inner, new, results=results, notes=notes or {}, name=Path(directory).resolve().name)
        check_written(new, Path(directory))
        written = [path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()]
    if push_to_hub:
        api = HfApi(token=token)
        repository = api.create_repo(repo_id or Path(directory).resolve().name, private=private, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=repository,
            folder_path=Path(directory),
            commit_message="Upload compressed model",
            allow_patterns=[*written, CARD],  # the user's own card too
            delete_patterns=[ONE_FILE, "model-*.safetensors", INDEX],  # of an older model, unless uploaded now
        )


def _check_arguments(results: object, notes: object, max_shard_size: object) -> None:
    if results is not None and (isinstance(results, type) or not callable(getattr(results, "to_markdown", None))):
        raise CompressionError(
            f"results={results!r:.100} has no to_markdown(); pass a report or a Comparison, or text as a note: "
            "notes={'results': ...}."
        )
    if notes is not None and not isinstance(notes, Mapping):
        raise CompressionError(f"notes={notes!r:.100} must be names and texts: {{'data': 'IMDB reviews'}}.")
    is_text = isinstance(max_shard_size, str) and _SIZE.fullmatch(max_shard_size)
    if not is_text and not (is_number(max_shard_size) and max_shard_size > 0):
        raise CompressionError(
            f"max_shard_size={max_shard_size!r} must be a number of bytes above 0, or a text such as '5GB'."
        )


def _pack_weights(new: Path) -> None:
    """Pack each file of weights that ``save_pretrained`` wrote to a new folder."""
    files, packed = weight_files(new), False
    for file in logging.tqdm(files, desc="Packing model shards"):
        dense = file.rename(file.with_suffix(".dense"))
        packed |= pack_file(dense, file)
        dense.unlink()
    write_index_and_plan(new, [file.name for file in files], packed)


def _check_savable(model: nn.Module) -> PreTrainedModel:
    """Return the model without its wrapper, or refuse what cannot be saved."""
    check_model_kind(model, classifier=False)
    check_no_adapter(model)
    inner = unwrap(model)
    if not isinstance(inner, PreTrainedModel):
        raise CompressionError(f"{type(inner).__name__} is not a Hugging Face model, so nothing could load it.")
    plan = getattr(inner.config, "quantization_config", None)
    if plan is not None and not is_plan(plan):
        raise CompressionError(f"{type(inner).__name__} is quantized; save it with its own save_pretrained.")
    check_not_quantized(inner, "saved so that it loads again")
    state = inner.state_dict()
    check_has_values((name, value) for name, value in state.items() if isinstance(value, Tensor))
    for name, tensor in state.items():
        if isinstance(tensor, DTensor):
            raise CompressionError(f"{name} is sharded over devices (DTensor); gather its values first.")
    _check_loads_again(inner, state)
    return inner


def _check_loads_again(model: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
    """Refuse names and shapes of weights that a model built from the config does not have: loading would lose them."""
    kind, built = type(model).__name__, None
    try:
        built = build_from_config(model.config, type(model)).state_dict()
    except Exception as error:  # whatever a config or constructor raises
        # The from_pretrained of a class of the user's own may know what else its constructor needs.
        if type(model).__module__.startswith("transformers."):
            raise CompressionError(
                f"No {kind} can be built from its config, so nothing could load it ({type(error).__name__}: {error}); "
                "set the config to what the model is."
            ) from error
    differ = [] if built is None else [n for n in [*state, *built] if _shape(state, n) != _shape(built, n)]
    if built is None or differ:
        check_no_computed_weights(model, "saved so that it loads again")
    if differ:
        name, expected = differ[0], "" if built is None else _shape(built, differ[0])
        raise CompressionError(
            f"{name} is {_shape(state, name)} in the model, but {expected} in the {kind} that its config describes, so "
            "it would not load again; set the config to what the model is, or give the model a class of your own whose "
            "constructor builds it."
        )


def _shape(state: Mapping[str, Tensor], name: str) -> str:
    value = state.get(name)
    return (
        f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "missing" if value is None else "no tensor"
    )
