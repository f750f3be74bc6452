"""A teacher's logits, computed once and kept in files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hfcompress.compat import current_accelerator
from hfcompress.distill.arguments import warn_if_bfloat16_is_slow
from hfcompress.distill.teacher_inputs import TEACHER_LOGITS
from hfcompress.errors import CompressionError
from hfcompress.models.classifier import check_model_kind, evaluation_mode, get_config, get_logits, input_names, unwrap
from hfcompress.models.inputs import Padder, check_lengths, check_mask, unpadded_rows
from hfcompress.models.new_head import check_trained
from hfcompress.models.padding import reading, unpadded_batches, without_padding
from hfcompress.models.plain_weights import check_no_float32_alone
from hfcompress.models.tensors import check_has_values, packed_tensors, plain_parts
from hfcompress.models.tokenizers import check_tokenizer, token_limit, tokenizer_rules, truncation
from hfcompress.validation import check_count

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 2  # of the files
_SHARD = 4096  # examples in a file at least
_SHARDS = 1000  # files at most


def cache_teacher_logits(
    teacher: PreTrainedModel | nn.Module,
    dataset: Dataset,
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    text_column: str = "text",
    text_pair_column: str | None = None,
    max_length: int | None = None,
    batch_size: int = 32,
    bf16: bool = False,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """Add a teacher's logits to a data set as the column ``teacher_logits``, from which `DistillationTrainer` learns.

    They are computed once and kept, memory-mapped, in a folder whose name is a digest of the teacher's weights and
    config, the columns that it reads and the settings that matter: with any of these changed, they are computed anew. A
    call that was interrupted goes on where it stopped. Processes started by ``torchrun`` or ``accelerate launch`` share
    the work; on several machines ``cache_dir`` must be a folder that all of them see. Where training changes texts at
    random (augmentation), pass the teacher itself, ``DistillationTrainer(teacher=...)``.

    Args:
        teacher: A sequence classifier. Moved to this process's device; put into eval mode while it computes.
        dataset: A `datasets.Dataset` with the text, or with what the teacher reads (``input_ids``, ...).
        processing_class: The teacher's tokenizer, which encodes the text; without it the ids in the data are read.
        text_column: Column with the text.
        text_pair_column: Column with the second text of a pair.
        max_length: Tokens at most; the tokenizer's limit if None. What is longer then than the teacher reads is refused
            before the first forward pass.
        batch_size: Examples in a forward pass.
        bf16: Compute under bfloat16 autocast, as ``TrainingArguments(bf16=True)`` does. On a processor that does not
            compute it natively this is slower than float32, and a warning names the factor.
        cache_dir: Where the folders are; ``hfcompress`` in the cache of `datasets` if None.

    Returns:
        The data set with the column, float32, one number a class, in the order of the teacher's classes: the student
        must have the same, or the teacher be given to the trainer too, which then puts them in order.

    Raises:
        CompressionError: The data have the column already, neither text nor ids that the teacher can read, no rows, a
            transform, a text that is too long or empty; the teacher holds no weights, or its logits are NaN or
            infinite.
        ImportError: `datasets` is not installed.

    Example:
        ``data = cache_teacher_logits(teacher, data, processing_class=tokenizer, max_length=128)``
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("cache_teacher_logits needs the package datasets: pip install datasets") from error
    check_model_kind(teacher, "teacher")
    check_tokenizer(processing_class)
    if not isinstance(dataset, datasets.Dataset) or not len(dataset) or dataset.format["type"] == "custom":
        raise CompressionError(
            f"dataset must be a datasets.Dataset with rows and without a transform, not {type(dataset).__name__} of "
            f"{getattr(dataset, 'num_rows', 'unknown')} rows; where texts are streamed or changed on the way, pass the "
            "teacher to DistillationTrainer."
        )
    check_has_values(teacher.named_parameters(), "The teacher's ")
    check_trained(teacher, "teacher")
    if max_length is not None:
        check_count("max_length", max_length)
    if bf16:
        check_no_float32_alone(teacher, "bf16=True")
    texts = [text_column] if text_pair_column is None else [text_column, text_pair_column]
    inputs, read = input_names(teacher), _columns_to_read(teacher, dataset, processing_class, texts)
    padder = Padder(teacher, processing_class)
    settings = {"version": _VERSION, "columns": read, "bf16": bf16, "pad": [padder.side, padder.pad_token_id]}
    if processing_class is not None:
        longest = token_limit(processing_class) if max_length is None else int(max_length)
        settings |= {
            "max_length": longest,
            "truncation_side": processing_class.truncation_side,
            "inputs": list(processing_class.model_input_names),
            "tokenizer": tokenizer_rules(processing_class),
        }

    state = PartialState(cpu=current_accelerator() is None)
    root = Path(datasets.config.HF_DATASETS_CACHE) / "hfcompress" if cache_dir is None else Path(cache_dir)
    folder = root / data_digest(teacher, settings, dataset.select_columns(read))
    size = max(_SHARD, -(-len(dataset) // _SHARDS))
    files = {start: folder / f"{start:012d}.arrow" for start in range(0, len(dataset), size)}
    # Shared out by place, not by what is missing: another process may see other files already there.
    sizes = {start: min(size, len(dataset) - start) for start in files}
    mine = list(files)[state.process_index :: state.num_processes]
    own = [start for start in mine if not _is_whole(files[start], sizes[start])]

    def encode(start: int) -> list[dict[str, Any]]:
        part = dataset.select(range(start, min(start + size, len(dataset))))
        columns = part.select_columns(read).with_format(None)[:]
        if processing_class is not None:
            for text in texts:
                _check_texts(columns[text], text, start)
            columns = processing_class(*(columns[text] for text in texts), **truncation(longest))
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        if processing_class is None:
            check_mask("the data", teacher, rows)
            padder.check(rows)
        return unpadded_rows(teacher, rows, [name for name in columns if name in inputs])

    if own:
        if bf16 and state.device.type == "cpu":
            warn_if_bfloat16_is_slow("bf16=True", stacklevel=2)
        # Each text is encoded twice, so that hours of work cannot end at a text that is too long.
        check_lengths("the data", teacher, (len(row["input_ids"]) for start in own for row in encode(start)))
        teacher.to(state.device)
        for start in logging.tqdm(own, desc="teacher's logits", disable=not state.is_main_process):
            _write(files[start], _compute_logits(teacher, encode(start), batch_size, bf16, start))
    state.wait_for_everyone()
    logits = datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files.values()])
    result = datasets.concatenate_datasets([dataset.with_format(None), logits], axis=1)
    form, columns = dataset.format, [*dataset.format["columns"], TEACHER_LOGITS]
    return result.with_format(form["type"], columns, form["output_all_columns"], **form["format_kwargs"])


