"""Classifiers that another runtime runs, as `hfcompress.load_exported` returns them: read and measured like modules."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hfcompress.errors import CompressionError

_USUAL_INPUTS = frozenset(("input_ids", "attention_mask", "token_type_ids"))


@runtime_checkable
class ExportedClassifier(Protocol):
    """A classifier in a file.

    It may say more about itself: ``input_names``, ``max_tokens`` and ``dtype``, as `hfcompress.ExportedModel` does.
    """

    @property
    def config(self) -> Any:
        """The config of the classifier."""

    @property
    def stored_bytes(self) -> int:
        """Bytes of the file."""

    def __call__(self, **inputs: Tensor) -> Any:
        """Return an output with ``logits``, a tensor of shape (batch, classes)."""


class ExportedModule(nn.Module):
    """An exported classifier as a module without weights, on the CPU.

    Attributes:
        exported: What runs.
        config: Its config.
        inputs: The names of the inputs that it takes.
        max_tokens: How many tokens of a text it can read, if it knows; else its config says.
    """

    def __init__(self, exported: ExportedClassifier) -> None:
        super().__init__()
        self.exported, self.config = exported, exported.config
        self.inputs: frozenset[str] = frozenset(getattr(exported, "input_names", _USUAL_INPUTS))
        self.max_tokens: int | None = getattr(exported, "max_tokens", None)
        self.device_of_inputs = nn.Parameter(torch.empty(0), requires_grad=False)  # batches are put where it is

    @property
    def name(self) -> str:
        """What messages call it: its file, if it tells one."""
        files = getattr(self.exported, "files", None)
        return str(files[0]) if files else type(self.exported).__name__

    def forward(self, **inputs: Tensor) -> Any:
        """Run it."""
        return self.exported(**inputs)

    def get_input_embeddings(self) -> nn.Module:
        """Return an empty table with as many rows as there are tokens."""
        return nn.Embedding(self.config.get_text_config().vocab_size, 1, device="meta")


def as_module(name: str, model: object) -> nn.Module:
    """Return a model as a module, exported or not.

    Raises:
        CompressionError: It is neither a module nor an exported classifier.
    """
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, ExportedClassifier):
        return ExportedModule(model)
    raise CompressionError(
        f"The model {name!r} is a {type(model).__name__}; pass a module of torch, or what hfcompress.load_exported "
        "returns."
    )
