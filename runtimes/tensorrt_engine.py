"""TensorRT's engines on an NVIDIA GPU, by either package: plans, contexts, buffers. See docs/nvidia.md for what was run.

An engine has two profiles, one for steps of one token a row and one for all others: each has an execution context, and both
write the same caches, which a session allocates once and binds as input and output at one address. A decode step of a session
is captured as a CUDA graph when it is first run; its inputs are copied to where the graph reads them.
"""

import contextlib
import logging
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import Manifest, ModelInfo
from alize.artifact.state import DeviceState
from alize.errors import ArtifactError, BackendUnavailable, DeviceUnavailable, UsageError
from alize.nvidia import PACKAGES, Limits, Package, engine_limits, plan_name
from alize.runtimes.cuda import Cuda
from alize.runtimes.device_caches import DeviceCaches
from alize.runtimes.linear_caches import LinearCacheRunner

__all__ = ["TENSORRT", "TENSORRT_RTX", "TensorRtBackend", "TensorRtEngine"]

_RUNTIME_CACHE = "runtime.cache"
_log = logging.getLogger("alize.tensorrt")


@dataclass(frozen=True)
class TensorRtBackend:
    """A BackendModule over either package."""

    package: Package

    def available(self) -> str | None:
        """None when the package can be imported, else why not."""
        try:
            self.package.load()
        except BackendUnavailable as error:
            return str(error)
        return None

    def devices(self) -> list[str]:
        """gpu, where there is one with a driver, else none."""
        return ["gpu"] if Cuda.problem() is None else []

    def fingerprint(self, device: str) -> dict[str, str]:
        """The GPU, its driver and the libraries that compute on it."""
        gpu = Cuda().properties()
        return {
            "backend": self.package.target,
            "version": str(self.package.load().__version__),
            "device": device,
            "name": gpu.name,
            "sm": str(gpu.sm),
            "driver": gpu.driver,
        }

    def open(
        self,
        folder: Path,
        manifest: Manifest,
        device: str,
        options: Mapping[str, str | int | bool],
        taps: Sequence[str] = (),
    ) -> "TensorRtEngine":
        """Deserialises the plan for this machine's GPU.

        Options: `graphs` (False: no CUDA graph for decoding). Raises DeviceUnavailable without a driver, ArtifactError for an
        engine of another SM or version, a truncated plan, and caches that do not fit, BackendUnavailable for taps: a plan has
        no tensors to look at.
        """
        if taps:
            raise BackendUnavailable(f"an engine keeps no inner tensors ({taps[0]}): the graph proof does")
        problem = Cuda.problem()
        if problem is not None:
            raise DeviceUnavailable(
                f"{self.package.target} needs an NVIDIA GPU and its driver ({problem}): run it where there is one"
            )
        cuda = Cuda()
        plan = pick_plan(folder, manifest, cuda.properties().sm)
        limits = engine_limits(manifest.model.windows, int(manifest.target.options.get("capacity", 0)))
        trt = self.package.load()
        check_version(self.package, manifest, str(trt.__version__))
        state = DeviceState(manifest.digest, self.fingerprint(device)).folder if manifest.digest else None
        return TensorRtEngine(trt, cuda, plan, manifest, limits, state, graphs=bool(options.get("graphs", True)))


TENSORRT = TensorRtBackend(PACKAGES["tensorrt"])
TENSORRT_RTX = TensorRtBackend(PACKAGES["tensorrt-rtx"])


def pick_plan(folder: Path, manifest: Manifest, sm: int) -> Path:
    """The plan for a GPU of compute capability `sm`. Raises ArtifactError."""
    sms = [int(word) for word in manifest.target.options["sm"].split(",")]
    if sm not in sms:
        rebuild = re.sub(r"--sm \S+", f"--sm {','.join(map(str, sorted([*sms, sm])))}", manifest.rebuild)
        raise ArtifactError(
            f"{folder} has engines for SM {', '.join(map(str, sms))}, this GPU is SM {sm}: rebuild with `{rebuild}`"
        )
    return folder / plan_name(sm)


