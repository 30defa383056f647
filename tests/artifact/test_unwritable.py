"""Outputs that cannot be written, and disks that fill up."""

import errno
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from alize.artifact import Building, Manifest
from alize.artifact import seal as seal_module
from alize.errors import OutputError, SourceNotFound

Make = Callable[..., Manifest]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_output_without_a_name(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not a folder that can be made"):
        Building(Path("/"))
    with pytest.raises(OutputError, match="exists"), Building(tmp_path / "a" / ".."):
        pass


def test_a_parent_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "out", Path("/proc/out"), Path("/proc/sys/deep/out")):  # permissions do not bind root
        with pytest.raises(OutputError, match="cannot be written"), Building(output):
            pass
    assert names(tmp_path) == ["file"]


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    body = """
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    from alize.errors import OutputError
    try:
        with Building(output) as building:
            (building.folder / "small.bin").write_bytes(bytes(1000))
            (building.folder / "weights.bin").write_bytes(bytes(2 << 20))
    except OutputError as error:
        print(error)
    """
    head = "import sys\nfrom pathlib import Path\nfrom alize.artifact import Building\noutput = Path(sys.argv[1])\n"
    script = head + textwrap.dedent(body)
    command = [sys.executable, "-c", script, str(tmp_path / "deep" / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert re.fullmatch(r"disk full.*free space.*\n", done.stdout)
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_while_the_manifest_is_written(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(OutputError, match=r"disk full.*free space"):
        make(tmp_path / "out")
    assert names(tmp_path) == []


def test_a_full_disk_that_fsync_finds(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match="disk full"):
        make(tmp_path / "out")
    assert names(tmp_path) == []


def wrapped() -> BaseException:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("engine: write failed")  # noqa: B904  (engines chain like this)
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "error", [wrapped(), RuntimeError("ofstream: No space left on device"), ValueError("I/O error: File too large (os error 27)")]
)
def test_an_engine_that_hides_the_full_disk(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OutputError, match="disk full") as caught, Building(tmp_path / "out"):
        raise error
    assert caught.value.__cause__ is error
    assert names(tmp_path) == []


def test_a_disk_that_is_full_when_an_engine_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(OutputError, match="disk full"), Building(tmp_path / "out"):
        raise RuntimeError("could not serialise")
    with pytest.raises(SourceNotFound), Building(tmp_path / "out"):
        raise SourceNotFound("no such folder")


def test_an_output_error_is_not_wrapped(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"^mine$"), Building(tmp_path / "out"):
        raise OutputError("mine")
