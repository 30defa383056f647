"""A build that was interrupted goes on where it stopped, from verified pieces, and gives the bytes of one that was not."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alize.artifact.pieces import Pieces
from alize.building import build
from alize.errors import CorruptCheckpoint, OutputError
from alize.models.reference import Halfway
from alize.progress import SilentProgress
from alize.validate.bookmarks import PieceBookmark
from tests.builds.conftest import BuiltOnce
from tests.tiny import edit_tensor, tiny_checkpoint

MATRICES = 3 * 7 + 2
DOWN = "model.layers.1.mlp.down_proj.weight"


class Interrupter:
    """Lets so many pieces be put, then does something instead of another; counts the matrices that are rounded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left, self.rounded = sys.maxsize, 0
        self.action: Callable[[], None] = lambda: signal.raise_signal(signal.SIGINT)
        put, quantised = Pieces.put, sys.modules["alize.rounding"].quantised

        def counted_put(pieces: Pieces, name: str, parts: Any) -> Path:
            self.left -= 1
            if self.left < 0:
                self.action()
            return put(pieces, name, parts)

        def counted(*words: Any) -> Any:
            self.rounded += 1
            return quantised(*words)

        monkeypatch.setattr(Pieces, "put", counted_put)
        monkeypatch.setattr("alize.rounding.quantised", counted)


@pytest.fixture
def interrupter(monkeypatch: pytest.MonkeyPatch) -> Interrupter:
    return Interrupter(monkeypatch)


