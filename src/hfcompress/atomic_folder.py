"""Replaces a folder completely or not at all."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hfcompress.errors import CompressionError
from hfcompress.validation import check_folder_name

if sys.platform != "win32":
    import fcntl


@contextmanager
def replacing(directory: str | os.PathLike[str], obsolete: Callable[[str], bool]) -> Iterator[Path]:
    """Yield a new folder to write into, which replaces another one at once when everything is written.

    The new folder is a hidden sibling, flushed to the disk and then exchanged for the old one, by one system call where
    there is one (Linux, macOS). Elsewhere it takes two renames, and a process killed between them leaves the old folder
    beside its place, as ``.NAME.*.replaced``; the next save puts it back first, and removes what else a killed process
    left there.

    Args:
        directory: The folder to replace or to create. A link is followed.
        obsolete: Tells from its name whether a file of the old folder is removed. All other files and folders stay,
            unless the new folder has one of that name.

    Yields:
        The new folder, empty.

    Raises:
        CompressionError: It cannot be written. The old folder is unchanged, and nothing is left beside it.
    """
    check_folder_name(directory, "write")
    target = Path(os.path.realpath(directory))
    _check_writable(target, str(directory))
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        put_back(target)
        _remove_leftovers(target)
        begun: list[Path] = []
        lock = None
        try:
            new, lock = _new_beside(target, begun)
            yield new
            _flush(new)
            if target.exists():
                _check_no_mounts(target, str(directory))  # there may be one by now
                _carry_over(target, new, obsolete)
                _flush(new, files=False)
                shutil.copymode(target, new)
            with _same_working_directory(target):
                _move_into_place(new, target)
            if new.exists():  # files written into the old folder in the meantime
                with suppress(OSError):
                    _carry_over(new, target, obsolete)
        finally:
            for folder in begun:  # after an exchange, this is the old one
                _remove(folder)
            if lock is not None:
                os.close(lock)
    except BaseException as error:
        for parent in missing:
            with suppress(OSError):  # something else is in it by now
                parent.rmdir()
        if not _is_of_the_disk(error):
            raise
        raise CompressionError(f"{str(directory)!r} cannot be written, it is as it was before: {error}") from error


def put_back(directory: str | os.PathLike[str]) -> None:
    """Put a folder back that a process killed between two renames left beside its place; the latest of several.

    `replacing` does so too. Call it before, where what is in the folder is looked at first.
    """
    target = Path(os.path.realpath(directory))
    with suppress(OSError):  # another process has put it back
        left = sorted(_leftovers(target, "replaced"), key=lambda one: one.stat().st_mtime_ns)
        if left and not target.exists():
            os.rename(left[-1], target)


@contextmanager
def flushing(files: Iterable[Path]) -> Iterator[None]:
    """Flush files to the disk while the block runs, so that `replacing` has less to wait for at its end.

    Args:
        files: Written and closed.

    Raises:
        OSError: One of them cannot be written to the disk.
    """
    with ThreadPoolExecutor(1) as pool:
        flushed = pool.map(_flush_path, files)
        yield
        list(flushed)


def _is_of_the_disk(error: BaseException) -> bool:
    """Whether an error says that something cannot be written; tokenizers has a plain Exception for that."""
    plain = type(error) is Exception and "(os error " in str(error)
    return plain or isinstance(error, OSError | SafetensorError)


def _check_writable(target: Path, name: str) -> None:
    if target.exists() and not target.is_dir():
        raise CompressionError(f"{name!r} is a file; name a folder.")
    _check_no_mounts(target, name)
    files = [parent for parent in target.parents if parent.is_file()]
    if files:
        raise CompressionError(f"{name!r} cannot be written: {files[0]} is a file; name a folder.")
    for folder in (target, target.parent):  # the new folder is created beside the old one
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise CompressionError(f"{name!r} cannot be written, it is as it was before: {folder} is read-only.")


def _check_no_mounts(target: Path, name: str) -> None:
    """Refuse a mount point, and a folder with one in it: what is mounted would be emptied with the old folder."""
    points = [target] if os.path.ismount(target) else []
    with suppress(OSError):  # only Linux lists them, those of folders of the same file system included
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
        coded = (line.split(b" ")[4] for line in lines)  # a space, for example, is \040
        named = (re.sub(rb"\\([0-7]{3})", lambda digits: bytes([int(digits[1], 8)]), one) for one in coded)
        points += [path for path in map(Path, map(os.fsdecode, named)) if path.is_relative_to(target)]
    if target in points:
        raise CompressionError(f"{name!r} is a mount point, which cannot be replaced; name a folder in it.")
    if points:
        raise CompressionError(
            f"{name!r} cannot be replaced, as {points[0]} in it is a mount point; unmount that, or name another folder."
        )


@contextmanager
def _same_working_directory(target: Path) -> Iterator[None]:
    """Keep the working directory at the same path if it is in the folder that is replaced."""
    try:
        here = Path.cwd()
    except OSError:  # it was removed before
        here = Path(target.root)
    yield
    if here.is_relative_to(target):
        with suppress(OSError):
            os.chdir(here)


def _move_into_place(new: Path, target: Path) -> None:
    """Move `new` to `target`; an old folder there is at `new` afterwards."""
    for _ in range(10):  # another process may create or remove the target in between
        try:
            if not target.exists():
                os.rename(new, target)
            elif not _exchange(new, target):
                _rename_twice(new, target)
            with suppress(OSError):  # such as of a folder that may not be read; either folder is whole after a crash
                _flush_path(target.parent)
            return
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY):
                raise
    raise OSError(f"other processes keep changing {target}")


def _rename_twice(new: Path, target: Path) -> None:
    old = _sibling(target, "replaced")
    os.rename(target, old)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(old, target)
        raise
    os.rename(old, new)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders by one system call; return whether this system can."""
    libc: Any = ctypes.CDLL(None) if sys.platform in ("linux", "darwin") else None
    paths = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        return bool(libc.renameat2(here, paths[0], here, paths[1], exchange) == 0)
    return hasattr(libc, "renamex_np") and libc.renamex_np(*paths, 2) == 0  # RENAME_SWAP


