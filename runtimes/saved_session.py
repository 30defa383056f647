"""A session in a file: what it holds as its engine lays it out, and what it belongs to.

A safetensors file. Its metadata: `identity`, a JSON object of strings (the artifact's digest, the runtime configuration, the
device's fingerprint) that has to be the same where it is opened; `positions` and `cached`, of each row. Tensors: the runner's.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from alize.errors import SessionError

__all__ = ["SavedSession", "read_session", "write_session"]

_FORMAT = "1"


@dataclass(frozen=True)
class SavedSession:
    """positions, cached: int64 [B], see Session.   held: the runner's."""

    positions: NDArray[np.int64]
    cached: NDArray[np.int64]
    held: dict[str, NDArray[Any]]


def write_session(path: Path, saved: SavedSession, identity: Mapping[str, str]) -> None:
    """Writes beside its place and renames. Raises SessionError where that cannot be done."""
    metadata = {
        "alize_session": _FORMAT,
        "identity": json.dumps(dict(identity), sort_keys=True),
        "positions": json.dumps(saved.positions.tolist()),
        "cached": json.dumps(saved.cached.tolist()),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        safetensors.numpy.save_file({name: np.ascontiguousarray(part) for name, part in saved.held.items()}, temporary, metadata)
        temporary.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise SessionError(f"{path} cannot be written ({error}): choose another place, or free some room") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_session(path: Path, identity: Mapping[str, str]) -> SavedSession:
    """Raises SessionError for a file that is none, and naming in what it belongs to something else."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it has no __iter__
    except (OSError, safetensors.SafetensorError) as error:
        raise SessionError(f"{path} is not a saved session ({error}): save it again") from error
    if metadata.get("alize_session") != _FORMAT:
        raise SessionError(f"{path} is not a session of format {_FORMAT}, but {metadata.get('alize_session')!r}: save it again")
    theirs = json.loads(metadata["identity"])
    for name in sorted({*theirs, *identity}):
        if theirs.get(name) != identity.get(name):
            raise SessionError(
                f"{path} was saved with {name} {theirs.get(name)}, this is {identity.get(name)}: what a cache holds means "
                "something else there, so append the tokens again"
            )
    positions, cached = (np.array(json.loads(metadata[name]), np.int64) for name in ("positions", "cached"))
    return SavedSession(positions, cached, held)