def check_version(package: Package, manifest: Manifest, version: str) -> None:
    """A plan runs by the version that wrote it. Raises ArtifactError."""
    built = {manifest.target.versions.get(name) for name in package.distributions} - {None}
    if built and version not in built:
        raise ArtifactError(
            f"the engine was built by {package.target} {', '.join(sorted(map(str, built)))}, {version} is here: "
            f"install that version, or rebuild with `{manifest.rebuild}`"
        )


class TensorRtEngine:
    """One deserialised plan, shared by the sessions' runners."""

    def __init__(
        self, trt: Any, cuda: Cuda, plan: Path, manifest: Manifest, limits: Limits, state: Path | None, *, graphs: bool
    ) -> None:
        self.trt, self.cuda, self.limits, self.graphs = trt, cuda, limits, graphs
        self.info: ModelInfo = manifest.model
        self.batch = int(manifest.target.options["batch"])
        self.engine, self.said, self._kept = _deserialised(trt, plan, manifest.rebuild)
        self._cache_file = None if state is None else state / _RUNTIME_CACHE
        self._config: Any = None
        self._runtime_cache: Any = None
        self._take_runtime_cache()

    def context(self, profile: int, stream: int) -> Any:
        """A fresh execution context of a profile: 0 decodes, 1 takes any step."""
        context = self.engine.create_execution_context(self._config) if self._config else self.engine.create_execution_context()
        if context is None:
            raise ArtifactError(
                "TensorRT cannot make an execution context: close other sessions, or build with a smaller --batch"
            )
        context.set_optimization_profile_async(profile, stream)
        return context

    def runner(self, batch: int) -> LinearCacheRunner:
        if batch > self.batch:
            raise UsageError(
                f"a session of {batch} rows is more than the {self.batch} that the engine takes: rebuild with --batch {batch}"
            )
        return LinearCacheRunner(GpuBuffers(self, batch), self.info, self.limits, batch)

    def keep_kernels(self) -> None:
        """Writes what the package compiled on this device to its state, so that the next load need not. A disk that is full or
        read-only costs that time again, and is said once."""
        if self._runtime_cache is None or self._cache_file is None:
            return
        try:
            self._cache_file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._cache_file.with_suffix(".writing")
            temporary.write_bytes(bytes(self._runtime_cache.serialize()))
            temporary.replace(self._cache_file)
        except OSError as error:
            _log.warning(
                "%s cannot be written (%s): kernels are compiled again at every load; set ALIZE_STATE_DIR",
                self._cache_file,
                error,
            )

    def close(self) -> None:
        self.keep_kernels()
        self.engine = self._config = self._runtime_cache = self._kept = None

    def _take_runtime_cache(self) -> None:
        """TensorRT-RTX compiles kernels when an engine is opened: what it compiled before is read back. TensorRT has none."""
        if not hasattr(self.engine, "create_runtime_config"):
            return
        config = self.engine.create_runtime_config()
        if not hasattr(config, "create_runtime_cache"):
            return
        cache = config.create_runtime_cache()
        if self._cache_file is not None and self._cache_file.is_file():
            cache.deserialize(self._cache_file.read_bytes())  # False where it is of another version: then it is made anew
        config.set_runtime_cache(cache)
        self._config, self._runtime_cache = config, cache


def _deserialised(trt: Any, plan: Path, rebuild: str) -> tuple[Any, Sequence[str], Any]:
    """The engine, the last errors that TensorRT logs as long as it lives, and what has to live as long."""
    messages: deque[str] = deque(maxlen=8)

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                messages.append(" ".join(message.split())[:300])

    log = Log()
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        why = messages[0] if messages else "it does not say why"
        raise ArtifactError(
            f"{plan} cannot be opened as an engine ({why}): it is truncated or of another version; rebuild with `{rebuild}`"
        )
    return engine, messages, (runtime, log)


@dataclass
class _Bound:
    """An execution context with its inputs' buffers on the device, by name, and a captured graph by batch rows."""

    context: Any
    graphs: dict[tuple[int, int], Any]


