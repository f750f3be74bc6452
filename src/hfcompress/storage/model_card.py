"""Writes the model card of a saved model, with metadata for the hub."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from hfcompress.compat import package_version
from hfcompress.errors import CompressionError
from hfcompress.models.new_head import new_head
from hfcompress.models.shape_plan import is_plan
from hfcompress.models.tensors import stored_bytes
from hfcompress.report.sparsity import sparsity_report

CARD = "README.md"
MARK = "<!-- This card was written by hfcompress. Without this line, a save leaves it as it is. -->"


class Table(Protocol):
    """What a card can show as measured: a `SparsityReport`, `StructureReport`, `Comparison` or the like."""

    def to_markdown(self) -> str:
        """Return it as a Markdown table."""


def write_card(
    model: PreTrainedModel, folder: Path, *, name: str, results: Table | None, notes: Mapping[str, object]
) -> None:
    """Write the card of a model into the folder that it was just saved to."""
    model_class = type(model).__name__
    data = ModelCardData(
        library_name="transformers",
        tags=["hfcompress"],
        pipeline_tag="text-classification" if model_class.endswith("ForSequenceClassification") else None,
    )
    report, plan = None, getattr(model.config, "quantization_config", None)
    with suppress(CompressionError):  # it may have no prunable weights
        report = sparsity_report(model)
    ModelCard.from_template(
        data,
        template_str=files(__package__).joinpath("model_card.md.j2").read_text(encoding="utf-8") + "\n",
        mark=MARK,
        name=name,
        model_class=model_class,
        held=sum(file.stat().st_size for file in folder.glob("model*.safetensors")),
        unpacked=stored_bytes(model),
        report=report,
        plan=plan if is_plan(plan) else {},
        notes=notes,
        new_head=new_head(model),
        versions=", ".join(f"{one} {package_version(one)}" for one in ("hfcompress", "transformers", "torch")),
        results=results.to_markdown() if results is not None else "",
    ).save(folder / CARD)


def is_our_card(card: Path) -> bool:
    """Whether we wrote a card, and nobody has removed the line with which it may be replaced."""
    try:
        return MARK in card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
