"""The back-ends that an artifact can run on, and what each must offer.

A back-end is one module, or an object in one, with the functions of `BackendModule`. The registry holds names only: nothing
is imported before it is asked for. Another back-end joins by an entry in a dict passed to `load`, not by a side effect:

    load(path, backends={**BACKENDS, "torch": Backend(name="torch", extra="build", module="alize.models.session")})
"""

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from alize.artifact.manifest import Manifest
from alize.errors import BackendUnavailable, DeviceUnavailable
from alize.runtimes.runner import Runner

__all__ = ["BACKENDS", "Backend", "BackendModule", "Engine", "KeepingEngine", "backend_module", "check_device"]


@dataclass(frozen=True, kw_only=True)
class Backend:
    """name: as in the manifest's target.   extra: the pip extra that installs it.

    module: where its functions are, `package.module` or `package.module:object`.
    """

    name: str
    extra: str
    module: str


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(name="openvino", extra="openvino", module="alize.runtimes.openvino_runner"),
        Backend(name="onnxruntime", extra="onnxruntime", module="alize.runtimes.onnxruntime_runner"),
        Backend(name="tensorrt", extra="tensorrt", module="alize.runtimes.tensorrt_engine:TENSORRT"),
        Backend(name="tensorrt-rtx", extra="tensorrt-rtx", module="alize.runtimes.tensorrt_engine:TENSORRT_RTX"),
        Backend(name="fake", extra="", module="alize.runtimes.fake"),
    )
}


_NVIDIA = "it needs an NVIDIA GPU, its driver (nvidia-smi shows both) and"
_NEEDS = {
    ("onnxruntime", "cuda"): f"{_NVIDIA} onnxruntime-gpu in onnxruntime's place: pip uninstall onnxruntime, then "
    "pip install 'alize[cuda]'",
    ("tensorrt", "gpu"): f"{_NVIDIA} cuda-python: pip install 'alize[tensorrt]'",
    ("tensorrt-rtx", "gpu"): f"{_NVIDIA} cuda-python: pip install 'alize[tensorrt-rtx]'",
}
"""What brings a device that a machine has not, by back-end and device."""


class Engine(Protocol):
    """Weights and compiled graph on one device, shared by every runner that it makes."""

    def runner(self, batch: int) -> Runner:
        """A fresh state for `batch` rows."""
        ...

    def close(self) -> None:
        """Release the weights. Its runners were closed before."""
        ...


@runtime_checkable
class KeepingEngine(Protocol):
    """An engine that can leave what it has compiled to later processes, in the device's state folder."""

    def keep(self) -> None:
        """Does so; nothing where that was done, or cannot be."""
        ...


class BackendModule(Protocol):
    """The functions of a back-end. Its third-party packages are imported inside them."""

    def available(self) -> str | None:
        """None when the engine can be imported and used, else why not."""
        ...

    def devices(self) -> list[str]:
        """The devices of this machine, by the names that `open` takes."""
        ...

    def fingerprint(self, device: str) -> dict[str, str]:
        """What tells this device from another one that might answer otherwise: its model, the engine's version."""
        ...

    def open(
        self, folder: Path, manifest: Manifest, device: str, options: Mapping[str, str | int | bool], taps: Sequence[str] = ()
    ) -> Engine:
        """Compile or read the artifact for the device, under a runtime configuration's options.

        taps: names of tensors of the graph whose values the runners keep, in their attribute `taps` (see `Taps`).
        """
        ...


def backend_module(name: str, *, backends: Mapping[str, Backend] = BACKENDS) -> BackendModule:
    """Import a back-end. Raises BackendUnavailable naming the extra to install."""
    backend = backends.get(name)
    if backend is None:
        known = ", ".join(sorted(backends))
        raise BackendUnavailable(f"no back-end {name!r} in this alize, which has {known}: `pip install --upgrade alize`")
    module = cast(BackendModule, pkgutil.resolve_name(backend.module))
    why = module.available()
    if why is not None:
        remedy = f"pip install 'alize[{backend.extra}]'" if backend.extra else "see its documentation"
        raise BackendUnavailable(f"back-end {name} cannot be used here ({why}): {remedy}")
    return module


def check_device(name: str, module: BackendModule, device: str) -> None:
    """Raise DeviceUnavailable, listing the devices that are there, unless `device` is one of them."""
    devices = module.devices()
    if device not in devices:
        remedy = f"; {_NEEDS[name, device]}" if (name, device) in _NEEDS else ""
        there = ", ".join(devices) or "none at all"
        raise DeviceUnavailable(f"{name} has no device {device!r} here: use one of {there}{remedy}")
