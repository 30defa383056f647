"""What the modules of a target offer, each imported when it is asked for: see compilers.py."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from alize.artifact.manifest import ModelInfo

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    import torch
    from numpy.typing import NDArray

    from alize.models.checkpoint import Checkpoint
    from alize.optimize.openvino_slices import Slices
    from alize.optimize.round_to_integers import Integers
    from alize.optimize.rounded import IntegerSource, Rounded
    from alize.validate.slices import SliceEngine

__all__ = ["Companion", "Lowering", "Probe", "Slicer"]


class Lowering(Protocol):
    """Module `alize.optimize.lower_{target}`."""

    def lower(
        self,
        hub: "ir.Model",
        folder: Path,
        *,
        weights: str,
        options: Mapping[str, str] = ...,
        rounded: "Rounded | None" = ...,
    ) -> tuple[str, ...]: ...
    def check_structure(
        self,
        folder: Path,
        info: ModelInfo,
        options: Mapping[str, str],
        *,
        weights: str = "fp32",
        slices: "Slices | None" = ...,
    ) -> dict[str, Any]: ...


class Probe(Protocol):
    """Module `alize.validate.probe_{target}`."""

    def stored_weights(self, folder: Path) -> Iterator[tuple[str, "torch.Tensor | Integers"]]: ...
    def stored_integers(self, folder: Path) -> "IntegerSource": ...
    def residual_stream(
        self, folder: Path, tokens: "NDArray[np.int64]", names: list[str]
    ) -> dict[str, "NDArray[np.float32]"]: ...
    def cut_experts(
        self, folder: Path, layer: int, hidden: "NDArray[np.float32]"
    ) -> "tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]": ...


class Slicer(Protocol):
    """Module `alize.validate.slices_{target}`. What runs in slices says nothing of the options in `WHOLE`."""

    WHOLE: "tuple[str, ...]"

    def open_slice(
        self,
        folder: Path,
        info: ModelInfo,
        options: "Mapping[str, str | int | bool]",
        first: int,
        stop: int,
        taps: Sequence[str] = ...,
    ) -> "SliceEngine": ...


class Companion(Protocol):
    """Module `alize.optimize.companions_{target}`: files that let other programs open the artifact."""

    def write(self, checkpoint: "Checkpoint", folder: Path) -> None: ...
