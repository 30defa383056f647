"""manifest.json: what an artifact is, which files it has, and what was measured on it. docs/artifact.md is its specification."""

import dataclasses
import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from alize.artifact.strict import canonical, decode, parse_json
from alize.errors import ArtifactError, TamperedArtifact, UnknownSchema, UsageError

__all__ = [
    "FIGURE_DIGITS",
    "MANIFEST",
    "SCHEMA",
    "CaseResult",
    "Configuration",
    "FileEntry",
    "Manifest",
    "ModelInfo",
    "Source",
    "Target",
    "Validation",
    "read",
]

SCHEMA = 3
MANIFEST = "manifest.json"
FIGURE_DIGITS = 4
"""Significant digits that figures are rounded to, so that the last bits of a float cannot change a digest."""


@dataclass(frozen=True)
class Source:
    """Where the weights came from. `repo` and `commit` are of a hub snapshot; a folder's path is never written down.

    quantised: the format that the checkpoint itself was quantised in, such as gptq-int4-g128; None for floats.
    adapter: the sha256 of the adapter that was merged into the weights; None where there was none.
    """

    kind: Literal["folder", "hub"]
    repo: str | None
    commit: str | None
    sha256: str
    architecture: str
    family: str
    config: dict[str, Any]
    quantised: str | None = None
    adapter: str | None = None

    @property
    def title(self) -> str:
        """The architecture, and what of it is not here: an artifact holds the text model only of a multimodal one."""
        left_out = self.architecture.endswith("ForConditionalGeneration")
        return self.architecture + (" (text model of a multimodal checkpoint; vision tower left out)" if left_out else "")


@dataclass(frozen=True)
class ModelInfo:
    """What a runtime has to know of the model. `windows` has one W for each layer (0 = full attention).

    experts and experts_per_token: E and top_k of a mixture of experts, both 0 where the MLP is a plain one.
    """

    layers: int
    query_heads: int
    key_value_heads: int
    head_size: int
    hidden_size: int
    vocab_size: int
    windows: tuple[int, ...]
    max_positions: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    experts: int
    experts_per_token: int


@dataclass(frozen=True)
class Target:
    """What it was compiled for. `options` holds choices of the lowering that have a name on the command line, `structure`
    what the compiled graph was asked (fused nodes, windows, experts)."""

    backend: str
    device: str
    weights: str
    options: dict[str, str]
    versions: dict[str, str]
    passes: tuple[str, ...]
    structure: dict[str, Any]


@dataclass(frozen=True)
class Configuration:
    """A runtime configuration that has a passing verdict."""

    name: str
    options: dict[str, str | int | bool]


