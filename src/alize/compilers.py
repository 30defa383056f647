"""The targets that `alize build` knows: one entry each, named modules imported when they are asked for."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast

from alize.artifact.manifest import Configuration
from alize.errors import BackendUnavailable, UsageError

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    import torch
    from numpy.typing import NDArray

    from alize.models.checkpoint import Checkpoint

__all__ = ["COMPILERS", "WEIGHTS", "Compiler", "compiler_for", "normal_weights"]

WEIGHTS = ("fp32", "fp16", "bf16")
_ALIASES = MappingProxyType({"f32": "fp32", "f16": "fp16"})
_NOT_YET = ("int8", "int4")


class Lowering(Protocol):
    """Module `alize.optimize.lower_{target}`."""

    def lower(self, hub: "ir.Model", folder: Path, *, weights: str) -> tuple[str, ...]: ...
    def check_structure(self, folder: Path, windows: Sequence[int]) -> dict[str, Any]: ...


class Probe(Protocol):
    """Module `alize.validate.probe_{target}`."""

    def stored_weights(self, folder: Path) -> Iterator[tuple[str, "torch.Tensor"]]: ...
    def residual_stream(
        self, folder: Path, tokens: "NDArray[np.int64]", names: list[str]
    ) -> dict[str, "NDArray[np.float32]"]: ...


class Companion(Protocol):
    """Module `alize.optimize.companions_{target}`: files that let other programs open the artifact."""

    def write(self, checkpoint: "Checkpoint", folder: Path) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """One target. accuracy: options of the engine's exact mode, what compile fidelity is measured in.

    configurations: what `load` may run, the first by default.   packages: whose versions go into the manifest.
    """

    target: str
    accuracy: Mapping[str, str | int | bool]
    configurations: tuple[Configuration, ...]
    packages: tuple[str, ...]

    @property
    def lowering(self) -> Lowering:
        return cast(Lowering, self._module(f"alize.optimize.lower_{self.target}"))

    @property
    def probe(self) -> Probe:
        return cast(Probe, self._module(f"alize.validate.probe_{self.target}"))

    @property
    def companion(self) -> Companion:
        return cast(Companion, self._module(f"alize.optimize.companions_{self.target}"))

    def versions(self) -> dict[str, str]:
        """Package -> version, of what decides the artifact's bytes. Raises BackendUnavailable."""
        try:
            return {package: version(package) for package in self.packages}
        except PackageNotFoundError as error:
            raise BackendUnavailable(
                f"target {self.target} needs {error.name}: pip install 'alize[build,{self.target}]'"
            ) from error

    def _module(self, name: str) -> Any:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise BackendUnavailable(
                f"target {self.target} needs {error.name}: pip install 'alize[build,{self.target}]'"
            ) from error


COMPILERS: dict[str, Compiler] = {
    "openvino": Compiler(
        target="openvino",
        accuracy={"accuracy": True},
        # float32 arithmetic, also where the processor has bfloat16 units that OpenVINO would use by itself; keys and values
        # in float16, which shifting windows need (8-bit caches lose by being moved) and which decodes no slower.
        configurations=(Configuration("default", {"inference_precision": "f32", "kv_cache_precision": "f16"}),),
        packages=("torch", "onnx-ir", "openvino", "openvino-tokenizers", "tokenizers", "transformers"),
    ),
    "onnxruntime": Compiler(
        target="onnxruntime",
        accuracy={},
        configurations=(Configuration("default", {}),),
        packages=("torch", "onnx-ir", "onnxruntime"),
    ),
}


def compiler_for(target: str) -> Compiler:
    """Raises UsageError naming the targets that exist."""
    if target not in COMPILERS:
        raise UsageError(f"target {target!r} can't be built yet: choose {' or '.join(COMPILERS)}")
    return COMPILERS[target]


def normal_weights(weights: str) -> str:
    """The one name of a precision: fp32, fp16 or bf16. Raises UsageError."""
    name = _ALIASES.get(weights, weights)
    if name not in WEIGHTS:
        state = "is not there yet" if name in _NOT_YET else "is unknown"
        raise UsageError(f"--weights {weights} {state}: choose one of {', '.join(WEIGHTS)}")
    return name
