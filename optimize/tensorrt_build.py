"""A lowered ONNX graph -> TensorRT's plan file, by either package. The plan goes to the disk as it is made.

Which kernels are fast is timed on the GPU where one is built for in place; what was found is kept in the state folder, in
`timing/PACKAGE-VERSION-smNN.cache`, for the builds to come. TensorRT itself refuses a cache of another GPU.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alize.artifact.state import state_dir
from alize.errors import BackendUnavailable, LoweringFailed, OutputError
from alize.nvidia import Package

__all__ = ["Profile", "build_plan"]

_log = logging.getLogger("alize.tensorrt")
_HARMLESS = ("has Int64 binding", "binding for tensor")
"""Of the parser's warnings those that every graph with int64 inputs gets."""


@dataclass(frozen=True)
class Profile:
    """The shapes that an engine takes: rows 1..batch, tokens 1..chunk a step. best: what it is tuned for, (rows, tokens)."""

    batch: int
    chunk: int
    best: tuple[int, int] = (1, 1)


def build_plan(package: Package, graph: Path, plan: Path, sm: int, profiles: Sequence[Profile]) -> None:
    """Writes PLAN for GPUs of compute capability `sm`; what the build warns of is logged.

    Weights are mapped from the graph's external data and streamed into the plan. Raises LoweringFailed with what the parser or
    the builder says, BackendUnavailable where the package needs a GPU that is not here, OutputError for a full disk.
    """
    trt = package.load()
    log = _messages(trt)
    try:
        builder = trt.Builder(log)
    except (TypeError, RuntimeError) as error:  # pybind's word for a null pointer
        raise BackendUnavailable(
            f"{package.target} cannot build here ({log.why() or error}): it needs an NVIDIA driver"
        ) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        problems = [parser.get_error(index) for index in range(parser.num_errors)]
        told = "; ".join(f"{problem.node_name() or problem.node_operator()}: {_line(problem.desc())}" for problem in problems[:3])
        raise LoweringFailed(f"{package.target} {trt.__version__} cannot parse the graph: {told or log.why()}")
    config = builder.create_builder_config()
    _aim(trt, package, config, sm)
    for profile in profiles:
        config.add_optimization_profile(_shapes(builder, network, profile))
    timings = state_dir() / "timing" / f"{package.target}-{trt.__version__}-sm{sm}.cache"
    _take_timings(config, timings)
    with _writer(trt, plan) as writer:
        built = builder.build_serialized_network_to_stream(network, config, writer)
    if writer.problem is not None:
        raise OutputError(f"{plan} cannot be written ({writer.problem}): free space there, or choose another --output")
    if not built:
        raise LoweringFailed(f"{package.target} {trt.__version__} cannot build for SM {sm}: {log.why()}")
    _keep_timings(config, timings)
    for warning in log.warnings:
        _log.info("SM %d: %s", sm, warning)


def _take_timings(config: Any, file: Path) -> None:
    """Of builds before this one, where there are any."""
    try:
        known = file.read_bytes()
    except OSError:
        known = b""
    config.set_timing_cache(config.create_timing_cache(known), False)  # False: not those of another GPU


def _keep_timings(config: Any, file: Path) -> None:
    """A disk that is full or read-only costs that time again, and is said."""
    temporary = file.with_suffix(".writing")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
        temporary.replace(file)
    except OSError as error:
        _log.warning("%s cannot be written (%s): kernels are timed again at every build; set ALIZE_STATE_DIR", file, error)


def _aim(trt: Any, package: Package, config: Any, sm: int) -> None:
    """Cross-compiling names its SM; else the GPU in the machine is compiled for, which a build has found to be of that SM."""
    if package.cross_compiles:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), 0)


def _shapes(builder: Any, network: Any, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        least, best, most = (
            [_size(place, size, *sizes) for place, size in enumerate(tensor.shape)]
            for sizes in ((1, 1), profile.best, (profile.batch, profile.chunk))
        )
        made.set_shape(tensor.name, least, best, most)
    return made


def _size(place: int, size: int, rows: int, tokens: int) -> int:
    """Of an axis that is free (-1) in the graph: the first counts rows, any other tokens."""
    return size if size != -1 else tokens if place else rows


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def _messages(trt: Any) -> Any:
    """A logger that keeps warnings and errors instead of printing them."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.warnings: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(_line(message))
            elif severity == trt.ILogger.Severity.WARNING and not any(part in message for part in _HARMLESS):
                self.warnings.append(_line(message))

        def why(self) -> str:
            """The first error that is not about the driver, which a build does not need."""
            told = [text for text in self.errors if "catchCudaError" not in text]
            return (told or self.errors or self.warnings or ["it does not say why"])[0]

    return Log()


def _writer(trt: Any, path: Path) -> Any:
    """The file as TensorRT's stream; what goes wrong with it is kept, since it cannot be raised through the builder."""

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.problem: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return int(self.file.write(data))
            except OSError as error:
                self.problem = error
                return 0

        def __enter__(self) -> "Writer":
            self.file = path.open("wb")
            return self

        def __exit__(self, *_: object) -> None:
            try:
                self.file.close()
            except OSError as error:
                self.problem = self.problem or error

    return Writer()
