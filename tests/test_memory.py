"""Anonymous memory is told apart from mapped files, and what is left of it is the least that the machine and its limits leave."""

import mmap
import time
from pathlib import Path

import numpy as np
import pytest

from alize import memory
from alize.memory import Watch, available_bytes, free_bytes, held

SIZE = 64_000_000
linux = pytest.mark.skipif(held() is None, reason="needs Linux's /proc")


@linux
def test_a_peak_is_seen_though_it_is_gone_and_is_counted_anew() -> None:
    with Watch() as watch:
        before = held()
        with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:  # an allocator might keep them
            np.frombuffer(pages, np.uint8)[:] = 1
            time.sleep(0.1)  # for the thread to look
        peak = watch.restart()
        after = watch.restart()
    assert before is not None
    assert peak is not None
    assert after is not None
    assert peak.anonymous > before.anonymous + 0.9 * SIZE
    assert after.anonymous < before.anonymous + 0.5 * SIZE


@linux
def test_pages_of_a_file_are_not_anonymous(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(SIZE))
    before = held()
    mapped = np.memmap(tmp_path / "file", np.uint8, mode="r")
    assert mapped.sum() == 0
    now = held()
    assert before is not None
    assert now is not None
    assert now.mapped > before.mapped + 0.9 * SIZE
    assert now.anonymous < before.anonymous + 0.5 * SIZE


def test_a_container_may_leave_less_than_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable: 50 kB\nHugePages_Total: 0\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    limit, current = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(memory, "_GROUPS", ((limit, current, "inactive_file"),))
    assert available_bytes() == 50 * 1024
    limit.write_text("max\n")
    current.write_text("4096\n")
    (tmp_path / "memory.stat").write_text("anon 4000\ninactive_file 96\n")
    assert available_bytes() == 50 * 1024
    limit.write_text("10000\n")
    assert available_bytes() == 10000 - 4096 + 96
    limit.write_text("1000\n")
    assert available_bytes() == 0
    (tmp_path / "meminfo").unlink()
    assert available_bytes() is None


def test_a_system_that_does_not_tell_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STATUS", Path("/nowhere/status"))
    assert held() is None
    with Watch() as watch:
        assert watch.restart() is None


def test_free_bytes_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert abs(free_bytes(tmp_path / "not" / "yet") - free_bytes(tmp_path)) < 1e9