def _carry_over(old: Path, new: Path, obsolete: Callable[[str], bool] = lambda name: False) -> None:
    """Link the files of the old folder that stay into the new one."""
    for entry in os.scandir(old):
        place = new / entry.name
        free = not os.path.lexists(place)
        if obsolete(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            if entry.stat(follow_symlinks=False).st_dev != old.stat().st_dev:
                raise OSError(errno.EXDEV, "another file system is mounted here, and would be emptied", entry.path)
            if free:
                place.mkdir()
            if place.is_dir() and not place.is_symlink():
                _carry_over(Path(entry.path), place)
            if free:
                shutil.copystat(entry.path, place)
        elif free:
            try:
                os.link(entry.path, place, follow_symlinks=False)
            except OSError:  # a file system without links
                shutil.copy2(entry.path, place, follow_symlinks=False)


def _flush(folder: Path, *, files: bool = True) -> None:
    for where, _, names in os.walk(folder):
        for path in [*(os.path.join(where, name) for name in names if files), where]:
            _flush_path(path)


def _flush_path(path: str | os.PathLike[str]) -> None:
    if sys.platform == "win32" and os.path.isdir(path):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems flush no folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not os.path.isdir(path):
            raise
    finally:
        os.close(handle)


def _new_beside(target: Path, begun: list[Path]) -> tuple[Path, int | None]:
    """Create a folder, locked as long as this process lives, so that others know that it is in use.

    Args:
        target: What it lies beside.
        begun: What is to be removed is added to this list before it is there, as a signal may come at any moment.
    """
    while True:
        new = _sibling(target)
        begun.append(new)
        new.mkdir()
        try:
            lock = _lock(new)
        except (FileNotFoundError, BlockingIOError):  # another process removes it, as it was not locked yet
            continue
        except OSError:  # Windows, or a file system without locks
            return new, None
        if new.exists():
            return new, lock
        os.close(lock)


def _remove(folder: Path) -> None:
    """Remove a folder, also where a signal interrupts that."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _lock(folder: Path) -> int:
    """Return a handle of a folder, locked; raise a BlockingIOError if another process has locked it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _sibling(target: Path, suffix: str = "saving") -> Path:
    return target.parent / f".{target.name}.{uuid.uuid4().hex}.{suffix}"


def _leftovers(target: Path, suffix: str) -> Iterator[Path]:
    return target.parent.glob(f".{glob.escape(target.name)}.{32 * '[0-9a-f]'}.{suffix}")


def _remove_leftovers(target: Path) -> None:
    """Remove the folders that killed processes left beside a folder: those that no process has locked.

    One that was replaced by two renames is removed only if another is in its place.
    """
    suffixes = ("saving", "replaced") if target.exists() else ("saving",)
    for leftover in (one for suffix in suffixes for one in _leftovers(target, suffix)):
        with suppress(OSError):
            handle = _lock(leftover)
            try:
                shutil.rmtree(leftover)
            finally:
                os.close(handle)
