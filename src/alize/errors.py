"""Every error alize raises on purpose.

    AlizeError                      exit code   what it says
    ├── UsageError                  2           an option or argument that cannot be meant
    ├── SourceError                 3           the checkpoint cannot be read
    │   ├── SourceNotFound          3           no such folder, repository or network
    │   ├── CorruptCheckpoint       3           a shard, index or tensor is not what it says it is
    │   ├── UnsupportedModel        3           a model alize cannot express, refused by name
    │   └── AdapterError            3           an adapter that cannot be merged, or not into this checkpoint
    ├── BuildError                  4           the build could not finish; nothing was left behind
    │   ├── ExportFailed            4
    │   ├── LoweringFailed          4           a pass or a fusion did not apply, and why
    │   └── OutputError             4           the output folder cannot be written (exists, read-only, full)
    ├── ValidationFailed            5           the artifact does not say what PyTorch says
    ├── ArtifactError               6           `load` refuses
    │   ├── TamperedArtifact        6           a file or the manifest is not what was sealed
    │   ├── UnknownSchema           6           written by a newer (or broken) alize
    │   └── NotValidated            6           no passing verdict for this device and configuration
    ├── BackendUnavailable          7           a package or driver is missing, naming the extra to install
    │   └── DeviceUnavailable       7           the package is there, the device is not
    └── SessionError                8           a running session was asked for what it cannot do
        ├── TokenOutOfRange         8
        ├── ContextExceeded         8           beyond the positions that the model was trained for
        ├── RewindTooFar            8
        └── SessionClosed           8

Exit code 1 is a defect of alize itself (any other exception), 130 is Ctrl-C. A message states the value, the
limit and the remedy, on one line.
"""

__all__ = [
    "AdapterError",
    "AlizeError",
    "ArtifactError",
    "BackendUnavailable",
    "BuildError",
    "ContextExceeded",
    "CorruptCheckpoint",
    "DeviceUnavailable",
    "ExportFailed",
    "LoweringFailed",
    "NotValidated",
    "OutputError",
    "RewindTooFar",
    "SessionClosed",
    "SessionError",
    "SourceError",
    "SourceNotFound",
    "TamperedArtifact",
    "TokenOutOfRange",
    "UnknownSchema",
    "UnsupportedModel",
    "UsageError",
    "ValidationFailed",
]


class AlizeError(Exception):
    """Base of the tree above; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(AlizeError):
    exit_code = 2


class SourceError(AlizeError):
    exit_code = 3


class SourceNotFound(SourceError):
    pass


class CorruptCheckpoint(SourceError):
    pass


class UnsupportedModel(SourceError):
    pass


class AdapterError(SourceError):
    pass


class BuildError(AlizeError):
    exit_code = 4


class ExportFailed(BuildError):
    pass


class LoweringFailed(BuildError):
    pass


class OutputError(BuildError):
    pass


class ValidationFailed(AlizeError):
    exit_code = 5


class ArtifactError(AlizeError):
    exit_code = 6


class TamperedArtifact(ArtifactError):
    pass


class UnknownSchema(ArtifactError):
    pass


class NotValidated(ArtifactError):
    pass


class BackendUnavailable(AlizeError):
    exit_code = 7


class DeviceUnavailable(BackendUnavailable):
    pass


class SessionError(AlizeError):
    exit_code = 8


class TokenOutOfRange(SessionError):
    pass


class ContextExceeded(SessionError):
    pass


class RewindTooFar(SessionError):
    pass


class SessionClosed(SessionError):
    pass
