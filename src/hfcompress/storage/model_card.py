"""The model card of a saved model: what was done to it, with metadata for the hub."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from hfcompress.errors import CompressionError
from hfcompress.models.shape_plan import is_plan
from hfcompress.report.sparsity import sparsity_report

CARD = "README.md"
_MARK = "<!-- This card was written by hfcompress. Without this line, a save leaves it as it is. -->"
_TEXT = """\
---
{metadata}
---

{mark}

# {name}

A {kind}, saved with hfcompress.

{facts}

Zeros scattered over a matrix make the file smaller but the model no faster: in memory its matrices are dense.
{results}
## How to load it

```python
import hfcompress  # before from_pretrained
from transformers import {kind}

model = {kind}.from_pretrained("...")  # this folder, or its name on the hub
```

If anything is packed or was shrunken unevenly, transformers alone refuses to load it, with an error about shapes:
`pip install hfcompress`, or make a dense copy with `hfcompress unpack FOLDER OUT`.
"""


class Table(Protocol):
    """What can stand in a card: a `SparsityReport`, `Measurement`, `Comparison` or `StructureReport`."""

    def to_markdown(self) -> str:
        """Return it as a Markdown table."""


def write_card(
    model: PreTrainedModel, folder: Path, *, name: str, results: Table | None, notes: Mapping[str, object]
) -> None:
    """Write the card of a model that was just saved into a folder."""
    kind = type(model).__name__
    data = ModelCardData(
        library_name="transformers",
        tags=["hfcompress"],
        pipeline_tag="text-classification" if kind.endswith("ForSequenceClassification") else None,
    )
    text = _TEXT.format(
        metadata=data.to_yaml(),
        mark=_MARK,
        name=name,
        kind=kind,
        facts="\n".join(f"- {fact}" for fact in [*_facts(model, folder), *(f"{k}: {v}" for k, v in notes.items())]),
        results="" if results is None else f"\n## Measured\n\n{results.to_markdown()}\n",
    )
    ModelCard(text, ignore_metadata_errors=True).save(folder / CARD)


def is_ours(card: Path) -> bool:
    """Whether a card was written by us, and not made the user's own since."""
    try:
        return _MARK in card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _facts(model: PreTrainedModel, folder: Path) -> list[str]:
    dense = sum({tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}.values())
    held = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    facts = [f"Weights: {held:,} bytes on disk, {dense:,} in memory."]
    try:
        report = sparsity_report(model)
        facts.append(f"Zeros: {report.zeros:,} of {report.weights:,} prunable weights ({report.sparsity:.2%}).")
    except CompressionError:  # no weights that can be pruned, so nothing to say
        pass
    plan = getattr(model.config, "quantization_config", None)
    if is_plan(plan):
        kinds = [kind for kind in ("heads", "neurons") if kind in plan]
        facts += [f"{kind.capitalize()} left in each layer: {plan[kind]}." for kind in kinds]
    versions = [f"{package} {version(package)}" for package in ("hfcompress", "transformers", "torch")]
    return [*facts, f"Written by {', '.join(versions)}."]
