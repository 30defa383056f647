"""The few calls of CUDA's runtime that sessions need, through cuda-python, each checked. Not run on any GPU yet."""

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alize.errors import ArtifactError, BackendUnavailable

__all__ = ["Cuda", "Properties"]


@dataclass(frozen=True)
class Properties:
    """sm: compute capability without the dot, as 89."""

    name: str
    sm: int
    driver: str


class Cuda:
    """cuda-python's runtime bindings, with errors raised. Addresses and streams are plain integers."""

    def __init__(self) -> None:
        self._cuda = _bindings()

    @staticmethod
    def problem() -> str | None:
        """Why no GPU can be used here; None when one can."""
        try:
            cuda = _bindings()
        except BackendUnavailable as error:
            return str(error)
        try:
            status, count = cuda.cudaGetDeviceCount()
        except RuntimeError as error:  # cuda-python's word for a missing library
            return str(error)
        if int(status) != 0:
            return f"the driver says {_named(cuda, status)}"
        return None if count else "there is no GPU"

    def properties(self) -> Properties:
        """Of GPU 0; CUDA_VISIBLE_DEVICES chooses another."""
        found = self._call(self._cuda.cudaGetDeviceProperties, 0)
        name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
        driver = self._call(self._cuda.cudaDriverGetVersion)
        return Properties(name.rstrip("\0"), 10 * int(found.major) + int(found.minor), str(driver))

    def stream(self) -> int:
        return int(self._call(self._cuda.cudaStreamCreateWithFlags, self._cuda.cudaStreamNonBlocking))

    def free_stream(self, stream: int) -> None:
        self._call(self._cuda.cudaStreamDestroy, stream)

    def allocate(self, size: int, stream: int) -> int:
        """Zeroed: what a cache's free places hold is multiplied by 0, and NaN would stay NaN. Zeroing is over when this returns:
        `stream` waits for no other, and what runs elsewhere does not wait for `stream`. Raises ArtifactError."""
        try:
            address = int(self._call(self._cuda.cudaMalloc, size))
        except BackendUnavailable as error:
            free, total = self._call(self._cuda.cudaMemGetInfo)
            raise ArtifactError(
                f"{size / 1e9:.2f} GB of a session do not fit on the GPU ({free / 1e9:.2f} of {total / 1e9:.2f} GB are free; "
                f"{error}): close other sessions, or rebuild with a smaller --capacity or --batch"
            ) from error
        self._call(self._cuda.cudaMemsetAsync, address, 0, size, stream)
        self.synchronise(stream)
        return address

    def free(self, address: int) -> None:
        if address:
            self._call(self._cuda.cudaFree, address)

    def to_device(self, address: int, array: NDArray[Any], stream: int) -> None:
        """Of pageable memory: the array may go as soon as this returns."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._cuda.cudaMemcpyAsync, address, array.ctypes.data, array.nbytes, kind, stream)

    def to_host(self, array: NDArray[np.float32], address: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._cuda.cudaMemcpyAsync, array.ctypes.data, address, array.nbytes, kind, stream)

    def copy_rows(self, to: int, to_pitch: int, source: int, source_pitch: int, width: int, rows: int, stream: int) -> None:
        """`rows` pieces of `width` bytes on the device, at distances of so many bytes."""
        if width:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            self._call(self._cuda.cudaMemcpy2DAsync, to, to_pitch, source, source_pitch, width, rows, kind, stream)

    def synchronise(self, stream: int) -> None:
        self._call(self._cuda.cudaStreamSynchronize, stream)

    def captured(self, stream: int, work: Callable[[], None]) -> Any:
        """`work`'s launches on the stream, as an executable graph. Nothing of it is run."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(self._cuda.cudaStreamBeginCapture, stream, mode)
        with contextlib.ExitStack() as stack:
            graph: list[Any] = []
            stack.callback(lambda: graph.append(self._call(self._cuda.cudaStreamEndCapture, stream)))
            work()
        found = self._call(self._cuda.cudaGraphInstantiate, graph[0], 0)
        self._call(self._cuda.cudaGraphDestroy, graph[0])
        return found

    def launch(self, graph: Any, stream: int) -> None:
        self._call(self._cuda.cudaGraphLaunch, graph, stream)

    def free_graph(self, graph: Any) -> None:
        self._call(self._cuda.cudaGraphExecDestroy, graph)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What cuda-python returns behind the status: nothing, one thing, or several. Raises BackendUnavailable."""
        status, *found = function(*arguments)
        if int(status) != 0:
            raise BackendUnavailable(
                f"CUDA says {_named(self._cuda, status)} of {function.__name__}: check the driver with nvidia-smi"
            )
        return found[0] if len(found) == 1 else tuple(found) if found else None


def _bindings() -> Any:
    for name in ("cuda.bindings.runtime", "cuda.cudart"):  # of cuda-python 12.8 and later, and before
        try:
            return importlib.import_module(name)
        except ImportError as error:
            problem = error
    raise BackendUnavailable(f"cuda-python cannot be imported ({problem}): pip install cuda-python")


def _named(cuda: Any, status: Any) -> str:
    _, name = cuda.cudaGetErrorName(status)
    return name.decode() if isinstance(name, bytes) else str(name)
