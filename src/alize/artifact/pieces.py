"""Finished pieces of a build that is not sealed yet: files that a later build of the same may go on from, each verified.

    .NAME.unfinished/       beside the output NAME, for as long as a build of it is not done
        key.json            what is being built, from what, by which versions: a build with another key starts over
        ledger.jsonl        one line a finished piece: name, size, sha256; or name and null, where one was given up
        pieces/             the pieces; what is in no line of the ledger is the half-written rest of an interruption

Standard library only. A piece counts from the moment that its line is in the ledger, and is hashed before it is used again, so
that neither a kill between two writes nor a disk that lost the last seconds can put a wrong one into an artifact.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from alize.artifact.folders import lock
from alize.artifact.manifest import Manifest
from alize.errors import OutputError

__all__ = ["Pieces", "Unfinished", "build_key"]

_CHUNK = 1 << 24

Data = bytes | bytearray | memoryview


class Pieces:
    """Named files in `folder`, which is made when the first is put there. One process at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = folder / "pieces"
        self._ledger = folder / "ledger.jsonl"
        self._entries = _read_ledger(self._ledger)
        self._trusted: set[str] = set()  # written or verified by this process

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes of all pieces, as they were written."""
        return sum(size for size, _ in self._entries.values())

    def get(self, name: str) -> Path | None:
        """The piece's file, None where there is none or not the one that was written: then it has to be made again."""
        if name not in self._entries:
            return None
        path = self._files / name
        if name not in self._trusted:
            size, digest = self._entries[name]
            if not _holds(path, size, digest):
                self.drop(name)
                return None
            self._trusted.add(name)
        return path

    def put(self, name: str, parts: Iterable[Data]) -> Path:
        """Writes the parts one behind the other as the piece `name`, in place of one that is there."""
        self._files.mkdir(parents=True, exist_ok=True)
        path, digest, size = self._files / name, hashlib.sha256(), 0
        half = path.with_name(f"{name}.half")
        with half.open("wb") as file:
            for part in parts:
                digest.update(part)
                size += file.write(part)
        self._entries.pop(name, None)
        half.replace(path)
        self._write({"name": name, "size": size, "sha256": digest.hexdigest()})
        self._entries[name] = (size, digest.hexdigest())
        self._trusted.add(name)
        return path

    def digest(self, name: str) -> str:
        """sha256 of the piece, in hex."""
        return self._entries[name][1]

    def drop(self, name: str) -> None:
        """Removes a piece, whether it is there or not."""
        self._trusted.discard(name)
        if self._entries.pop(name, None) is not None:
            self._write({"name": name, "size": None})
            (self._files / name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes everything, the folder included."""
        self._entries.clear()
        self._trusted.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def empty(self) -> None:
        """Removes everything but the folder, whose lock is somebody's claim to it."""
        self._entries.clear()
        self._trusted.clear()
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _write(self, line: dict[str, Any]) -> None:
        with self._ledger.open("ab+") as ledger:
            if ledger.tell() and not _ends_a_line(ledger):  # the last line is torn: nothing may be appended to it
                ledger.write(b"\n")
            ledger.write(json.dumps(line).encode() + b"\n")

    def sweep(self) -> None:
        """Removes what no line of the ledger names: the rest of an interruption."""
        for path in [*self._files.glob("*"), *self.folder.glob("*")]:
            named = path.parent == self._files and path.name in self._entries
            if not named and path not in (self._files, self._ledger, self.folder / "key.json"):
                path.unlink()


def build_key(draft: Manifest) -> dict[str, Any]:
    """What an unfinished build has to agree in, so that another one may go on from its pieces."""
    target = draft.target
    return {
        "alize": draft.alize,
        "checkpoint": draft.source.sha256,
        "adapter": draft.source.adapter,
        "target": f"{target.backend} {target.device}",
        "weights": target.weights,
        "options": dict(target.options),
        "versions": dict(target.versions),
    }


class Unfinished:
    """A context that holds the pieces of one build, `pieces`, and decides at its end what becomes of them.

    After Ctrl-C and signals that end a build they are kept, unless `resume` is False, and the exception gets a note that says
    where. After success and after an error they are removed: what failed would fail again, and a full disk wants its space.

    Raises OutputError where another process builds the same output.
    """

    def __init__(self, output: Path, *, resume: bool = True) -> None:
        self.folder = output.with_name(f".{output.name}.unfinished")
        self.pieces = Pieces(self.folder)
        self._output, self._resume = output, resume
        self._lock = -1

    def __enter__(self) -> Self:
        while not self._taken():
            pass
        self.pieces = Pieces(self.folder)  # what was read before the lock was held may have been another's
        if not self._resume:
            self.pieces.empty()
        return self

    def begin(self, key: Mapping[str, Any]) -> str | None:
        """Says what is built. Returns a line about what is found there: to go on from it, or to start over because `key` is
        another one; None where there is nothing."""
        there, found = self.folder / "key.json", None
        before = None
        with contextlib.suppress(OSError, ValueError):
            before = json.loads(there.read_bytes())
        wanted = json.loads(json.dumps(key))
        if before == wanted:
            self.pieces.sweep()
            if len(self.pieces):
                found = f"going on with {len(self.pieces)} finished pieces, {self.pieces.size / 1e6:.0f} MB in {self.folder}"
        elif len(self.pieces):
            other = before if isinstance(before, dict) else {}
            names = [name for name in wanted if other.get(name) != wanted[name]] or ["key"]
            found = f"starting over: the unfinished build in {self.folder} has another {' and '.join(names)}"
        if before != wanted:
            self.pieces.empty()
            there.write_text(json.dumps(wanted, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return found

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
        if error is not None and interrupted and self._resume and len(self.pieces):
            error.add_note(
                f"what was finished ({len(self.pieces)} pieces, {self.pieces.size / 1e6:.0f} MB) is kept in {self.folder}: "
                "the same command goes on from there, with --no-resume it starts over; or remove that folder"
            )
        else:
            self.pieces.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _taken(self) -> bool:
        """Makes the folder and takes its lock. False where the one that was locked is no longer there: another build ended."""
        self.folder.mkdir(exist_ok=True)
        try:
            descriptor = lock(self.folder)
        except FileNotFoundError:
            return False
        if descriptor is None:
            raise OutputError(f"{self._output} is being built by another process: wait for it, or choose another output")
        self._lock = descriptor
        if descriptor < 0 or (self.folder.exists() and os.path.samestat(os.fstat(descriptor), self.folder.stat())):
            return True
        os.close(descriptor)
        return False


def _ends_a_line(file: IO[bytes]) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read() == b"\n"


def _read_ledger(path: Path) -> dict[str, tuple[int, str]]:
    """Size and sha256 by name; a later line replaces an earlier one, and a torn one says nothing."""
    entries: dict[str, tuple[int, str]] = {}
    with contextlib.suppress(OSError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                entries.pop(entry["name"], None)
                if entry["size"] is not None:
                    entries[entry["name"]] = (int(entry["size"]), str(entry["sha256"]))
    return entries


def _holds(path: Path, size: int, digest: str) -> bool:
    try:
        if path.stat().st_size != size:
            return False
        found = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
    except OSError:
        return False
    return found.hexdigest() == digest
