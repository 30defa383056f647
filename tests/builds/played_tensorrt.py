"""TensorRT played on the CPU: a build writes a plan of the right text, and an engine runs the lowered graph with ONNX Runtime,
at the addresses that the runtime binds, in "device memory" that is the process's own."""

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from alize.compilers import COMPILERS, Compiler
from alize.nvidia import PACKAGES, Package
from alize.optimize import lower_tensorrt
from alize.runtimes import tensorrt_engine
from alize.runtimes.cuda import Properties

VERSION = "1.7.1.116"


def plan_text(layers: int, *, without: str = "", unbounded: bool = False) -> bytes:
    """What a plan's text says of its kernels. without: a kernel's name that is left out of layer 0."""
    lines = [b"plan"]
    for layer in range(layers):
        for name, bounds in (("_gemv_mha_v1", 'lb_var1="a"'), ("_gemm_mha_v2", 'lb_var2="a" lb_var3="b"')):
            if not (layer == 0 and name == without):
                told = "" if unbounded else bounds
                lines.append(
                    f'  function={{ name={name} fqn=x {told} layers="[ONNX Layer: layers.{layer}.self_attn]" }}'.encode()
                )
    lines.append(b'  fully_connected={ name="linear_1" layers="[ONNX Layer: linear_1]" }')
    return b"\n".join(lines) + b"\n"


@pytest.fixture
def played_build(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Any]]:
    """Builds need no TensorRT, and keep the graph's weights. Returns the (SM, profiles) of each plan built."""
    built: list[tuple[int, Any]] = []

    def build_plan(package: Package, graph: Path, plan: Path, sm: int, profiles: Sequence[Any]) -> tuple[str, ...]:
        nodes = ir.load(graph).graph
        plan.write_bytes(plan_text(sum(node.op_type == "Attention" for node in nodes)))
        built.append((sm, tuple(profiles)))
        return ()

    monkeypatch.setattr(lower_tensorrt, "build_plan", build_plan)
    versions = dict.fromkeys(PACKAGES["tensorrt-rtx"].distributions, VERSION)
    monkeypatch.setattr(Compiler, "versions", lambda compiler: versions)
    monkeypatch.setitem(vars(COMPILERS["tensorrt-rtx"]), "temporary", ())
    return built


class HostMemory:
    """Cuda, on the host: addresses are real ones, streams nothing."""

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}
        self.launched = 0
        self.streams = 0

    @staticmethod
    def problem() -> str | None:
        return None

    def properties(self) -> Properties:
        return Properties("played", 89, "12080")

    def stream(self) -> int:
        self.streams += 1
        return self.streams

    def free_stream(self, stream: int) -> None:
        self.streams -= 1

    def allocate(self, size: int, stream: int) -> int:
        buffer = ctypes.create_string_buffer(size)
        self.held[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def free(self, address: int) -> None:
        if address:
            del self.held[address]  # twice is a KeyError

    def to_device(self, address: int, array: NDArray[Any], stream: int) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def to_host(self, array: NDArray[Any], address: int, stream: int) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def copy_rows(self, to: int, to_pitch: int, source: int, source_pitch: int, width: int, rows: int, stream: int) -> None:
        for row in range(rows):
            start, end = source + row * source_pitch, to + row * to_pitch
            assert width == 0 or start + width <= end or end + width <= start, "source and destination overlap"
            ctypes.memmove(end, start, width)

    def synchronise(self, stream: int) -> None:
        pass

    def captured(self, stream: int, work: Callable[[], None]) -> Any:
        """The run as it is bound now; nothing is run yet."""
        recording: list[Callable[[], None]] = []
        PlayedContext.recording = recording
        work()
        PlayedContext.recording = None
        return recording

    def launch(self, graph: Any, stream: int) -> None:
        self.launched += 1
        for run in graph:
            run()

    def free_graph(self, graph: Any) -> None:
        pass


class PlayedContext:
    """IExecutionContext, over an onnxruntime session."""

    recording: list[Callable[[], None]] | None = None

    def __init__(self, session: Any, error: float) -> None:
        self._session, self._error = session, error
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> None:
        self._profile = profile

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self._shapes[name] = tuple(shape)

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert self._profile == 1 or self._shapes["input_ids"][1] == 1, "the decoding profile takes one token"
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        if PlayedContext.recording is not None:
            PlayedContext.recording.append(lambda: self._run(shapes, addresses))
        else:
            self._run(shapes, addresses)
        return True

    def _run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        kinds = {"tensor(int64)": np.int64, "tensor(float16)": np.float16}
        binding = self._session.io_binding()
        binding.bind_output("logits")
        for value in self._session.get_inputs():
            place = ("cpu", 0, kinds[value.type], shapes[value.name], addresses[value.name])
            binding.bind_input(value.name, *place)
            if value.name.startswith("past_key_values."):
                present = value.name.replace("past_key_values", "present")
                assert addresses[present] == addresses[value.name], "a cache is read and written at one address"
                binding.bind_output(present, *place)
        self._session.run_with_iobinding(binding)
        logits = np.ascontiguousarray(binding.get_outputs()[0].numpy())
        logits[..., ::2] += self._error
        ctypes.memmove(addresses["logits"], logits.ctypes.data, logits.nbytes)


class PlayedConfig:
    """IRuntimeConfig of TensorRT-RTX, with its one cache: it is given what was kept before, and keeps one kernel more."""

    def __init__(self, given: list[bytes]) -> None:
        self._given = given

    def create_runtime_cache(self) -> Any:
        known = [b""]
        return SimpleNamespace(
            deserialize=lambda data: (known.append(data), self._given.append(data)), serialize=lambda: known[-1] + b"kernel "
        )

    def set_runtime_cache(self, cache: Any) -> None:
        pass


def played_package(graph: Path, *, error: float = 0.0, truncated: bool = False, kernels: list[bytes] | None = None) -> Any:
    """The TensorRT module, as far as the runtime uses it. error: what every second logit is off by.   kernels: TensorRT-RTX's
    runtime caches, each as it was read back."""
    from alize.validate.graph_proof import open_graph

    class Log:
        Severity = SimpleNamespace(ERROR=1)

    def deserialise(log: Any, content: bytes) -> Any:
        if truncated:
            log.log(1, "Serialization assertion failed: plan is truncated")
            return None
        session = open_graph(onnx.load(graph, load_external_data=False), graph.parent)
        engine = SimpleNamespace(create_execution_context=lambda *_: PlayedContext(session, error))
        if kernels is not None:
            engine.create_runtime_config = lambda: PlayedConfig(kernels)
        return engine

    def runtime(log: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda content: deserialise(log, content))

    return SimpleNamespace(__version__=VERSION, ILogger=Log, Runtime=runtime)


def play_gpu(monkeypatch: pytest.MonkeyPatch, folder: Path, **options: Any) -> HostMemory:
    """Says that there is a GPU of SM 89; it computes what the lowered graph in FOLDER says."""
    memory = HostMemory()
    module = played_package(folder / lower_tensorrt.GRAPH_FILE, **options)

    class Played:
        problem = staticmethod(HostMemory.problem)

        def __new__(cls) -> Any:
            return memory

    monkeypatch.setattr(tensorrt_engine, "Cuda", Played)
    monkeypatch.setattr(Package, "load", lambda package: module)
    return memory
