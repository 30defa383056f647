"""What one device has learnt about one artifact: verdicts and which files it has hashed. docs/state.md is the specification.

Nothing here is needed for a right answer: a state that is missing, broken or unwritable costs repeated work, never trust.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alize.artifact.manifest import Configuration
from alize.artifact.strict import canonical, decode, parse_json
from alize.errors import ArtifactError

__all__ = ["STATE_SCHEMA", "TUNED", "DeviceState", "DeviceVerdict", "FileRecord", "fingerprint_key", "state_dir"]

STATE_SCHEMA = 1
TUNED = "tuned"
"""The name by which `load` is asked for what tuning chose."""
_STATE_FILE = "state.json"
_TUNED_FILE = "tuned.json"
_log = logging.getLogger("alize.state")
_complained: set[Path] = set()  # state folders that could not be written, so that a process says it once


@dataclass(frozen=True)
class FileRecord:
    """What `stat` said of a file when its sha256 was last found right."""

    size: int
    inode: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> "FileRecord":
        stat = path.stat()
        return cls(stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)


@dataclass(frozen=True)
class DeviceVerdict:
    """What the golden replay said on this device; "skipped" records a load with --unsafe-skip-validation and is no pass."""

    verdict: Literal["pass", "fail", "skipped"]
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Contents:
    schema: int
    fingerprint: dict[str, str]
    verdicts: dict[str, DeviceVerdict]  # by the name of the runtime configuration
    files: dict[str, dict[str, FileRecord]]  # by the artifact's absolute folder, then by path inside it


@dataclass(frozen=True)
class _Tuned:
    schema: int
    options: dict[str, str | int | bool]
    gain: float


def state_dir() -> Path:
    """$ALIZE_STATE_DIR, or `alize` under $XDG_STATE_HOME, or ~/.local/state/alize."""
    own = os.environ.get("ALIZE_STATE_DIR")
    if own:
        return Path(own).absolute()
    base = os.environ.get("XDG_STATE_HOME", "")
    if Path(base).is_absolute():  # the XDG specification has relative paths ignored
        return Path(base) / "alize"
    try:
        return Path.home() / ".local" / "state" / "alize"
    except RuntimeError:  # a user without a home: a folder that cannot be made, so that work is repeated and said so
        return Path(os.devnull) / "alize"


def fingerprint_key(fingerprint: dict[str, str]) -> str:
    """Folder name of a device fingerprint: the first 16 hex digits of the sha256 of its sorted `key=value` lines."""
    lines = "".join(f"{key}={value}\n" for key, value in sorted(fingerprint.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


class DeviceState:
    """State of the artifact `digest` on the device with this fingerprint. Reads lazily, writes at once and atomically."""

    def __init__(self, digest: str, fingerprint: dict[str, str]) -> None:
        self.digest = digest
        self.fingerprint = dict(fingerprint)
        self.folder = state_dir() / digest / fingerprint_key(fingerprint)
        """Engine caches and tuning live here too, beside state.json."""
        self._contents: _Contents | None = None

    def verdict(self, configuration: str) -> DeviceVerdict | None:
        """The recorded verdict for a runtime configuration, None where there is none."""
        return self._read().verdicts.get(configuration)

    def record_verdict(self, configuration: str, verdict: DeviceVerdict) -> None:
        self._read().verdicts[configuration] = verdict
        self._write()

    def file_records(self, folder: Path) -> dict[str, FileRecord]:
        """Records of the files of the artifact at `folder`, by their path inside it."""
        return dict(self._read().files.get(str(folder.resolve()), {}))

    def record_files(self, folder: Path, records: dict[str, FileRecord]) -> None:
        self._read().files[str(folder.resolve())] = dict(records)
        self._write()

    def tuned(self) -> Configuration | None:
        """What tuning chose for this device, None where nothing did. Its name has a digest of its options, so that a verdict
        belongs to these."""
        found = self._tuned()
        if found is None:
            return None
        digest = hashlib.sha256(canonical(found.options).encode()).hexdigest()
        return Configuration(f"{TUNED}-{digest[:8]}", found.options)

    def record_tuned(self, options: dict[str, str | int | bool], *, gain: float) -> Configuration | None:
        """Keeps a choice; gain: how many times faster it was. Returns it as a configuration, None where it cannot be kept."""
        self._replace(_TUNED_FILE, dataclasses.asdict(_Tuned(STATE_SCHEMA, dict(options), gain)))
        return self.tuned()

    def forget_tuned(self) -> None:
        """`load` runs the manifest's own configuration again."""
        (self.folder / _TUNED_FILE).unlink(missing_ok=True)

    def _tuned(self) -> _Tuned | None:
        path = self.folder / _TUNED_FILE
        try:
            found = decode(_Tuned, parse_json(path.read_text(encoding="utf-8")))
        except OSError:
            return None
        except (ArtifactError, UnicodeDecodeError) as error:
            _log.warning("%s is not a file that alize can read (%s): the artifact is not tuned here", path, error)
            return None
        return found if found.schema == STATE_SCHEMA else None

    def _read(self) -> _Contents:
        if self._contents is None:
            self._contents = self._parsed() or _Contents(STATE_SCHEMA, self.fingerprint, {}, {})
        return self._contents

    def _parsed(self) -> _Contents | None:
        path = self.folder / _STATE_FILE
        try:
            fields = parse_json(path.read_text(encoding="utf-8"))
            contents = decode(_Contents, fields)
        except OSError:
            return None  # none yet, or unreadable: then writing will complain
        except (ArtifactError, UnicodeDecodeError) as error:
            _log.warning("%s is not a state file that alize can read (%s): its work is done again", path, error)
            return None
        usable = contents.schema == STATE_SCHEMA and contents.fingerprint == self.fingerprint
        return contents if usable else None

    def _write(self) -> None:
        self._replace(_STATE_FILE, dataclasses.asdict(self._read()))

    def _replace(self, name: str, fields: dict[str, Any]) -> None:
        temporary = self.folder / f".{name}.{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(canonical(fields), encoding="utf-8")
            temporary.replace(self.folder / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            _complain(error)


def _complain(error: OSError) -> None:
    folder = state_dir()
    if folder not in _complained:
        _complained.add(folder)
        reason = error.strerror or str(error)
        _log.warning("%s cannot be written (%s): checks are repeated at every load; set ALIZE_STATE_DIR", folder, reason)
