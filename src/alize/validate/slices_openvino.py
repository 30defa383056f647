"""Consecutive layers of an OpenVINO artifact, opened with the options that the whole of it is opened with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo
from alize.optimize.openvino_slices import HIDDEN, cut_layers
from alize.runtimes.openvino_kernels import use_kernels
from alize.runtimes.openvino_runner import MODEL_FILE, OpenVinoRunner, compile_properties

__all__ = ["WHOLE", "open_slice"]

WHOLE = ("attention", "slack")


def open_slice(
    folder: Path,
    info: ModelInfo,
    options: Mapping[str, str | int | bool],
    first: int,
    stop: int,
    taps: Sequence[str] = (),
) -> "OpenVinoSlice":
    """The layers first..stop-1 on the CPU plugin. Raises LoweringFailed where they cannot be cut out."""
    import openvino

    core = openvino.Core()
    model = core.read_model(folder / MODEL_FILE)
    output = cut_layers(model, first, stop, info.layers)
    model.add_outputs(list(taps))
    read = use_kernels(model, options)
    return OpenVinoSlice(core.compile_model(model, "CPU", compile_properties(options)), info, output, taps, read)


class OpenVinoSlice:
    """A SliceEngine."""

    def __init__(self, compiled: Any, info: ModelInfo, output: str, taps: Sequence[str], read: Sequence[Any]) -> None:
        self._compiled = compiled
        self._read_in_place = read  # see OpenVinoEngine
        self._info = info
        self._output = output
        self._taps = taps

    def runner(self, batch: int) -> "OpenVinoSliceRunner":
        request = self._compiled.create_infer_request()
        return OpenVinoSliceRunner(request, self._info, batch, self._output, self._taps, self._read_in_place)

    def close(self) -> None:
        self._compiled = None


class OpenVinoSliceRunner(OpenVinoRunner):
    """A SliceRunner: the cache is kept as an engine of all layers keeps it."""

    def __init__(self, request: Any, info: ModelInfo, batch: int, output: str, taps: Sequence[str], read: Sequence[Any]) -> None:
        super().__init__(request, info, batch, taps, read)
        self._output = output
        self._fixed = {"beam_idx": np.arange(batch, dtype=np.int32)}

    def advance(
        self,
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int64],
        positions: NDArray[np.int64],
        hidden: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """See SliceRunner."""
        feeds = self._feeds(tokens, lengths, positions) | ({} if hidden is None else {HIDDEN: hidden})
        given = self._ask(feeds, self._output, lengths)
        self._caches.append(tokens.shape[1], lengths)
        return given
