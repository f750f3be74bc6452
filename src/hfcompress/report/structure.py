"""What was removed from a model, and what that saves."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from hfcompress.models.heads_and_neurons import KINDS, Kind
from hfcompress.models.inputs import TOKENS
from hfcompress.report.tables import Row, align, markdown


@dataclass(frozen=True)
class BlockStructure:
    """Heads or neurons of one block.

    Attributes:
        name: The layer, or the block where a layer has several.
        kind: ``"heads"`` or ``"neurons"``.
        before: How many it had; under grouped queries a head is a key-value head with all its queries.
        after: How many it has.
    """

    name: str
    kind: str
    before: int
    after: int


@dataclass(frozen=True)
class StructureReport:
    """What was removed, and what it saves. ``print`` shows a table.

    Attributes:
        blocks: Heads, then neurons, of each layer that is left.
        layers: How many layers there were, and are.
        parameters: How many parameters the model had, and has.
        flops: Floating-point operations of a text of 128 tokens (or as many as the model can read) before and after,
            counted as it ran.
        asked: The arguments that say how much to remove.
        latency_ms: Milliseconds of such a text before and after, if a budget of latency was asked.
    """

    blocks: tuple[BlockStructure, ...]
    layers: tuple[int, int]
    parameters: tuple[int, int]
    flops: tuple[int, int]
    asked: dict[str, Any]
    latency_ms: tuple[float, float] | None = None

    def removed(self, kind: Kind) -> float:
        """Return the fraction of the heads or the neurons, of the layers that are left, that was removed."""
        before, after = self._total(kind)
        return 1 - after / before if before else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python values, ready for JSON."""
        return {**asdict(self), **{f"{kind}_removed": self.removed(kind) for kind in KINDS}}

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def to_text(self) -> str:
        """Return the report as a table for a terminal."""
        return "\n".join([*align(*self._table()), self._note()])

    def to_markdown(self) -> str:
        """Return the report as a Markdown table."""
        return "\n".join([*markdown(*self._table()), "", self._note()])

    def __str__(self) -> str:
        return self.to_text()

    def _total(self, kind: Kind) -> tuple[int, int]:
        blocks = [block for block in self.blocks if block.kind == kind]
        return sum(block.before for block in blocks), sum(block.after for block in blocks)

    def _table(self) -> tuple[list[Row], str]:
        rows: list[Row] = [("", "before", "after", "removed")]
        totals = {"layers": self.layers} | {kind: self._total(kind) for kind in KINDS}
        totals |= {"parameters": self.parameters, f"FLOPs of {TOKENS} tokens": self.flops}
        for name, (before, after) in totals.items():
            if before:
                rows.append((name, f"{before:,}", f"{after:,}", f"{1 - after / before:.1%}"))
        if self.latency_ms is not None:
            full, small = self.latency_ms
            rows.append((f"ms of {TOKENS} tokens", f"{full:.1f}", f"{small:.1f}", f"{1 - small / full:.1%}"))
        return rows, "<>>>"

    def _note(self) -> str:
        return "asked: " + ", ".join(f"{name}={value!r}" for name, value in self.asked.items())