@dataclass(frozen=True)
class FileEntry:
    """A sealed file: POSIX path inside the artifact, size in bytes, sha256 in lower-case hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class CaseResult:
    """One case of the validation. Figures are rounded to FIGURE_DIGITS significant digits as soon as they are given."""

    name: str
    question: Literal["compile fidelity", "quantisation loss", "runtime loss"]
    passed: bool
    figures: dict[str, float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "figures", _rounded(self.figures))


@dataclass(frozen=True)
class Validation:
    """The verdict and what it rests on. Figures are rounded like those of a case; the budget is written as it was set."""

    level: Literal["device-validated", "graph-validated"]
    verdict: Literal["pass", "fail", "partial"]
    left_out: tuple[str, ...]
    budget: dict[str, float]
    cases: tuple[CaseResult, ...]
    figures: dict[str, dict[str, float]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", {name: float(value) for name, value in self.budget.items()})
        object.__setattr__(self, "figures", {name: _rounded(figures) for name, figures in self.figures.items()})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole of manifest.json. `files`, `unsealed` and `digest` are filled in by `Building.seal`.

    No time, host, absolute path or resource figure may be in it: the same input has to give the same bytes.
    """

    schema: int = SCHEMA
    alize: str
    source: Source
    model: ModelInfo
    target: Target
    configurations: tuple[Configuration, ...]
    files: tuple[FileEntry, ...] = ()
    unsealed: tuple[str, ...] = ()
    validation: Validation
    rebuild: str
    digest: str = ""

    def to_json(self) -> str:
        """The canonical text of manifest.json. Raises ArtifactError for a figure that JSON cannot hold."""
        try:
            return canonical(dataclasses.asdict(self))
        except ValueError as error:
            raise ArtifactError(f"{MANIFEST} cannot hold a figure that is not finite: {_not_finite(self.validation)}") from error

    def computed_digest(self) -> str:
        """sha256 of the canonical JSON without the field `digest`."""
        fields = dataclasses.asdict(self)
        del fields["digest"]
        return hashlib.sha256(canonical(fields).encode()).hexdigest()

    def with_digest(self) -> "Manifest":
        """The same manifest with its digest filled in."""
        return dataclasses.replace(self, digest=self.computed_digest())

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Parses and checks the text of a manifest.json.

        Raises UnknownSchema for another schema, ArtifactError naming a field that is unknown, missing or of a wrong type,
        TamperedArtifact where the text is not what was sealed (wrong digest, or not canonical).
        """
        fields = parse_json(text)
        _check_schema(fields)
        manifest = decode(cls, fields)
        _check_paths(manifest)
        if manifest.digest != manifest.computed_digest():
            raise TamperedArtifact(f"it was changed (digest is not {manifest.digest[:12]}...): rebuild with `{manifest.rebuild}`")
        if text != manifest.to_json():  # white space or an escaped letter: same meaning, other bytes
            raise TamperedArtifact(f"it was rewritten (not in canonical form): rebuild with `{manifest.rebuild}`")
        return manifest


def read(folder: Path, *, expect: str | None = None) -> Manifest:
    """Reads and checks FOLDER/manifest.json; the other files are `verify`'s work.

    `expect` pins the digest (64 hex digits, `sha256:` before allowed). Raises what `Manifest.from_json` raises, ArtifactError
    where there is no artifact, TamperedArtifact where the pin does not hold, UsageError for a pin that is no digest.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes().decode()
    except (FileNotFoundError, NotADirectoryError) as error:
        what = f"it has no {MANIFEST}" if folder.is_dir() else "there is no such folder"
        raise ArtifactError(f"{folder} is not an artifact ({what}): make one with `alize build SOURCE -o {folder}`") from error
    except UnicodeDecodeError as error:
        raise TamperedArtifact(f"{path}: not UTF-8 from byte {error.start} on: restore the file or rebuild") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    try:
        manifest = Manifest.from_json(text)
    except ArtifactError as error:
        remedy = ": restore the file, or build the artifact again" if type(error) is ArtifactError else ""
        raise type(error)(f"{path}: {error}{remedy}") from error
    if expect is not None:
        _check_pin(folder, manifest, expect)
    return manifest


def _check_schema(fields: object) -> None:
    schema = fields.get("schema") if isinstance(fields, dict) else None
    if type(schema) is int and schema != SCHEMA:
        remedy = "upgrade with `pip install --upgrade alize`" if schema > SCHEMA else "build the artifact again with this alize"
        raise UnknownSchema(f"schema {schema} is not the schema {SCHEMA} that this alize reads: {remedy}")


def _check_paths(manifest: Manifest) -> None:
    paths = [entry.path for entry in manifest.files]
    for path in (*paths, *manifest.unsealed):
        parts = PurePosixPath(path).parts
        if not parts or path != "/".join(parts) or parts[0] == "/" or ".." in parts or "\\" in path or path == MANIFEST:
            raise ArtifactError(f"field files or unsealed has {path!r}, which is no plain path inside the artifact")
    if len(set(paths) | set(manifest.unsealed)) != len(paths) + len(manifest.unsealed):
        raise ArtifactError("field files or unsealed names a path twice")
    for entry in manifest.files:
        if entry.size < 0 or not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
            raise ArtifactError(f"field files has no usable size and sha256 for {entry.path}")


def _check_pin(folder: Path, manifest: Manifest, expect: str) -> None:
    pin = expect.lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", pin):
        raise UsageError(f"{expect!r} is not a digest: give the 64 hex digits that `alize inspect` shows")
    if pin != manifest.digest:
        remedy = "load the artifact that was pinned, or pin this one"
        raise TamperedArtifact(f"{folder} has digest {manifest.digest}, not the pinned {pin}: {remedy}")


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: _round(float(value)) for name, value in figures.items()}


def _round(value: float) -> float:
    """Counts stay whole: only a value with a fraction is rounded."""
    return value if not math.isfinite(value) or value.is_integer() else float(f"{value:.{FIGURE_DIGITS}g}")


def _not_finite(validation: Validation) -> str:
    groups = {case.name: case.figures for case in validation.cases} | validation.figures | {"budget": validation.budget}
    figures = {f"{group}.{name}": value for group, members in groups.items() for name, value in members.items()}
    return ", ".join(f"{name} = {value}" for name, value in figures.items() if not math.isfinite(value)) or "not in validation"
