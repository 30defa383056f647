"""Seals a folder into an artifact, and verifies one. There is no half artifact: it is built beside its place and renamed."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from alize.artifact.folders import disk_full, ends_by_signal, lock, publish, remove_stale, sync, uninterrupted
from alize.artifact.manifest import MANIFEST, FileEntry, Manifest
from alize.artifact.state import DeviceState, FileRecord
from alize.errors import OutputError, SourceError, TamperedArtifact, UsageError

__all__ = ["Building", "verify"]

_CHUNK = 1 << 20
_RACY_NS = 20_000_000
"""A file changed this shortly before it was hashed may change again under the same time stamp: no record is kept of it."""


class Building:
    """A context in which an artifact is made: files are written into `folder`, then `seal` makes them the artifact `output`.

    Leaving the context without `seal`, by an error, Ctrl-C, SIGTERM or SIGHUP, leaves nothing behind; what a killed build
    left is removed by the next one for the same output. With `overwrite` an artifact that is there is replaced in one step
    at the end and stays intact until then.

    Raises OutputError for an output that exists or cannot be made, and for a disk that fills up inside the context.
    """

    def __init__(self, output: Path, *, overwrite: bool = False) -> None:
        self.output = Path(os.path.normpath(output.absolute()))  # without `..`: parents are made when they are missing
        if not self.output.name:
            raise OutputError(f"{output} is not a folder that can be made: name one below it")
        self.folder = self.output.with_name(f".{self.output.name}.building-{os.getpid()}")
        self._overwrite = overwrite
        self._made: list[Path] = []  # parents that did not exist, innermost last
        self._lock: int = -1
        self._ours = False  # whether `folder` is there by our hand, and so ours to remove
        self._signals = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._check_output()
        self._signals.enter_context(ends_by_signal())
        try:
            self._make_folder()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        full = _blames_disk(error, self.output.parent)
        self._leave()
        if full:
            raise OutputError(_full(self.output)) from error

    def seal(
        self,
        manifest: Manifest,
        *,
        unsealed: tuple[str, ...] = (),
        advance: Callable[[int], object] | None = None,
        hashed: Callable[[], object] | None = None,
    ) -> Manifest:
        """Hashes every file of `folder`, writes manifest.json and renames the folder to `output`.

        `manifest` comes without `files`, `unsealed` and `digest`; `unsealed` names files that belong to the artifact but are
        not hashed (build-record.json). `advance` is told the bytes hashed; `hashed` is called once all of them are, and may
        still write those that are not. Returns the manifest as it was written.
        """
        with _told(self.output):
            paths = _paths(self.folder)
            entries = tuple(_entry(self.folder, path, advance) for path in paths if path not in unsealed)
            present = tuple(sorted(set(unsealed) & set(paths)))
            text = dataclasses.replace(manifest, files=entries, unsealed=present).with_digest().to_json()
            self._refuse_places(text)
            written = Manifest.from_json(text)  # what cannot be read back is not sealed
            if hashed is not None:
                hashed()
            (self.folder / MANIFEST).write_text(text, encoding="utf-8", newline="\n")
            for path in (*paths, MANIFEST, *_folders(self.folder)):
                sync(self.folder / path)
            self._check_output()
            publish(self.folder, self.output)
        self._ours = False
        return written

    def _check_output(self) -> None:
        if not os.path.lexists(self.output):
            return
        if not self._overwrite:
            raise OutputError(f"{self.output} exists: choose another output, or give --force to replace it")
        if not _is_artifact(self.output):
            raise OutputError(f"{self.output} exists and is no artifact: --force replaces artifacts only, so remove it yourself")

    def _make_folder(self) -> None:
        with _told(self.output):
            self._make_parents(self.output.parent)
            remove_stale(self.output.parent, f".{self.output.name}.building-")
            try:
                self.folder.mkdir()
            except FileExistsError as error:
                raise OutputError(f"{self.output} is being built by this process already: wait for it") from error
            self._ours = True
            descriptor = lock(self.folder)
        self._lock = -1 if descriptor is None else descriptor

    def _make_parents(self, parent: Path) -> None:
        missing = [folder for folder in (parent, *parent.parents) if not os.path.lexists(folder)]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            self._made.append(folder)

    def _leave(self) -> None:
        try:
            with uninterrupted():
                self._remove()
                if self._lock >= 0:
                    os.close(self._lock)
                    self._lock = -1
        finally:
            self._signals.close()

    def _remove(self) -> None:
        if self._ours:
            shutil.rmtree(self.folder, ignore_errors=True)
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):  # not empty: the artifact is in it, or someone else's work
                folder.rmdir()

    def _refuse_places(self, text: str) -> None:
        """A path of this machine in the manifest would give every machine another digest: a defect, so no AlizeError."""
        for place in {self.folder, self.output.parent, Path.cwd()}:
            name = re.escape(json.dumps(str(place), ensure_ascii=False)[1:-1])
            if place != Path(place.anchor) and re.search(rf"(?<![\w.\-/]){name}(?![\w.\-])", text):
                raise ValueError(f"the manifest names {place}, a path of this machine")


@contextlib.contextmanager
def _told(output: Path) -> Iterator[None]:
    """Turns what the file system refuses into an OutputError that says what to do."""
    try:
        yield
    except OSError as error:
        if disk_full(error):
            raise OutputError(_full(output)) from error
        reason = error.strerror or str(error)
        raise OutputError(f"{output} cannot be written ({reason}): choose an output in a folder that can be") from error


def _blames_disk(error: BaseException | None, parent: Path) -> bool:
    if not isinstance(error, Exception) or isinstance(error, (OutputError, UsageError, SourceError)):
        return False
    if disk_full(error):
        return True
    with contextlib.suppress(OSError):  # an engine may drop the system's error, and its text: then ask the disk itself
        return shutil.disk_usage(parent).free < 65536
    return False


def verify(
    folder: Path,
    manifest: Manifest,
    *,
    state: DeviceState | None = None,
    full: bool = False,
    advance: Callable[[int], object] | None = None,
) -> None:
    """Checks that `folder` holds exactly the files that were sealed, byte for byte.

    A file whose record in `state` still agrees with the file system is not hashed again, unless `full`. `advance` is told
    the bytes of each file as they are found right. Raises TamperedArtifact naming the file and the command that rebuilds.
    """
    _check_names(folder, manifest)
    records = {} if state is None or full else state.file_records(folder)
    found = {entry.path: _verify_file(folder, entry, records.get(entry.path), manifest, advance) for entry in manifest.files}
    kept = {path: record for path, record in found.items() if record is not None}
    if state is not None and kept != state.file_records(folder):
        state.record_files(folder, kept)


def _check_names(folder: Path, manifest: Manifest) -> None:
    sealed = {entry.path for entry in manifest.files}
    there = set(_paths(folder))
    for what, names in (("missing", sealed - there), ("not part of the artifact", there - sealed - set(manifest.unsealed))):
        if names:
            remedy = "remove it, or rebuild" if what != "missing" else "rebuild"
            raise TamperedArtifact(f"{folder}: {_list(names)} is {what}: {remedy} with `{manifest.rebuild}`")


def _verify_file(
    folder: Path, entry: FileEntry, record: FileRecord | None, manifest: Manifest, advance: Callable[[int], object] | None
) -> FileRecord | None:
    """Returns the record to keep of the file, None where its time stamps are too fresh to be told from a later change."""
    path = folder / entry.path

    def changed(how: str) -> TamperedArtifact:
        return TamperedArtifact(f"{folder}: {entry.path} is not what was sealed ({how}): rebuild with `{manifest.rebuild}`")

    try:
        before = FileRecord.of(path)
        if before.size != entry.size:
            raise changed(f"{before.size} bytes, not {entry.size}")
        if before == record:
            if advance is not None:
                advance(entry.size)
            return record
        digest = _sha256(path, advance)
        fresh = FileRecord.of(path) != before or time.time_ns() - before.ctime_ns < _RACY_NS
    except OSError as error:
        raise changed(f"it cannot be read: {error.strerror}") from error
    if digest != entry.sha256:
        raise changed(f"sha256 {digest[:12]}..., not {entry.sha256[:12]}...")
    return None if fresh else before


def _entry(folder: Path, path: str, advance: Callable[[int], object] | None) -> FileEntry:
    file = folder / path
    if file.is_symlink():
        raise ValueError(f"{path} is a link: an artifact holds its files itself")
    return FileEntry(path, file.stat().st_size, _sha256(file, advance))


def _sha256(path: Path, advance: Callable[[int], object] | None) -> str:
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(view[:size])
            if advance is not None:
                advance(size)
    return digest.hexdigest()


def _paths(folder: Path) -> list[str]:
    """Every file below `folder` but the manifest, as sorted POSIX paths; a linked folder counts as one file."""
    found = []
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        found += [(Path(root) / name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(path for path in found if path != MANIFEST)


def _folders(folder: Path) -> list[str]:
    return [Path(root).relative_to(folder).as_posix() for root, _, _ in os.walk(folder, topdown=False)]


def _is_artifact(folder: Path) -> bool:
    """Whether --force may replace it: an empty folder, or one whose manifest looks like ours, whole or not."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    with contextlib.suppress(OSError, ValueError):
        fields = json.loads((folder / MANIFEST).read_bytes())
        return isinstance(fields, dict) and {"schema", "alize", "digest"} <= fields.keys()
    return False


def _full(output: Path) -> str:
    why = "disk full, or over a quota or file size limit"
    return f"{why}, while {output} was written: free space or choose another disk (nothing was left behind)"


def _list(names: set[str]) -> str:
    ordered = sorted(names)
    more = f" (and {len(ordered) - 3} more)" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more