def _compute_logits(teacher: nn.Module, rows: list[dict[str, Tensor]], size: int, bf16: bool, start: int) -> Tensor:
    """Return the teacher's logits of encoded rows, in their order: float32, on the CPU, shape (rows, classes).

    Raises:
        CompressionError: Some are NaN or infinite; rows are counted from ``start``.
    """
    device, order, found = next(teacher.parameters()).device, [], []
    with (
        evaluation_mode(teacher),
        without_padding(teacher),
        torch.autocast(device.type, torch.bfloat16, enabled=bf16),
    ):
        for indices, batch in unpadded_batches(teacher, rows, size):
            order += indices
            with reading(teacher, batch):
                outputs = teacher(**{name: value.to(device) for name, value in batch.items()})
            found.append(get_logits(outputs).float().cpu())
    logits = torch.cat(found)[torch.tensor(order).argsort()]
    broken = (~logits.flatten(1).isfinite().all(1)).nonzero().flatten()
    if len(broken):
        cause = "under bf16=True; try it without" if bf16 else "check its weights"
        raise CompressionError(
            f"The teacher's logits of row {start + int(broken[0])} (from 0), and of {len(broken) - 1} others of the "
            f"next {len(rows)}, are NaN or infinite, {cause}."
        )
    return logits


def _columns_to_read(
    teacher: nn.Module, dataset: Dataset, tokenizer: PreTrainedTokenizerBase | None, texts: list[str]
) -> list[str]:
    if TEACHER_LOGITS in dataset.column_names:
        raise CompressionError(
            f"The data have a column {TEACHER_LOGITS!r} already; remove it with remove_columns({TEACHER_LOGITS!r})."
        )
    # The mask says what is padding, also to a teacher that does not take it.
    own = (input_names(teacher) | {"attention_mask"}) - {"labels"}
    readable = set(dataset.column_names) if tokenizer is not None else own
    read = [name for name in dataset.column_names if name in readable]
    missing = [name for name in (texts if tokenizer is not None else ["input_ids"]) if name not in read]
    if missing:
        raise CompressionError(
            f"The teacher cannot read the data, which lack {', '.join(map(repr, missing))} and have the columns "
            f"{', '.join(dataset.column_names)}: pass its tokenizer as processing_class= and name the text with "
            "text_column=, or encode the texts to input_ids and leave processing_class out."
        )
    return texts if tokenizer is not None else read


