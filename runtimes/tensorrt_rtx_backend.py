"""TensorRT-RTX's engines: see tensorrt_engine.py, which is the same for both packages."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from alize.artifact.manifest import Manifest
from alize.nvidia import PACKAGES
from alize.runtimes import tensorrt_engine
from alize.runtimes.tensorrt_engine import TensorRtEngine, devices

__all__ = ["PACKAGE", "available", "devices", "fingerprint", "open"]

PACKAGE = PACKAGES["tensorrt-rtx"]


def available() -> str | None:
    """None when the package can be imported, else why not."""
    return tensorrt_engine.available(PACKAGE)


def fingerprint(device: str) -> dict[str, str]:  # noqa: ARG001 - there is one
    """The GPU, its driver and the libraries."""
    return tensorrt_engine.fingerprint(PACKAGE)


def open(  # noqa: A001 - the name that every back-end module has
    folder: Path,
    manifest: Manifest,
    device: str,  # noqa: ARG001 - there is one
    options: Mapping[str, str | int | bool],
    taps: Sequence[str] = (),
) -> TensorRtEngine:
    """See tensorrt_engine.open_engine."""
    tensorrt_engine.no_taps(taps)
    return tensorrt_engine.open_engine(PACKAGE, folder, manifest, options)
