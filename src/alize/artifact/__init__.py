"""The sealed artifact: its manifest, how it is sealed and verified, and what a device remembers of it. Standard library only."""

from alize.artifact.manifest import (
    MANIFEST,
    SCHEMA,
    CaseResult,
    Configuration,
    FileEntry,
    Manifest,
    ModelInfo,
    Source,
    Target,
    Validation,
    read,
)
from alize.artifact.seal import Building, verify
from alize.artifact.state import DeviceState, DeviceVerdict, FileRecord, state_dir

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "Building",
    "CaseResult",
    "Configuration",
    "DeviceState",
    "DeviceVerdict",
    "FileEntry",
    "FileRecord",
    "Manifest",
    "ModelInfo",
    "Source",
    "Target",
    "Validation",
    "read",
    "state_dir",
    "verify",
]
