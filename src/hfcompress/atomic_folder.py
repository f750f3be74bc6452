"""A folder that is replaced whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hfcompress.errors import CompressionError

if sys.platform != "win32":
    import fcntl


@contextmanager
def replacing(directory: str | os.PathLike[str], obsolete: Callable[[str], bool]) -> Iterator[Path]:
    """Give a new folder to write into, which takes the place of another one at once when all is written.

    The new folder is a hidden sibling, flushed to the disk and then exchanged for the old one, by one system call where
    there is one (Linux, macOS). Elsewhere two renames follow each other, and a process killed between them leaves the
    old folder beside its place, as ``.NAME.*.saving``. What a killed process left there is removed by the next save.

    Args:
        directory: The folder to replace or to make. A link is followed.
        obsolete: Whether a file of the old folder, by its name, belongs to what is replaced. All other files and
            folders stay, unless the new folder has one of that name.

    Yields:
        The new folder, empty.

    Raises:
        CompressionError: It cannot be written. The old folder is as it was, and nothing is left beside it.
    """
    target = Path(os.path.realpath(directory))
    _check_writable(target, str(directory))
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        new, lock = _new_beside(target)
        try:
            yield new
            _flush(new)
            if target.exists():
                _carry_over(target, new, obsolete)
                _flush_folders(new)
                shutil.copymode(target, new)
            with _same_working_directory(target):
                _put(new, target)
            if new.exists():  # what was written into the old folder in the meantime
                with suppress(OSError):
                    _carry_over(new, target, obsolete)
        finally:
            shutil.rmtree(new, ignore_errors=True)  # after an exchange, this is the old folder
            if lock is not None:
                os.close(lock)
    except BaseException as error:
        for parent in missing:
            with suppress(OSError):  # something else is in it by now
                parent.rmdir()
        if not isinstance(error, (OSError, SafetensorError)):
            raise
        raise CompressionError(f"{str(directory)!r} cannot be written, it is as it was before: {error}") from error


def _check_writable(target: Path, name: str) -> None:
    if target.exists() and not target.is_dir():
        raise CompressionError(f"{name!r} is a file; name a folder.")
    if os.path.ismount(target):
        raise CompressionError(f"{name!r} is a mount point, which nothing can take the place of; name a folder in it.")
    if target.exists() and not os.access(target, os.W_OK | os.X_OK):
        raise CompressionError(f"{name!r} cannot be written, it is as it was before: it is read-only.")
    if target.parent.exists() and not os.access(target.parent, os.W_OK | os.X_OK):
        raise CompressionError(
            f"{name!r} cannot be written, it is as it was before: the new folder is made beside it, and "
            f"{target.parent} is read-only."
        )


@contextmanager
def _same_working_directory(target: Path) -> Iterator[None]:
    """Stay at the same path if it is in the folder that is replaced."""
    try:
        here = Path.cwd()
    except OSError:  # it was removed before
        here = Path(target.root)
    yield
    if here.is_relative_to(target):
        with suppress(OSError):
            os.chdir(here)


def _put(new: Path, target: Path) -> None:
    """Let `new` be `target`; what was there is at `new` afterwards."""
    for _ in range(10):  # another process may make or remove the target in between
        if not target.exists():
            try:
                os.rename(new, target)
                _flush_one(target.parent)
                return
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
        with suppress(FileNotFoundError):
            if not _exchange(new, target):
                old = _sibling(target)
                os.rename(target, old)
                try:
                    os.rename(new, target)
                except BaseException:
                    os.rename(old, target)
                    raise
                os.rename(old, new)
            _flush_one(target.parent)
            return
    raise OSError(f"other processes keep changing {target}")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders at once, if this system can."""
    libc: Any = ctypes.CDLL(None, use_errno=True) if sys.platform in ("linux", "darwin") else None
    paths = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        failed = libc.renameat2(here, paths[0], here, paths[1], exchange)
    elif hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(*paths, 2)  # RENAME_SWAP
    else:
        return False
    if failed and ctypes.get_errno() == 2:
        raise FileNotFoundError(2, os.strerror(2), str(other))
    return not failed  # a file system that does not know how says so


def _carry_over(old: Path, new: Path, obsolete: Callable[[str], bool] | None = None) -> None:
    """Link what stays of the old folder into the new one."""
    for entry in os.scandir(old):
        place = new / entry.name
        if obsolete is not None and obsolete(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            if entry.stat(follow_symlinks=False).st_dev != old.stat().st_dev:
                raise OSError(errno.EXDEV, "another file system is mounted here, and would be emptied", entry.path)
            if not os.path.lexists(place):
                place.mkdir()
                _carry_over(Path(entry.path), place)
                shutil.copystat(entry.path, place)
            elif place.is_dir() and not place.is_symlink():
                _carry_over(Path(entry.path), place)
        elif not os.path.lexists(place):
            _link(entry.path, place)


def _link(source: str, target: str | os.PathLike[str]) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(source, target, follow_symlinks=False)


def _flush(folder: Path) -> None:
    for where, _, names in os.walk(folder):
        for name in names:
            _flush_one(os.path.join(where, name))
        _flush_one(where)


def _flush_folders(folder: Path) -> None:
    for where, _, _ in os.walk(folder):
        _flush_one(where)


def _flush_one(path: str | os.PathLike[str]) -> None:
    if sys.platform == "win32" and os.path.isdir(path):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _new_beside(target: Path) -> tuple[Path, int | None]:
    """Make a folder, locked for as long as this process lives, so that others know that it is in use."""
    while True:
        new = _sibling(target)
        new.mkdir()
        if sys.platform == "win32":
            return new, None
        try:
            lock = os.open(new, os.O_RDONLY)
        except FileNotFoundError:  # another process removed it: it was not locked yet
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process is just removing it
            os.close(lock)
            continue
        except OSError:  # a file system without locks
            return new, lock
        if new.exists():
            return new, lock
        os.close(lock)


def _sibling(target: Path) -> Path:
    return target.parent / f".{target.name}.{uuid.uuid4().hex}.saving"


def _remove_leftovers(target: Path) -> None:
    """Remove what killed processes left beside a folder: what is locked by nobody."""
    if sys.platform == "win32" or not target.exists():
        return
    ours = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{32}}\.saving")
    for leftover in target.parent.iterdir():
        if not ours.fullmatch(leftover.name):
            continue
        with suppress(OSError):
            handle = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover)
            finally:
                os.close(handle)
