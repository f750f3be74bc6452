"""Time of distillation: `DistillationTrainer` against plain fine-tuning, a bare loop, and TextBrewer.

A student of two layers is distilled for thirteen epochs from a teacher of six (the paper's proportions, the width of
all-MiniLM-L6-v2, random weights, batches of 8 x 128, float32, AdamW). All programs run in turn, several times.
TextBrewer is among them where it is installed: ``pip install textbrewer==0.2.1 tensorboard``.

    python -m benchmarks.distill > benchmarks/results/distill.md
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from tabulate import tabulate
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

import hfcompress as hfc
from benchmarks.prune_global import machine
from hfcompress.losses import label_loss, teacher_loss

EPOCHS, BATCH, TOKENS, RATE = 13, 8, 128, 1e-5
TEACHER = BertForSequenceClassification(
    BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
).eval()
Program = Callable[[Dataset, Path], None]


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    disable_progress_bars()
    data = _make_data(arguments.examples)
    programs: dict[str, Program] = {
        "plain fine-tuning, stock Trainer": _train_without_teacher,
        "one pass of the teacher, bare loop": _run_teacher,
        "from the cache, bare loop": _train_in_bare_loop,
        "DistillationTrainer from the cache, computed first": _train_from_cache,
        "DistillationTrainer with the teacher": _train_with_teacher,
    }
    if find_spec("textbrewer"):
        logging.disable(logging.INFO)
        programs["TextBrewer 0.2.1"] = partial(_train_by_textbrewer, caching=False)
        caching = partial(_train_by_textbrewer, caching=True)
        programs["TextBrewer 0.2.1 with is_caching_logits (fixed batches)"] = caching
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(arguments.repeats + 1):
        for name, train in programs.items():
            small = data.select(range(BATCH))
            with TemporaryDirectory() as folder:
                start = time.perf_counter()
                train(data if turn else small, Path(folder))  # the first turn warms up
                if turn:
                    seconds[name].append(time.perf_counter() - start)
                    print(name, f"{seconds[name][-1]:.2f}", file=sys.stderr)
    print("# Time of distillation\n")
    print(
        f"{machine()}; medians of {arguments.repeats} runs in turn, {arguments.examples} examples, {EPOCHS} epochs.\n"
    )
    ours = seconds["DistillationTrainer from the cache, computed first"]
    rows = [
        {
            "": name,
            "s": f"{statistics.median(times):.2f}",
            "of ours from the cache": f"{_ratio(times, ours):.2f}",
        }
        for name, times in seconds.items()
    ]
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
    parts = zip(seconds["plain fine-tuning, stock Trainer"], seconds["one pass of the teacher, bare loop"], strict=True)
    plain = [sum(pair) for pair in parts]
    parts = zip(seconds["from the cache, bare loop"], seconds["one pass of the teacher, bare loop"], strict=True)
    bare = [sum(pair) for pair in parts]
    print(f"\nFrom the cache, against plain fine-tuning and one pass of the teacher: {_ratio(ours, plain):.3f} times.")
    print(f"From the cache, against bare loops that do the same: {_ratio(ours, bare):.3f} times.")


def _ratio(times: list[float], others: list[float]) -> float:
    """Return the median of the ratios within each turn, on which a machine that slows down has no effect."""
    return statistics.median(one / other for one, other in zip(times, others, strict=True))


def _make_data(count: int) -> Dataset:
    torch.manual_seed(0)
    ids = torch.randint(1000, 30000, (count, TOKENS)).tolist()
    labels = torch.randint(0, 2, (count,)).tolist()
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * TOKENS] * count, "labels": labels})


def _student() -> BertForSequenceClassification:
    return hfc.student_from_teacher(TEACHER, 2).train()


def _arguments(kind: type[Any], folder: Path, **more: Any) -> Any:
    return kind(
        output_dir=str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **more,
    )


def _train_without_teacher(data: Dataset, folder: Path) -> None:
    _train(Trainer(model=_student(), args=_arguments(TrainingArguments, folder), train_dataset=data))


def _train_from_cache(data: Dataset, folder: Path) -> None:
    data = hfc.cache_teacher_logits(TEACHER, data, cache_dir=folder / "cache", batch_size=BATCH)
    args = _arguments(hfc.DistillationArguments, folder)
    _train(hfc.DistillationTrainer(model=_student(), args=args, train_dataset=data))


def _train_with_teacher(data: Dataset, folder: Path) -> None:
    args = _arguments(hfc.DistillationArguments, folder)
    _train(hfc.DistillationTrainer(model=_student(), args=args, teacher=copy.deepcopy(TEACHER), train_dataset=data))


def _train(trainer: Trainer) -> None:
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def _run_teacher(data: Dataset, folder: Path) -> None:
    with torch.inference_mode():
        for batch in _batches(data):
            batch.pop("labels")
            TEACHER(**batch)


def _train_in_bare_loop(data: Dataset, folder: Path) -> None:
    data = data.add_column("teacher_logits", torch.randn(len(data), 2).tolist())
    student = _student()
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    for _ in range(EPOCHS):
        for batch in _batches(data):
            labels, teacher_logits = batch.pop("labels"), batch.pop("teacher_logits")
            logits = student(**batch).logits
            loss: Any = 0.5 * teacher_loss(logits, teacher_logits).mean() + 0.5 * label_loss(logits, labels).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            student.zero_grad()


def _train_by_textbrewer(data: Dataset, folder: Path, *, caching: bool) -> None:
    textbrewer: Any = import_module("textbrewer")  # not among our extras

    def adaptor(batch: dict[str, Any], outputs: Any) -> dict[str, Any]:
        return {"logits": outputs.logits, "losses": outputs.loss}

    student = _student()
    distiller = textbrewer.BasicDistiller(
        train_config=textbrewer.TrainingConfig(device="cpu", output_dir=str(folder), ckpt_epoch_frequency=EPOCHS),
        distill_config=textbrewer.DistillationConfig(
            temperature=1, kd_loss_type="mse", hard_label_weight=0.5, kd_loss_weight=0.5, is_caching_logits=caching
        ),
        model_T=copy.deepcopy(TEACHER),
        model_S=student,
        adaptor_T=adaptor,
        adaptor_S=adaptor,
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, fused=True)
    loader = DataLoader(data.to_list(), batch_size=BATCH, shuffle=True, collate_fn=default_data_collator)
    with distiller:
        distiller.train(optimizer, loader, num_epochs=EPOCHS, max_grad_norm=1.0)


def _batches(data: Dataset) -> Iterator[dict[str, Any]]:
    return iter(DataLoader(data, batch_size=BATCH, shuffle=True, collate_fn=default_data_collator))


if __name__ == "__main__":
    main()
