"""What this process holds in memory and what the machine has left: anonymous memory told apart from mapped files.

Anonymous memory is the process's own: without swap it stays until it is given back. Pages of mapped files (checkpoint shards,
the target's weights) are the kernel's to drop and to read again, and are no part of what a build needs.
"""

import contextlib
import ctypes
import gc
import os
import shutil
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Held", "Watch", "available_bytes", "existing", "free_bytes", "give_back", "held"]

_STATUS = Path("/proc/self/status")
_MEMINFO = Path("/proc/meminfo")
_GROUPS = (  # a container's limit and use: control groups version 2, then version 1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"), "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        "total_inactive_file",
    ),
)
_PERIOD = 0.01  # seconds between two looks: a tensor of 100 MB lives longer than that


@dataclass(frozen=True)
class Held:
    """Bytes. anonymous: the process's own memory.   mapped: pages of files that are in memory for it."""

    anonymous: int
    mapped: int


def held() -> Held | None:
    """What this process holds now; None where the system does not say (it is Linux that does)."""
    fields = _fields(_STATUS)
    if "RssAnon" not in fields:
        return None
    return Held(fields["RssAnon"], fields["RssFile"])


def available_bytes() -> int | None:
    """What a new process can use without swapping: MemAvailable, or less where a container has a limit. None: unknown."""
    available = _fields(_MEMINFO).get("MemAvailable")
    if available is None:
        return None
    return min([available, *_left_in_groups()])


def existing(folder: Path) -> Path:
    """FOLDER, or the nearest folder above it that is there."""
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(parent))


def free_bytes(folder: Path) -> int:
    """Free bytes of the file system that FOLDER is or will be in. One without blocks, as /proc, does not say: it may refuse
    to be written to, but not for want of space."""
    usage = shutil.disk_usage(existing(folder))
    return usage.free if usage.total else sys.maxsize


def give_back() -> None:
    """Frees what nothing refers to any more, and asks the allocator (glibc's) to return what it keeps of freed memory."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class Watch:
    """A context that looks at this process's memory every 10 ms, in a thread; `peak` is the highest since the last `restart`.

    The two parts of a peak need not have come together. Where the system does not tell, peaks are None.
    """

    def __init__(self) -> None:
        self._peak: Held | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._look, name="alize-memory", daemon=True)

    def __enter__(self) -> Self:
        self._peak = held()
        if self._peak is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def restart(self) -> Held | None:
        """The peak so far; it is then counted anew, from what is held now."""
        with self._lock:
            peak, self._peak = _larger(self._peak, held()), held()
        return peak

    def _look(self) -> None:
        while not self._stop.wait(_PERIOD):
            with self._lock:
                self._peak = _larger(self._peak, held())


def _larger(one: Held | None, other: Held | None) -> Held | None:
    if one is None or other is None:
        return one or other
    return Held(max(one.anonymous, other.anonymous), max(one.mapped, other.mapped))


def _fields(path: Path) -> dict[str, int]:
    """The lines `Name:  123 kB` of a file in /proc, in bytes; none where there is no such file."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    words = [line.split() for line in lines]
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in words if len(line) == 3 and line[2] == "kB"}


def _left_in_groups() -> list[int]:
    found = []
    for limit, current, cache in _GROUPS:
        try:
            allowed, used = int(limit.read_text()), int(current.read_text())
            statistics = dict(line.split() for line in (limit.parent / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such group, or its limit is the word "max"
            continue
        found.append(max(0, allowed - used + int(statistics.get(cache, 0))))
    return found