class Said(SilentProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def options(target: str = "onnxruntime") -> dict[str, Any]:
    """Nothing is validated: what is sealed has the same integers in it, and is there sooner."""
    return {"target": target, "weights": "int4", "budget_seconds": 0.0}


def same(folder: Path, whole: Path) -> None:
    """Every sealed byte."""
    names = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    assert {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} == names
    for name in names - {Path("build-record.json")}:
        assert hashlib.sha256((folder / name).read_bytes()).digest() == hashlib.sha256((whole / name).read_bytes()).digest(), name


def stopped(interrupter: Interrupter, after: int, source: Path, output: Path, target: str = "onnxruntime") -> Path:
    """The folder of a build that Ctrl-C stopped after so many pieces."""
    interrupter.left = after
    with pytest.raises(KeyboardInterrupt) as caught:
        build(str(source), output=output, **options(target))
    interrupter.left, interrupter.rounded = sys.maxsize, 0
    folder = output.with_name(f".{output.name}.unfinished")
    assert list(output.parent.iterdir()) == [folder]
    assert f"is kept in {folder}: the same command goes on from there" in caught.value.__notes__[0]
    return folder


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_it_goes_on_where_it_stopped(target: str, built: BuiltOnce, interrupter: Interrupter, tmp_path: Path) -> None:
    one, output, said = built(**options(target)), tmp_path / "out", Said()
    stopped(interrupter, 9, one.checkpoint, output, target)
    build(str(one.checkpoint), output=output, progress=said, **options(target))
    assert interrupter.rounded == MATRICES - 9
    assert any(note.startswith("going on with 9 finished pieces") for note in said.notes)
    same(output, one.folder)
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(("model", "spoilt"), [("windowed", False), ("mixtral", False), ("windowed", True)])
def test_the_reference_goes_on_behind_its_last_layer(
    model: str, spoilt: bool, built: BuiltOnce, interrupter: Interrupter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Three runs of three layers: stopped in the second, and validated to the same figures; a spoilt run begins anew."""
    one, output, saved = built("onnxruntime", model), tmp_path / "out", 0
    interrupter.left = 4
    with pytest.raises(KeyboardInterrupt):
        build(str(one.checkpoint), output=output, target="onnxruntime")
    interrupter.left = sys.maxsize
    pieces = sorted((tmp_path / ".out.unfinished" / "pieces").glob("reference-*"))
    assert sorted(path.suffix for path in pieces) == [".1", ".3"]
    if spoilt:
        path = next(path for path in pieces if path.suffix == ".3")
        path.write_bytes(path.read_bytes()[:-1] + b"\x77")
    save = PieceBookmark.save

    def counted(bookmark: PieceBookmark, halfway: Halfway) -> None:
        nonlocal saved
        saved += 1
        save(bookmark, halfway)

    monkeypatch.setattr(PieceBookmark, "save", counted)
    build(str(one.checkpoint), output=output, target="onnxruntime")
    assert saved == 9 - 4 + 3 * spoilt
    same(output, one.folder)
    assert list(tmp_path.iterdir()) == [output]


def test_a_changed_piece_and_half_of_one_are_made_again(built: BuiltOnce, interrupter: Interrupter, tmp_path: Path) -> None:
    one, output = built(**options()), tmp_path / "out"
    folder = stopped(interrupter, 9, one.checkpoint, output)
    first, second, *_ = sorted((folder / "pieces").iterdir())
    content = bytearray(first.read_bytes())
    content[5] ^= 1
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[:-1])
    build(str(one.checkpoint), output=output, **options())
    assert interrupter.rounded == MATRICES - 9 + 2
    same(output, one.folder)


@pytest.mark.parametrize("after", [1, MATRICES])
def test_kill_9(after: int, built: BuiltOnce, tmp_path: Path) -> None:
    """Behind the first piece and behind the last: nothing ran that could tidy up."""
    one, output = built(**options()), tmp_path / "out"
    script = f"""
import importlib, os, signal, sys
from alize import cli
from alize.artifact.pieces import Pieces
put, end = Pieces.put, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
Pieces.put = lambda pieces, *what: (end if len(pieces) == {after} else put)(pieces, *what)
importlib.import_module("alize.building").export_hub = end
cli.main(sys.argv[1:])"""
    words = ["build", str(one.checkpoint), "--target", "onnxruntime", "--weights", "int4", "-o", str(output), "-q"]
    ran = subprocess.run([sys.executable, "-c", script, *words], check=False)
    assert ran.returncode == -signal.SIGKILL
    left = sorted(path.name.rstrip("0123456789") for path in tmp_path.iterdir())
    assert left == [".out.building-", ".out.unfinished"]
    said = Said()
    build(str(one.checkpoint), output=output, progress=said, **options())
    assert any(f"with {after} finished pieces" in note for note in said.notes)
    same(output, one.folder)
    assert list(tmp_path.iterdir()) == [output]


def test_a_changed_shard_starts_over(built: BuiltOnce, interrupter: Interrupter, tmp_path: Path) -> None:
    """And so does any other checkpoint that is built to the same place."""
    source = shutil.copytree(built(**options()).checkpoint, tmp_path / "source")
    (tmp_path / "place").mkdir()
    output, said = tmp_path / "place" / "out", Said()
    stopped(interrupter, 9, source, output)
    from alize.models.checkpoint import Checkpoint

    edit_tensor(source, DOWN, Checkpoint.open(source).tensor(DOWN).clone() * 1.01)
    build(str(source), output=output, progress=said, **options())
    assert interrupter.rounded == MATRICES
    assert any("starting over" in note and "has another checkpoint" in note for note in said.notes)
    build(str(source), output=tmp_path / "fresh", **options())
    same(output, tmp_path / "fresh")


def test_no_resume(built: BuiltOnce, interrupter: Interrupter, tmp_path: Path) -> None:
    one, output = built(**options()), tmp_path / "out"
    stopped(interrupter, 9, one.checkpoint, output)
    interrupter.left = 3
    with pytest.raises(KeyboardInterrupt) as caught:
        build(str(one.checkpoint), output=output, resume=False, **options())
    assert interrupter.rounded == 4
    assert list(tmp_path.iterdir()) == []
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("stage", [0, 9])
def test_a_shard_that_changes_under_the_build(stage: int, interrupter: Interrupter, tmp_path: Path) -> None:
    """Between the hash and the last look: what was read is used for nothing, and nothing of it is left."""
    source = tiny_checkpoint(tmp_path / "source")
    shard = next(source.glob("*.safetensors"))
    interrupter.left, interrupter.action = stage, lambda: os.utime(shard)
    (tmp_path / "place").mkdir()
    with pytest.raises(CorruptCheckpoint, match=f"{shard.name}: changed while it was read; wait until nothing writes"):
        build(str(source), output=tmp_path / "place" / "out", **options())
    assert list((tmp_path / "place").iterdir()) == []


def test_a_disk_that_fills_up_with_pieces(built: BuiltOnce, interrupter: Interrupter, tmp_path: Path) -> None:
    """What is missing is the space that they take: they go too."""

    def full() -> None:
        raise OSError(28, "No space left on device")

    interrupter.left, interrupter.action = 9, full
    with pytest.raises(OutputError, match="disk full"):
        build(str(built(**options()).checkpoint), output=tmp_path / "out", **options())
    assert list(tmp_path.iterdir()) == []
