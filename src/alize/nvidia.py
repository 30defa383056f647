"""What TensorRT's two packages differ in, and what of an engine is settled before it is built. The standard library only.

`tensorrt-rtx` cross-compiles: it needs no GPU to build, names the SMs to build for, and finishes kernels on the device.
`tensorrt` (data centre, Jetson) compiles for the GPU that is in the machine. Everything else alize does is the same for both.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alize.errors import BackendUnavailable, UsageError

__all__ = [
    "BATCH",
    "CHUNK",
    "CONTEXT",
    "LARGEST_GPU",
    "PACKAGES",
    "Limits",
    "Package",
    "cache_bytes",
    "engine_limits",
    "parse_sms",
    "plan_name",
]

CHUNK = 512
"""Tokens of a prefill step at most."""

CONTEXT = 4096
"""Tokens that the caches of layers without a window hold, where nothing else is asked for."""

BATCH = 4
"""Rows of a session at most, where nothing else is asked for."""

LARGEST_GPU = 288e9
"""Bytes: no GPU that these packages know has more memory."""

_STEP = 64  # capacities are multiples of it: attention kernels read keys in blocks


@dataclass(frozen=True, kw_only=True)
class Package:
    """target: its name here, and that of the pip extra.   modules: names it is imported by, the first that is there.

    distributions: whose versions decide a plan's bytes.   sms: that it has kernels for; empty: those of the GPU in the machine.
    """

    target: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    sms: tuple[int, ...]

    @property
    def cross_compiles(self) -> bool:
        return bool(self.sms)

    def load(self) -> Any:
        """The Python module. Raises BackendUnavailable."""
        for name in self.modules:
            try:
                return importlib.import_module(name)
            except ImportError as error:
                problem = error
        raise BackendUnavailable(f"{self.target} cannot be imported ({problem}): pip install 'alize[{self.target}]'") from problem


PACKAGES = {
    package.target: package
    for package in (
        Package(
            target="tensorrt",
            modules=("tensorrt",),
            distributions=("tensorrt",),
            sms=(),
        ),
        Package(
            target="tensorrt-rtx",
            modules=("tensorrt_rtx", "tensorrt_rtx_bindings"),
            distributions=("tensorrt-rtx-cu12-bindings", "tensorrt-rtx-cu12-libs"),
            sms=(75, 80, 86, 89, 120, 121),  # ComputeCapability of 1.7
        ),
    )
}


def parse_sms(package: Package, text: str | None, weights: str) -> tuple[int, ...]:
    """80,86,89 -> (80, 86, 89), in ascending order. Raises UsageError for an SM that the package or the weights have not."""
    known = ", ".join(map(str, package.sms)) or "the GPU's own"
    if text is None:
        raise UsageError(f"--target {package.target} needs --sm, the compute capabilities to build for: {known}")
    try:
        sms = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError as error:
        raise UsageError(f"--sm {text} must be numbers with commas between them, as 80,89: {known}") from error
    if len(sms) > 1 and not package.cross_compiles:
        raise UsageError(f"--sm {text}: {package.target} compiles for the GPU in the machine: give its SM, one")
    for sm in sms:
        if package.sms and sm not in package.sms:
            raise UsageError(
                f"--sm {sm} is unknown to {package.target}, which has {known}: leave it out{_elsewhere(package, sm)}"
            )
        if weights == "bf16" and sm < 80:
            raise UsageError(f"--sm {sm} has no bfloat16, which came with SM 80: use --weights fp16, or leave it out")
    return sms


def _elsewhere(package: Package, sm: int) -> str:
    return ", or use --target tensorrt on a machine with such a GPU" if package.cross_compiles and sm >= 70 else ""


def plan_name(sm: int) -> str:
    """The engine's file in an artifact."""
    return f"engine.sm{sm}.plan"


@dataclass(frozen=True)
class Limits:
    """chunk: tokens of a step.   capacity, window_capacity: places in the caches of layers without and with a window."""

    chunk: int
    capacity: int
    window_capacity: int


def engine_limits(windows: Sequence[int], context: int) -> Limits:
    """What an engine is compiled for. context: tokens that layers without a window are to hold.

    A layer with a window keeps W-1 positions and as many more as delay the next copy: W, or a chunk where that is longer.
    """
    window, full = max(windows), 0 in windows
    chunk = min(CHUNK, context) if full else CHUNK
    slack = max(chunk, window)
    return Limits(chunk, context if full else 0, -(-(window - 1 + slack) // _STEP) * _STEP if window else 0)


def cache_bytes(windows: Sequence[int], context: int, batch: int, width: int) -> int:
    """Of all caches in a half type. width: values of a position in a layer, keys and values."""
    limits = engine_limits(windows, context)
    places = sum(limits.window_capacity if window else limits.capacity for window in windows)
    return 2 * batch * places * width
