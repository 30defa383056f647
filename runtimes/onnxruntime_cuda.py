"""ONNX Runtime on an NVIDIA GPU: GroupQueryAttention over linear caches that stay on the device. Not run on any GPU yet.

Caches are float16, allocated and moved through cuda-python (cuda.py), and bound to the graph as input and output at one address:
the kernel appends to them in place. Those of layers with a window are allocated once, W-1+slack places long, and moved when they
are full; those of others grow by half. Token ids and logits go over the bus, nothing else does.

As on the CPU, the kernel refuses a batch with a past when S > 1: such a step runs row by row, see onnxruntime_runner.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import Manifest, ModelInfo
from alize.errors import ArtifactError, DeviceUnavailable
from alize.runtimes.cuda import Cuda
from alize.runtimes.device_caches import DeviceCaches
from alize.runtimes.masked_rows import MaskedRows
from alize.runtimes.session import Limits, session_limits

__all__ = ["CudaEngine", "CudaRunner", "fingerprint", "open_engine", "problem"]

PROVIDER = "CUDAExecutionProvider"
_REMEDY = "pip uninstall onnxruntime, then pip install 'alize[cuda]', which brings onnxruntime-gpu in its place"
_GROWTH = 256  # positions that a cache without a window grows by, at least


def problem() -> str | None:
    """Why this machine cannot run a CUDA artifact; None when it can."""
    import onnxruntime

    if PROVIDER not in onnxruntime.get_available_providers():
        return f"the onnxruntime {onnxruntime.__version__} here has no {PROVIDER}: {_REMEDY}"
    why = Cuda.problem()
    return None if why is None else f"no NVIDIA GPU can be used here ({why}): check the driver with nvidia-smi"


def fingerprint() -> dict[str, str]:
    """The engine, the GPU and its driver."""
    import onnxruntime

    gpu = Cuda().properties()
    return {
        "backend": "onnxruntime",
        "version": onnxruntime.__version__,
        "device": "cuda",
        "name": gpu.name,
        "sm": str(gpu.sm),
        "driver": gpu.driver,
    }


def open_engine(path: Path, manifest: Manifest, options: Mapping[str, str | int | bool]) -> "CudaEngine":
    """Reads the graph in PATH onto GPU 0; CUDA_VISIBLE_DEVICES chooses another.

    Raises DeviceUnavailable without a GPU or where ONNX Runtime falls back to the CPU, ArtifactError for an artifact of another
    device or a graph that cannot be read.
    """
    if manifest.target.device != "cuda":
        rebuild = manifest.rebuild.replace(f"--device {manifest.target.device}", "--device cuda")
        raise ArtifactError(f"{path.parent} was built for {manifest.target.device}, in float32: for a GPU run `{rebuild}`")
    why = problem()
    if why is not None:
        raise DeviceUnavailable(why)
    return CudaEngine(_session(path), Cuda(), manifest.model, session_limits(manifest.model, options))


def _session(path: Path) -> Any:
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):  # CUDA's libraries where pip has put them
        onnxruntime.preload_dlls()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    given = {"device_id": 0, "use_tf32": 0}  # routers are computed in float32
    try:
        session = onnxruntime.InferenceSession(path, settings, providers=[(PROVIDER, given), "CPUExecutionProvider"])
    except Exception as error:
        raise ArtifactError(f"{path}: onnxruntime {onnxruntime.__version__} cannot read it: {error}") from error
    if PROVIDER not in session.get_providers():  # it says so in a warning and goes on
        raise DeviceUnavailable(
            f"onnxruntime {onnxruntime.__version__} cannot load its CUDA provider and fell back to the CPU: {_REMEDY}, "
            "with the CUDA and cuDNN that it was built for"
        )
    return session


class CudaEngine:
    """One inference session; runners share it."""

    def __init__(self, session: Any, cuda: Cuda, info: ModelInfo, limits: Limits) -> None:
        self.session, self.cuda, self.info, self.limits = session, cuda, info, limits

    def runner(self, batch: int) -> "CudaRunner":
        return CudaRunner(self.session, self.cuda, self.info, self.limits, batch)

    def close(self) -> None:
        self.session = None


class CudaRunner(MaskedRows):
    """Caches on the device, bound at each run."""

    def __init__(self, session: Any, cuda: Cuda, info: ModelInfo, limits: Limits, batch: int) -> None:
        super().__init__(info, batch)
        self._session, self._cuda, self._stream = session, cuda, cuda.stream()
        full = 0 if all(info.windows) else min(_GROWTH, info.max_positions)
        try:
            self._caches = DeviceCaches(cuda, info, batch, full=full, window=limits.capacity or 0, stream=self._stream)
        except BaseException:
            cuda.free_stream(self._stream)
            raise

    def close(self) -> None:
        """See Runner."""
        self._cuda.synchronise(self._stream)
        self._caches.close()
        self._cuda.free_stream(self._stream)

    def _make_room(self, new: int, lengths: NDArray[np.int64]) -> None:  # noqa: ARG002 - of `new`, lengths[b] count
        """Layers with a window have it always: the session evicts before they are full."""
        needed, full = int((self._filled + lengths).max()), self._caches.full
        if full and needed > full:
            self._caches.grow(max(needed, min(full + max(full // 2, _GROWTH), self._info.max_positions)))

    def _move(self, row: int, count: int, keep: int) -> None:
        self._caches.move(row, count, keep)
        self._cuda.synchronise(self._stream)  # the session runs on a stream of its own

    def _run(
        self,
        rows: slice,
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int64],  # noqa: ARG002 - no padding: every row is `tokens.shape[1]` tokens longer afterwards
        positions: NDArray[np.int64],
        keep: int,
    ) -> NDArray[np.float32]:
        import onnxruntime

        binding = self._session.io_binding()
        binding.bind_output("logits", "cpu")
        for name, array in self._inputs(
            rows, tokens, positions, keep
        ).items():  # an input with a default is an OrtValue or not found
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for name in self._caches.names:
            address, shape = self._caches.place(name, rows)
            binding.bind_input(f"past_key_values.{name}", "cuda", 0, np.float16, shape, address)
            binding.bind_output(f"present.{name}", "cuda", 0, np.float16, shape, address)
        self._session.run_with_iobinding(binding)  # returns when its stream is done
        logits: NDArray[np.float32] = binding.get_outputs()[0].numpy()
        return logits
