"""Consecutive layers of an ONNX Runtime artifact, opened with the options that the whole of it is opened with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo
from alize.optimize.onnxruntime_slices import cut_layers
from alize.optimize.widen import read_widened
from alize.runtimes.onnxruntime_runner import MODEL_FILE, OnnxRuntimeRunner
from alize.validate.graph_proof import open_graph

__all__ = ["WHOLE", "open_slice"]

WHOLE: tuple[str, ...] = ()


def open_slice(
    folder: Path,
    info: ModelInfo,
    options: Mapping[str, str | int | bool],
    first: int,
    stop: int,
    taps: Sequence[str] = (),
) -> "OnnxRuntimeSlice":
    """The layers first..stop-1 on the CPU provider."""
    model, start, output = cut_layers(read_widened(folder / MODEL_FILE), first, stop, info.layers)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in taps)
    return OnnxRuntimeSlice(open_graph(model, folder, options), info, range(first, stop), start, output, taps)


class OnnxRuntimeSlice:
    """A SliceEngine."""

    def __init__(self, session: Any, info: ModelInfo, layers: range, start: str, output: str, taps: Sequence[str]) -> None:
        self._session = session
        self._info = info
        self._layers = layers
        self._ends = start, output
        self._taps = taps

    def runner(self, batch: int) -> "OnnxRuntimeSliceRunner":
        return OnnxRuntimeSliceRunner(self._session, self._info, batch, self._layers, *self._ends, self._taps)

    def close(self) -> None:
        self._session = None


class OnnxRuntimeSliceRunner(OnnxRuntimeRunner):
    """A SliceRunner: the cache is kept as an engine of all layers keeps it, of fewer layers."""

    def __init__(
        self, session: Any, info: ModelInfo, batch: int, layers: range, start: str, output: str, taps: Sequence[str]
    ) -> None:
        super().__init__(session, info, batch, taps)
        mine = slice(2 * layers.start, 2 * layers.stop)
        self._names, self._of_window, self._caches = self._names[mine], self._of_window[mine], self._caches[mine]
        self._start, self._output = start, output
        self._width = info.vocab_size if output == "logits" else info.hidden_size
        self._known = {value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())}
        self._hidden: NDArray[np.float32] | None = None

    def advance(
        self,
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int64],
        positions: NDArray[np.int64],
        hidden: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """See SliceRunner."""
        self._hidden = hidden
        return self.step(tokens, lengths, positions, 0)

    def _inputs(self, rows: slice, tokens: NDArray[np.int64], positions: NDArray[np.int64], keep: int) -> dict[str, NDArray[Any]]:
        given: dict[str, NDArray[Any]] = super()._inputs(rows, tokens, positions, keep)
        if self._hidden is not None:
            given[self._start] = np.ascontiguousarray(self._hidden[rows, : tokens.shape[1]])
        return {name: array for name, array in given.items() if name in self._known}
