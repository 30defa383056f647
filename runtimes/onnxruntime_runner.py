"""ONNX Runtime on the CPU: GroupQueryAttention over linear caches that past and present share. The GPU is in onnxruntime_cuda.py.

The graph takes rows of unequal lengths by its attention mask (row b holds mask[b].sum() tokens, padded on the right), but the
engine's kernel refuses a batch with a past when S > 1: such a step runs row by row, on views of the row's own buffers.
A decode step (one token for every row) runs as one batch.

Where only some layers have a window, those forget and the others do not: the mask counts all tokens, and the graph's input
`num_evicted` says how many of each row's first ones the layers with a window have forgotten.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import Manifest, ModelInfo
from alize.errors import ArtifactError, BackendUnavailable, UsageError
from alize.runtimes import onnxruntime_cuda
from alize.runtimes.linear_rows import cache_names
from alize.runtimes.masked_rows import MaskedRows
from alize.runtimes.taps import Taps, with_outputs

__all__ = [
    "MODEL_FILE",
    "OnnxRuntimeEngine",
    "OnnxRuntimeRunner",
    "available",
    "devices",
    "fingerprint",
    "open",
    "session_options",
]

MODEL_FILE = "model.onnx"
_EXACT = 1  # MatMulNBits: float32 arithmetic; the engine's own choice is 4, activations rounded to 8 bits
_GROWTH = 256  # cached positions that a buffer grows by, at least


def available() -> str | None:
    """None when onnxruntime can be imported, else why not."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        return str(error)
    return None


def devices() -> list[str]:
    """The devices of this machine that artifacts can name."""
    return ["cpu", *([] if onnxruntime_cuda.problem() else ["cuda"])]


def fingerprint(device: str) -> dict[str, str]:
    """What tells this device from another: the engine's version and the processor."""
    import onnxruntime

    from alize.runtimes.processor import processor_name

    if device == "cuda":
        return onnxruntime_cuda.fingerprint()

    return {"backend": "onnxruntime", "version": onnxruntime.__version__, "device": device, "name": processor_name()}


def open(  # noqa: A001 - the name that every back-end module has
    folder: Path,
    manifest: Manifest,
    device: str,
    options: Mapping[str, str | int | bool],
    taps: Sequence[str] = (),
) -> "OnnxRuntimeEngine | onnxruntime_cuda.CudaEngine":
    """Read the artifact's graph. Raises ArtifactError, BackendUnavailable, DeviceUnavailable.

    Options: `threads` (0 = one a physical core), `accuracy_level` of products with integer weights (1, float32, is the default).
    """
    why = available()
    if why is not None:
        raise BackendUnavailable(f"onnxruntime cannot be imported ({why}): pip install 'alize[onnxruntime]'")
    if device == "cuda":
        if taps:
            raise UsageError(f"tensors inside a graph ({taps[0]}) are not read on cuda: open it on the CPU")
        return onnxruntime_cuda.open_engine(folder / MODEL_FILE, manifest, options)
    if manifest.target.device == "cuda":
        rebuild = manifest.rebuild.replace("--device cuda", "--device cpu")
        raise ArtifactError(f"{folder} was built for cuda, in float16: for the CPU run `{rebuild}`")
    import onnxruntime

    settings = session_options(options)
    try:
        graph: Path | bytes = folder / MODEL_FILE
        if taps:
            settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
            graph = with_outputs((folder / MODEL_FILE).read_bytes(), taps)
        session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArtifactError(f"{folder / MODEL_FILE}: onnxruntime {onnxruntime.__version__} cannot read it: {error}") from error
    return OnnxRuntimeEngine(session, manifest.model, taps)


def session_options(options: Mapping[str, str | int | bool]) -> Any:
    """onnxruntime's SessionOptions for a configuration's options; see `open`."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # it warns of num_logits_to_keep, an input with a default on purpose
    settings.intra_op_num_threads = int(options.get("threads", 0))
    level = str(int(options.get("accuracy_level", _EXACT)))
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    return settings


class OnnxRuntimeEngine:
    """One inference session; its runs are thread-safe, so that runners share it."""

    def __init__(self, session: Any, info: ModelInfo, taps: Sequence[str] = ()) -> None:
        self.session = session
        self.info = info
        self._taps = taps

    def runner(self, batch: int) -> "OnnxRuntimeRunner":
        return OnnxRuntimeRunner(self.session, self.info, batch, self._taps)

    def close(self) -> None:
        self.session = None


class OnnxRuntimeRunner(MaskedRows):
    """Caches float32 [B,K,capacity,D], key and value of each layer."""

    def __init__(self, session: Any, info: ModelInfo, batch: int, taps: Sequence[str] = ()) -> None:
        super().__init__(info, batch)
        self.taps = Taps(taps, batch)
        self._session = session
        self._output = "logits"
        names = cache_names(info)
        self._names, self._of_window = [name for name, _ in names], [window > 0 for _, window in names]
        self._caches = [self._allocate(batch, 0) for _ in names]

    def _run(
        self,
        rows: slice,
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int64],  # noqa: ARG002 - no padding: every row is `tokens.shape[1]` tokens longer afterwards
        positions: NDArray[np.int64],
        keep: int,
    ) -> NDArray[np.float32]:
        """One run of the graph on some rows."""
        import onnxruntime

        new = tokens.shape[1]
        binding = self._session.io_binding()
        for name in (self._output, *self.taps.names):
            binding.bind_output(name)
        for name, array in self._inputs(
            rows, tokens, positions, keep
        ).items():  # as OrtValue: to bind_cpu_input an input with a default is "not found"
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for name, cache in zip(self._names, self._caches, strict=True):
            view = cache[rows]
            place = ("cpu", 0, np.float32, view.shape, view.ctypes.data)
            binding.bind_input(f"past_key_values.{name}", *place)
            binding.bind_output(f"present.{name}", *place)
        self._session.run_with_iobinding(binding)
        outputs = binding.get_outputs()
        if self.taps.names:
            values = [output.numpy() for output in outputs[1 : 1 + len(self.taps.names)]]
            self.taps.add(values, np.full(len(tokens), new), first=rows.start)
        logits: NDArray[np.float32] = outputs[0].numpy()
        return logits

    def _move(self, row: int, count: int, keep: int) -> None:
        for cache, windowed in zip(self._caches, self._of_window, strict=True):
            if windowed:
                cache[row, :, :keep] = cache[row, :, count - keep : count].copy()

    def close(self) -> None:
        self._caches = []

    def _make_room(self, new: int, lengths: NDArray[np.int64]) -> None:  # noqa: ARG002 - of `new`, lengths[b] count
        """Makes every buffer hold lengths[b] more of row b, growing by half at least: a token is copied O(1) times."""
        everything = int((self._filled + lengths).max())
        kept = int((self._held() + lengths).max())
        for index, (cache, windowed) in enumerate(zip(self._caches, self._of_window, strict=True)):
            old, needed = cache.shape[2], kept if windowed else everything
            if needed > old:
                grown = self._allocate(len(self._filled), max(needed, old + old // 2, old + _GROWTH))
                grown[:, :, :old] = cache
                self._caches[index] = grown

    def _allocate(self, batch: int, capacity: int) -> NDArray[np.float32]:
        return np.zeros((batch, self._info.key_value_heads, capacity, self._info.head_size), np.float32)
