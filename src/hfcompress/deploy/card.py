"""Writes the model card of an exported model, with the lines that serve it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfcompress.deploy.export_report import ExportReport
from hfcompress.deploy.formats import FORMATS
from hfcompress.models.classifier import get_problem_type
from hfcompress.models.tokenizers import token_limit
from hfcompress.storage.model_card import CARD, MARK, is_our_card

_TOKENIZER = "tokenizer.json"


def write_card(
    folder: Path,
    target: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    report: ExportReport,
    names: Sequence[str],
) -> None:
    """Write the card into a new folder, unless the folder that it replaces has one of the user's own.

    Args:
        folder: The new folder.
        target: That which it replaces.
        model: What was exported.
        tokenizer: That of the model.
        report: What was done.
        names: The inputs of the graph.
    """
    old = target / CARD
    if old.exists() and not is_our_card(old):
        return
    pad = tokenizer.pad_token_id
    pad = model.config.get_text_config().pad_token_id if pad is None else pad
    made = {*tokenizer("a"), *tokenizer.model_input_names}
    ModelCard.from_template(
        ModelCardData(library_name=report.format, tags=["hfcompress"], pipeline_tag="text-classification"),
        template_str=files(__package__).joinpath("served_card.md.j2").read_text(encoding="utf-8") + "\n",
        mark=MARK,
        name=target.resolve().name,
        model_class=type(model).__name__,
        report=report,
        runtime=FORMATS[report.format].runtime,
        package=FORMATS[report.format].package,
        table=report.to_markdown(),
        has_tokenizer=(folder / _TOKENIZER).is_file(),
        side=tokenizer.padding_side,
        pad=pad,
        # A literal of JSON is one of Python too.
        pad_token=json.dumps(tokenizer.convert_ids_to_tokens(pad) or "[PAD]", ensure_ascii=False),
        limit=token_limit(tokenizer, model),
        cut=tokenizer.truncation_side,
        is_typed="token_type_ids" in made or "token_type_ids" not in names,
        problem=get_problem_type(model, "model"),
    ).save(folder / CARD)
