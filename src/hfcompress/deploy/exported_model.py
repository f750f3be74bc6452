"""Runs an exported model from its folder, with tensors in and out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from hfcompress.deploy.folder import Folder, check_files, read_model_config, read_record
from hfcompress.deploy.formats import FORMATS, count_bytes, describe_failure, model_files, open_model
from hfcompress.errors import CompressionError
from hfcompress.models.padding import end_of_text


class ExportedModel:
    """A classifier that ONNX Runtime or OpenVINO runs; `load_exported` makes it, `measure` and `compare` take it.

    Attributes:
        config: The config of the classifier.
        dtype: ``"float32"`` or ``"int8"``.
        stored_bytes: Bytes of the model file, and of its weights where they are in another.
        files: The model file, and that of its weights if it has one.
        max_tokens: How many tokens of a text it can read; None if there is no limit.
        input_names: The inputs that it takes.
    """

    def __init__(self, file: Folder, config: PreTrainedConfig, record: dict[str, Any]) -> None:
        self.config = config
        self.dtype: str = record["dtype"]
        self.max_tokens: int | None = record["max_tokens"]
        self.files = model_files(Path(file))
        self.stored_bytes = count_bytes(Path(file))
        self._defaults: dict[str, int | None] = record["inputs"]
        self._limits: dict[str, int] = record.get("limits", {})
        self._session = open_model(file)
        self.input_names = frozenset(one.name for one in self._session.get_inputs())
        outputs = {one.name: one.shape for one in self._session.get_outputs()}
        if self.input_names != set(self._defaults) or "logits" not in outputs:
            raise CompressionError(
                f"{file} has the inputs {', '.join(sorted(self.input_names))} and the outputs {', '.join(outputs)}, "
                "which are not those of the exported model. Export the model again."
            )

    def __call__(self, **inputs: Tensor | None) -> SequenceClassifierOutput:
        """Return the logits of a batch.

        Args:
            inputs: ``input_ids`` and what else the tokenizer makes, each of shape (batch, length). Without
                ``attention_mask`` nothing is padding.

        Returns:
            An output with ``logits``, in float32 on the CPU.

        Raises:
            CompressionError: An input is missing, unknown, or of another shape than the others; a token is unknown; a
                text is longer than the model reads; or one has more ends than another, for BART or T5.
        """
        try:
            given = {name: torch.as_tensor(value) for name, value in inputs.items() if value is not None}
        except (TypeError, ValueError) as error:
            raise CompressionError(
                "The exported model reads tensors of one shape, (batch, length): call the tokenizer with padding=True "
                f"and return_tensors='pt' ({error})."
            ) from error
        if "input_ids" not in given or (unknown := given.keys() - self.input_names):
            wrong = f"not {', '.join(sorted(unknown))}" if "input_ids" in given else "and input_ids must be among them"
            raise CompressionError(f"The exported model reads {', '.join(sorted(self.input_names))}, {wrong}.")
        shape = given["input_ids"].shape
        if len(shape) != 2 or 0 in shape or any(value.shape != shape for value in given.values()):
            found = ", ".join(f"{name} {tuple(value.shape)}" for name, value in given.items())
            raise CompressionError(f"All inputs must be of one shape, (batch, length), and not empty; found {found}.")
        if self.max_tokens is not None and shape[1] > self.max_tokens:
            raise CompressionError(
                f"A text has {shape[1]} tokens, and {self.files[0]} reads 1 to {self.max_tokens}; truncate the texts."
            )
        self._check_ids(given)
        self._check_ends(given["input_ids"])
        arrays = {name: value.numpy() for name, value in self.complete(given).items()}
        try:
            logits = self._session.run(["logits"], arrays)[0]
        except Exception as error:  # the runtimes' own classes have no public base
            raise CompressionError(describe_failure(self.files[0], error)) from error
        return SequenceClassifierOutput(logits=torch.from_numpy(logits))

    def complete(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return all inputs that the model file has, as int64 on the CPU, those that are not given with their default.

        Raises:
            CompressionError: One is not given that has none.
        """
        missing = [name for name in self.input_names - inputs.keys() if self._defaults[name] is None]
        if missing:
            raise CompressionError(f"The exported model needs {', '.join(missing)}; pass what the tokenizer returns.")
        ids = inputs["input_ids"]
        filled = {
            name: torch.full_like(ids, int(self._defaults[name] or 0)) for name in self.input_names - inputs.keys()
        }
        return {name: value.cpu().to(torch.int64) for name, value in (dict(inputs) | filled).items()}

    def _check_ids(self, inputs: Mapping[str, Tensor]) -> None:
        """Refuse ids outside a table, which the runtimes count from its end or replace by zeros."""
        for name, limit in self._limits.items():
            low, high = inputs[name].aminmax() if name in inputs else (0, 0)
            if low < 0 or high >= limit:
                wrong = int(low if low < 0 else high)
                raise CompressionError(f"{name} has {wrong}; the exported model knows 0 to {limit - 1}.")

    def _check_ends(self, ids: Tensor) -> None:
        """Refuse what BART and T5 refuse in torch: texts that do not all have as many tokens that end a text."""
        eos = end_of_text(self.config)
        least, most = map(int, (ids == eos).sum(1).aminmax())
        if eos >= 0 and (least < most or most == 0):
            raise CompressionError(
                f"The texts of a batch have {least} to {most} of the token {eos}, which ends a text; the exported "
                "model reads batches in which each text has as many, at least one. Pass each of the others alone."
            )


def load_exported(directory: Folder) -> ExportedModel:
    """Load a model that `export` wrote, to run it in this process.

    Serving it needs neither this function nor torch: the model card in the folder has the lines that do.

    Args:
        directory: The folder.

    Returns:
        A model that is called with ``input_ids`` and the like, tensors of torch, and returns an output with ``logits``.

    Raises:
        CompressionError: The folder is missing or damaged: no record, a model file that is not the one written, the
            config of a model of another kind or size, a file that is not there; or the runtime cannot run the model.
        ImportError: The runtime is not installed: ``pip install 'hfcompress[onnx]'`` or ``'hfcompress[openvino]'``.

    Example:
        See `export`.
    """
    folder = Path(directory)
    record = read_record(folder)
    check_files(folder, record)
    graph = folder / FORMATS[record["format"]].graph
    return ExportedModel(graph, read_model_config(folder, record), record)
