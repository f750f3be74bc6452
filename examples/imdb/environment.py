"""What the programs find on this machine: its processor, packages that carry data, libraries that print."""

from __future__ import annotations

import logging
import os
import platform
import re
import warnings
from importlib.metadata import distribution
from pathlib import Path
from typing import Any


def package_folder(name: str) -> Path:
    """Return the folder of an installed package; importing it would run its code, and only its data is needed."""
    return Path(str(distribution(name).locate_file(name)))


def describe_machine() -> dict[str, Any]:
    """Name the processor, its cores, the GPU and the system."""
    import torch

    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.*\S)", info.read_text()) if info.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": name, "cores": os.cpu_count(), "gpu": gpu, "system": platform.platform()}


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
