"""ONNX Runtime's CUDA provider played on the CPU: its session runs the artifact's graph in float16 as it is, at the addresses
that the runtime binds, in "device memory" that is the process's own."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from alize.runtimes import onnxruntime_cuda
from tests.builds.played_tensorrt import HostMemory


class PlayedBinding:
    """An IOBinding that finds the device's memory on the host."""

    def __init__(self, session: Any) -> None:
        self._binding = session.io_binding()
        self._pasts: dict[str, Any] = {}

    def bind_input(self, name: str, device: str, *place: Any) -> None:
        assert device == "cuda", "caches lie on the device"
        self._pasts[name] = place
        self._binding.bind_input(name, "cpu", *place)

    def bind_output(self, name: str, device: str, *place: Any) -> None:
        if place:
            assert device == "cuda", "caches lie on the device"
            assert place == self._pasts[name.replace("present", "past_key_values")], "a cache is written where it is read"
        self._binding.bind_output(name, "cpu", *place)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._binding, name)


class PlayedSession:
    """error: what every second logit is off by."""

    def __init__(self, path: Path, error: float) -> None:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        self._error = error
        self.runs: list[tuple[int, ...]] = []

    def io_binding(self) -> Any:
        return PlayedBinding(self._session)

    def run_with_iobinding(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding._binding)
        found = binding._binding.get_outputs()[0].numpy().copy()
        self.runs.append(found.shape)
        found[..., ::2] += self._error
        binding.get_outputs = lambda: [SimpleNamespace(numpy=lambda: found)]


def play_cuda(monkeypatch: pytest.MonkeyPatch, *, error: float = 0.0) -> HostMemory:
    """Says that there is a GPU and the package for it."""
    memory = HostMemory()

    class Played:
        problem = staticmethod(HostMemory.problem)

        def __new__(cls) -> Any:
            return memory

    monkeypatch.setattr(onnxruntime_cuda, "Cuda", Played)
    monkeypatch.setattr(onnxruntime_cuda, "problem", lambda: None)
    monkeypatch.setattr(onnxruntime_cuda, "_session", lambda path: PlayedSession(path, error))
    return memory
