"""Jobs that each write one file, shared out among processes: on one machine, or started by hand."""

from __future__ import annotations

import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from examples.imdb.environment import free_memory
from examples.imdb.files import Result, write_json

PAUSE = 1.0  # seconds between looks at what other processes have finished


@dataclass(frozen=True)
class Job:
    """Something to compute: its file, and the files of other jobs that it starts from."""

    title: str
    file: Path
    compute: Callable[[], Result]
    needs: Sequence[Path] = ()

    @property
    def is_done(self) -> bool:
        """Whether the file is there; it is written whole or not at all."""
        return self.file.exists()

    @property
    def can_start(self) -> bool:
        """Whether what it starts from is there."""
        return all(file.exists() for file in self.needs)


def finish(jobs: Sequence[Job], after: Callable[[Job], object] | None = None) -> list[Job]:
    """Compute what is missing, the first that can start first, until nothing is left that this or another process does.

    A job is locked by the process that computes it; a process that dies frees its locks. One that fails is left out by
    the process where it failed, which tries the others.

    Args:
        jobs: In the order of their importance.
        after: Called after each job that this process has computed.

    Returns:
        The jobs without a file: those that failed here and in all other processes, and what needs them.
    """
    failed: list[Job] = []
    while pending := [job for job in jobs if not job.is_done and job not in failed]:
        ready = [job for job in pending if job.can_start]
        if not any(_compute(job, failed, after) for job in ready):
            broken = {job.file for job in failed if not job.is_done}
            if all(broken & {*job.needs} for job in pending):
                break
            time.sleep(PAUSE)
    return [job for job in jobs if not job.is_done]


def _compute(job: Job, failed: list[Job], after: Callable[[Job], object] | None) -> bool:
    """Compute a job, unless another process does or did; return whether it was tried."""
    job.file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{job.file}.lock", timeout=0):
            if job.is_done:
                return True
            print(job.title, flush=True)
            try:
                write_json(job.file, job.compute())
            except Exception:
                print(f"{job.title} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
                failed.append(job)
                return True
            finally:
                free_memory()
    except Timeout:
        return False
    if after is not None:
        after(job)
    return True


def start_others(module: str, arguments: Sequence[str], count: int, folder: Path) -> list[subprocess.Popen[bytes]]:
    """Start the same program so many times more; what each prints is in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", module, *arguments, "--helper"]
    started = []
    for number in range(1, count + 1):
        with (folder / f"process-{number}.log").open("wb") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
    return started
