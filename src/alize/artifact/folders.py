"""Folders that appear whole or not at all: a locked sibling to build in, an atomic swap, and what a full disk looks like."""

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

try:
    import fcntl
except ImportError:  # Windows: there a stale folder is told by its process number alone
    fcntl = None  # type: ignore[assignment]

__all__ = ["disk_full", "ends_by_signal", "lock", "publish", "remove_stale", "sync", "uninterrupted"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_TEXTS = ("no space left on device", "disk quota exceeded", "(os error 27)")  # as C++ and Rust libraries report them
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def lock(folder: Path) -> int | None:
    """Takes the lock that says a build is alive, whatever process number space it runs in. None where another holds it."""
    if fcntl is None:
        return -1
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a file system without locks: the process number has to do
        os.close(descriptor)
        return -1
    return descriptor


def remove_stale(parent: Path, prefix: str) -> None:
    """Removes `PREFIX<pid>` folders that a killed build left in `parent`. Whatever cannot be removed is left alone."""
    for folder in parent.glob(f"{prefix}*"):
        process = folder.name.removeprefix(prefix)
        if not process.isdecimal() or (int(process) != os.getpid() and _alive(int(process))):
            continue
        with contextlib.suppress(OSError):
            descriptor = lock(folder)  # process numbers repeat across containers that share a disk; locks do not
            if descriptor is None or (descriptor < 0 and int(process) == os.getpid()):
                continue
            shutil.rmtree(folder, ignore_errors=True)
            if descriptor >= 0:
                os.close(descriptor)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def publish(folder: Path, output: Path) -> None:
    """Renames `folder` to `output`. An output that is there is swapped in one step, its old contents being removed after."""
    if not os.path.lexists(output):
        folder.rename(output)
        sync(output.parent)
        return
    if not _exchange(folder, output):
        aside = folder.with_name(f"{folder.name}.replaced")
        output.rename(aside)
        try:
            folder.rename(output)
        except OSError:
            aside.rename(output)
            raise
        folder = aside
    sync(output.parent)
    shutil.rmtree(folder, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """renameat2(RENAME_EXCHANGE): False where the system or the file system has none."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def sync(path: Path) -> None:
    """fsync of a file or folder; what cannot be synced (a folder on Windows, some network disks) is left to the system."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _FULL or error.errno == errno.EIO:
            raise
    finally:
        os.close(descriptor)


def disk_full(error: BaseException) -> bool:
    """Whether a full disk, quota or file size limit is behind `error`: engines wrap the system's error, or keep only its text."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(one, OSError) and one.errno in _FULL for one in seen):
        return True
    return any(text in str(one).lower() for one in seen for text in _FULL_TEXTS)


@contextlib.contextmanager
def ends_by_signal() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end the block as SystemExit(128 + signal), so that what it made is taken away again."""
    caught = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in caught}
    ours = [number for number in caught if before[number] is signal.SIG_DFL]  # a host's own handler is not ours to replace
    for number in ours:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Keeps a second, impatient Ctrl-C from stopping the removal of what the first one left."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
