"""The rows on which int8 models are ranked, and those on which they are judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hfcompress.deploy.exported_model import ExportedModel
from hfcompress.deploy.speed import BATCHES
from hfcompress.errors import CompressionError
from hfcompress.losses import Problem
from hfcompress.metrics import example_scores, predict
from hfcompress.models.classifier import get_problem_type
from hfcompress.models.exported import ExportedModule
from hfcompress.models.inputs import Batch, read_examples
from hfcompress.models.labels import LABELS
from hfcompress.models.padding import end_of_text, split_rows
from hfcompress.report.benchmark import predict_logits
from hfcompress.report.quality import as_columns, check_labels

BATCH = max(BATCHES)  # texts that are read at once, as they are timed

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class HeldOut:
    """Rows on which int8 models are ranked, and others on which they are judged."""

    module: ExportedModule
    tokenizer: PreTrainedTokenizerBase
    ranked: Rows
    judged: Rows

    @cached_property
    def problem(self) -> Problem:
        """What the logits mean."""
        return get_problem_type(self.module, "model")

    @cached_property
    def labels(self) -> Tensor:
        """The labels of the rows to judge on."""
        labels = read_examples("dataset", self.module, self.judged, self.tokenizer).labels
        assert labels is not None
        return check_labels("dataset", labels, self.problem).cpu()

    def logits(self, model: ExportedModel, rows: Rows) -> Tensor:
        """Return the logits of rows, each read alone, as where a text is served when it comes."""
        module = ExportedModule(model)
        return predict_logits("exported", module, read_examples("dataset", module, rows, self.tokenizer), 1)

    def logits_in_batches(self, model: ExportedModel, rows: Rows) -> Tensor:
        """Return the logits of rows, read 16 at once, with padding."""
        return torch.cat([model(**batch).logits for batch in self.batches(model, rows)]).to(torch.float32)

    def batches(self, model: ExportedModel, rows: Rows) -> Iterator[Batch]:
        """Yield 16 rows at once, with padding; alone those that BART and T5 do not read together."""
        examples, end = read_examples("dataset", ExportedModule(model), rows, self.tokenizer), end_of_text(model.config)
        for start in range(0, len(rows), BATCH):
            part = range(start, min(start + BATCH, len(rows)))
            batch = examples.take(part)
            if len({*(batch["input_ids"] == end).sum(1).tolist()}) == 1:
                yield batch
            else:
                yield from (examples.take([index]) for index in part)

    def scores(self, logits: Tensor) -> Tensor:
        """Return how right the logits of the rows to judge on are, by row."""
        if self.problem == "single_label_classification":
            return (predict(logits, self.problem) == self.labels).double()
        labels = as_columns(self.labels)
        found = example_scores(as_columns(logits), labels, self.problem)
        if self.problem == "regression":
            return 1 - found / labels.double().var(0, correction=0).mean().clamp(min=1e-12)
        return found


def split_dataset(dataset: Any) -> tuple[Rows, Rows]:
    """Return rows to rank on and rows to judge on: two halves, drawn at random, the same in each call.

    Raises:
        CompressionError: There are no rows, fewer than two, or they have no labels.
    """
    if dataset is None:
        raise CompressionError(
            "dtype='int8' needs dataset=: labelled rows that no training has seen, on which int8 is compared with "
            "float32; some hundred of them."
        )
    rows = split_rows(dataset) if isinstance(dataset, Mapping) else [*dataset]
    if others := [row for row in rows if not isinstance(row, Mapping)]:
        raise CompressionError(f"dataset must hold rows with 'input_ids' and 'labels'; one of it is {others[0]!r:.60}.")
    if len(rows) < 2:
        count = "1 row" if rows else "no rows"
        raise CompressionError(f"dataset has {count}; half of them rank what is quantized, so pass some hundred.")
    unlabelled = sum(not row.keys() & set(LABELS) for row in rows)
    if unlabelled:
        raise CompressionError(f"{unlabelled} of the {len(rows)} rows of dataset have no 'labels', which are needed.")
    columns = {next(name for name in LABELS if name in row) for row in rows}
    if len(columns) > 1:
        named = " and others ".join(repr(name) for name in LABELS if name in columns)
        raise CompressionError(f"Some rows of dataset have {named}; give all of them 'labels'.")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    half = len(rows) // 2
    return [rows[index] for index in order[:half]], [rows[index] for index in order[half:]]
