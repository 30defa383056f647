"""Runs the graph that TensorRT parses on this machine's CPU, through ONNX Runtime: the same nodes, the same caches in place.

Options: `accuracy` reads every half type as float32 (the stored weights' values are kept), which leaves nothing but the graph
to differ from the reference by. Without it the graph is run as it is, in float16; a graph in bfloat16 can't be: no CPU kernel.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from alize.artifact.manifest import Manifest, ModelInfo
from alize.errors import LoweringFailed
from alize.nvidia import Limits, engine_limits
from alize.optimize.lower_tensorrt import GRAPH_FILE
from alize.optimize.widen import widened
from alize.runtimes.linear_caches import LinearCacheRunner
from alize.runtimes.linear_rows import cache_names
from alize.runtimes.onnxruntime_runner import available, devices, session_options
from alize.runtimes.taps import Taps

__all__ = ["GraphEngine", "available", "devices", "fingerprint", "open", "open_graph"]


NO_OPTIONS: Mapping[str, str | int | bool] = MappingProxyType({})


def fingerprint(device: str) -> dict[str, str]:
    """Of the proof, which decides no verdict of a device."""
    return {"backend": "graph proof", "device": device}


def open(  # noqa: A001 - the name that every back-end module has
    folder: Path,
    manifest: Manifest,
    device: str,  # noqa: ARG001 - there is one
    options: Mapping[str, str | int | bool],
    taps: Sequence[str] = (),
) -> "GraphEngine":
    """The graph in FOLDER, with its weights beside it."""
    model = onnx.load(folder / GRAPH_FILE, load_external_data=False)
    model = widened(model) if options.get("accuracy") else model
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in taps)
    limits = engine_limits(manifest.model.windows, int(manifest.target.options.get("capacity", 0)))
    return GraphEngine(open_graph(model, folder), manifest.model, limits, taps)


def open_graph(model: onnx.ModelProto, folder: Path, options: Mapping[str, str | int | bool] = NO_OPTIONS) -> Any:
    """An onnxruntime session of a model whose weights lie in FOLDER. options: of `session_options`, without any
    in exact mode: by itself the engine rounds what integers are multiplied with. Raises LoweringFailed."""
    import onnxruntime

    settings = session_options(options)
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise LoweringFailed(f"the lowered graph cannot be proven on the CPU: onnxruntime says {error}") from error


class GraphEngine:
    """One inference session. chunk: tokens of a step at most, as the engine has it."""

    def __init__(self, session: Any, info: ModelInfo, limits: Limits, taps: Sequence[str] = ()) -> None:
        self.session, self.info, self.limits = session, info, limits
        self.chunk = limits.chunk
        self._taps = taps

    def runner(self, batch: int) -> "GraphRunner":
        return GraphRunner(
            _CpuBuffers(self.session, self.info, self.limits, batch, Taps(self._taps, batch)), self.info, self.limits
        )

    def close(self) -> None:
        self.session = None


class GraphRunner(LinearCacheRunner):
    """A TappedRunner."""

    def __init__(self, buffers: "_CpuBuffers", info: ModelInfo, limits: Limits) -> None:
        super().__init__(buffers, info, limits, buffers.batch)
        self._cpu = buffers

    def step(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        self._cpu.lengths = lengths
        return super().step(tokens, lengths, positions, keep)

    @property
    def taps(self) -> Taps:
        """What the tapped tensors held."""
        return self._cpu.taps


class _CpuBuffers:
    """Buffers of numpy arrays, past and present of a layer at one address as on a GPU."""

    def __init__(self, session: Any, info: ModelInfo, limits: Limits, batch: int, taps: Taps) -> None:
        self.batch, self.taps = batch, taps
        self.lengths = np.zeros(batch, np.int64)  # of the step that runs: what of its rows is tokens
        self._session = session
        kinds = {value.name: value.type for value in session.get_inputs()}
        self._caches: dict[str, NDArray[Any]] = {}
        self._windowed = {name for name, window in cache_names(info) if window}
        for name, window in cache_names(info):
            dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[kinds[f"past_key_values.{name}"]]
            capacity = limits.window_capacity if window else limits.capacity
            self._caches[name] = np.zeros((batch, info.key_value_heads, capacity, info.head_size), dtype)

    def execute(self, rows: slice, feeds: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        binding = self._session.io_binding()
        for name in ("logits", *self.taps.names):
            binding.bind_output(name)
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, cache in self._caches.items():
            view = cache[rows]
            place = ("cpu", 0, cache.dtype.type, view.shape, view.ctypes.data)
            binding.bind_input(f"past_key_values.{name}", *place)
            binding.bind_output(f"present.{name}", *place)
        self._session.run_with_iobinding(binding)
        outputs = binding.get_outputs()
        if self.taps.names:
            values = [output.numpy() for output in outputs[1 : 1 + len(self.taps.names)]]
            self.taps.add(values, self.lengths[rows], first=rows.start)
        logits: NDArray[np.float32] = outputs[0].numpy()
        return logits

    def move(self, row: int, count: int, keep: int) -> None:
        for name in self._windowed:
            self._caches[name][row, :, :keep] = self._caches[name][row, :, count - keep : count].copy()

    def close(self) -> None:
        self._caches = {}
