"""What the programs find on this machine: its processor and precision, packages with data, libraries that print."""

from __future__ import annotations

import gc
import logging
import os
import platform
import warnings
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.imdb.errors import UsageError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "bf16", "fp16", "tf32", "float32")


def package_folder(name: str, inside: str | Path | None = None) -> Path:
    """Return the folder of an installed package, or a path of its; importing it would run its code."""
    return Path(str(distribution(name).locate_file(inside or name)))


def describe_machine() -> dict[str, Any]:
    """Name the processor, its features and cores, the GPU and the system."""
    import torch

    from hfcompress.compat import processor_features, processor_name

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu = {"cpu": processor_name(), "features": processor_features(), "cores": os.cpu_count()}
    return cpu | {"gpu": gpu, "system": platform.platform()}


def name_machine(machine: dict[str, Any]) -> str:
    """Return a description of a machine as a phrase; older ones lack the features of the processor."""
    features = machine.get("features")
    cores = f"{machine['cores']} cores" + (f" ({', '.join(features)})" if features else "")
    return ", ".join(part for part in (machine["cpu"], cores, machine["gpu"]) if part)


def current_device() -> torch.device:
    """Return the accelerator if there is one, or else the processor."""
    import torch

    from hfcompress.compat import current_accelerator

    return current_accelerator() or torch.device("cpu")


def free_memory() -> None:
    """Give the memory of a GPU back that nothing uses, so that other processes can have it."""
    import torch

    gc.collect()  # a Trainer and its model refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def choose_precision(asked: str) -> str:
    """Return the precision to train in, all but ``"auto"`` of `PRECISIONS`, and print it with the reason."""
    from hfcompress.compat import current_accelerator, mixed_precision

    if asked in ("fp16", "tf32") and current_accelerator() is None:
        raise UsageError(f"--precision {asked} needs an accelerator, and there is none; use --precision auto.")
    chosen, reason = mixed_precision() if asked == "auto" else (asked, "as asked")
    chosen = "float32" if chosen == "no" else chosen
    print(f"Precision of the training: {chosen} ({reason}).")
    return chosen


def share_processor(processes: int) -> None:
    """Give each process its share of the cores, and leave the screen to lines; called before torch is imported."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ.setdefault("TQDM_DISABLE", "1")


def silence_libraries() -> None:
    """Leave the screen to the progress bars and the tables."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch|transformers|accelerate")