class GpuBuffers:
    """The caches of one session on the GPU, and the runs that write them."""

    def __init__(self, engine: TensorRtEngine, batch: int) -> None:
        self._engine, self._cuda, self._batch = engine, engine.cuda, batch
        info, limits = engine.info, engine.limits
        self._logits, self._logits_size = 0, 0
        with contextlib.ExitStack() as undo:
            self._stream = self._cuda.stream()
            undo.callback(self._cuda.free_stream, self._stream)
            self._bound = [_Bound(engine.context(profile, self._stream), {}) for profile in (0, 1)]
            self._caches = DeviceCaches(
                self._cuda, info, batch, full=limits.capacity, window=limits.window_capacity, stream=self._stream
            )
            undo.callback(self._caches.close)
            self._inputs = self._cuda.allocate(8 * 3 * batch * (limits.chunk + 2), self._stream)
            undo.pop_all()  # all of it is there: `close` sees to it

    def execute(self, rows: slice, feeds: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """See Buffers."""
        batch, new = feeds["input_ids"].shape
        wanted = feeds["logits_index"].shape[1]
        bound = self._bound[0 if new == 1 else 1]
        logits = np.empty((batch, wanted, self._engine.info.vocab_size), np.float32)
        self._reserve(logits.nbytes)
        places = self._copy_inputs(feeds)
        key = (rows.start, batch)
        graph = bound.graphs.get(key) if new == 1 and wanted == 1 else None
        if graph is not None:
            self._cuda.launch(graph, self._stream)
        else:
            self._bind(bound.context, rows, feeds, places)
            self._enqueue(bound.context)
            if new == 1 and wanted == 1 and self._engine.graphs:
                bound.graphs[key] = self._capture(bound.context)
        self._cuda.to_host(logits, self._logits, self._stream)
        self._cuda.synchronise(self._stream)
        return logits

    def move(self, row: int, count: int, keep: int) -> None:
        """See Buffers."""
        self._caches.move(row, count, keep)

    def close(self) -> None:
        """See Buffers."""
        self._cuda.synchronise(self._stream)
        for bound in self._bound:
            for graph in bound.graphs.values():
                self._cuda.free_graph(graph)
        self._caches.close()
        for address in (self._inputs, self._logits):
            self._cuda.free(address)
        self._cuda.free_stream(self._stream)
        self._bound = []

    def _reserve(self, size: int) -> None:
        """Room for the logits; graphs that write to where they were are forgotten."""
        if size > self._logits_size:
            self._cuda.synchronise(self._stream)
            for graph in self._bound[0].graphs.values():
                self._cuda.free_graph(graph)
            self._bound[0].graphs.clear()
            self._cuda.free(self._logits)
            self._logits, self._logits_size = self._cuda.allocate(size, self._stream), size

    def _copy_inputs(self, feeds: Mapping[str, NDArray[np.int64]]) -> dict[str, int]:
        """Every input behind the other at the same place for the same shapes, which a captured graph relies on."""
        places, address = {}, self._inputs
        for name, array in feeds.items():
            places[name] = address
            self._cuda.to_device(address, np.ascontiguousarray(array), self._stream)
            address += array.nbytes
        return places

    def _bind(self, context: Any, rows: slice, feeds: Mapping[str, NDArray[np.int64]], places: Mapping[str, int]) -> None:
        for name, array in feeds.items():
            context.set_input_shape(name, array.shape)
            context.set_tensor_address(name, places[name])
        for name in self._caches.names:
            address, shape = self._caches.place(name, rows)
            context.set_input_shape(f"past_key_values.{name}", shape)
            context.set_tensor_address(f"past_key_values.{name}", address)
            context.set_tensor_address(f"present.{name}", address)
        context.set_tensor_address("logits", self._logits)

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream):
            why = self._engine.said[-1] if self._engine.said else "it does not say why"
            raise ArtifactError(f"TensorRT could not run a step ({why}): `alize validate` repeats the golden prompts")

    def _capture(self, context: Any) -> Any:
        """The step that has just run, as a graph: capturing runs nothing, so that no token is written twice."""
        self._cuda.synchronise(self._stream)
        return self._cuda.captured(self._stream, lambda: self._enqueue(context))