def _check_texts(column: list[Any], name: str, start: int) -> None:
    """Refuse what is no text, by its row."""
    for row, text in enumerate(column, start):
        if not isinstance(text, str | list):
            raise CompressionError(
                f"Row {row} (from 0) of the data has {text!r:.40} in the column {name!r}, which is not a text; leave "
                "it out, or name another column with text_column=."
            )


def data_digest(teacher: nn.Module, settings: dict[str, Any], *data: Dataset) -> str:
    """Name a model's logits of data; the name changes with anything that can change them, and with the settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(f"{type(unwrap(teacher)).__module__} {type(unwrap(teacher)).__qualname__}".encode())
    for name, module in teacher.named_modules():
        if hasattr(module, "adapter_layer_names"):  # PEFT's
            state = [getattr(module, key, None) for key in ("scaling", "active_adapters", "disable_adapters")]
            digest.update(f"{name} {state}".encode())
        if type(module).__module__.partition(".")[0] not in ("torch", "transformers"):  # by which it may compute
            plain = {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float | str)}
            shown = sorted((key, repr(plain[key])) for key in plain if key != "training" and not key.startswith("_"))
            digest.update(f"{name} {shown}".encode())
    config = get_config(teacher)
    if config is not None:
        transient = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")
        names = ("id2label", "label2id")  # which change no logits
        kept = {name: value for name, value in config.to_dict().items() if name not in (*transient, *names)}
        digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    tensors = [(name, value) for name, value in teacher.state_dict().items() if isinstance(value, Tensor)]
    tensors += [(f"packed {number}", tensor) for number, tensor in enumerate(packed_tensors(teacher))]
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for part in plain_parts(tensor.detach()):
            values: Any = part.cpu().contiguous().view(-1).view(torch.uint8).numpy()
            digest.update(values)
    for one in data:
        digest.update(f"{len(one)} rows".encode())
        for table in one.with_format("arrow").iter(batch_size=1000):
            # Taken row by row, the values lie in buffers of their own; a slice would bring its offset along.
            for batch in table.take(list(range(len(table)))).combine_chunks().to_batches():
                digest.update(batch.serialize())
    return digest.hexdigest()[:32]


def _write(file: Path, logits: Tensor) -> None:
    """Write an Arrow file, complete or not at all."""
    import pyarrow

    values = pyarrow.array(logits.reshape(-1).numpy())
    table = pyarrow.table({TEACHER_LOGITS: pyarrow.FixedSizeListArray.from_arrays(values, logits.shape[1])})
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{uuid4().hex}.tmp")
    with pyarrow.OSFile(str(temporary), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    with temporary.open("rb+") as written:
        os.fsync(written.fileno())
    os.replace(temporary, file)


def _is_whole(file: Path, rows: int) -> bool:
    """Whether a file is there with so many rows: a machine without power may leave a part of it."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as stream:
            return sum(len(batch) for batch in stream) == rows
    except (OSError, pyarrow.ArrowInvalid):
        return False
