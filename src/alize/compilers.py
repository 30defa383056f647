"""The targets that `alize build` knows: one entry each, named modules imported when they are asked for."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any, cast

from alize.artifact.manifest import Configuration, ModelInfo
from alize.compiler_modules import Companion, Lowering, Probe, Slicer
from alize.engine_options import NO_ENGINE_OPTIONS, EngineOptions, options_of_engine
from alize.errors import BackendUnavailable, UsageError
from alize.nvidia import PACKAGES, Package
from alize.optimize.quantisation import Quantisation
from alize.runtimes.kernels import missing
from alize.runtimes.registry import BACKENDS, Backend
from alize.runtimes.session import DEFAULT_CHUNK

__all__ = [
    "COMPILERS",
    "PROOF_BACKENDS",
    "WEIGHTS",
    "Compiler",
    "DevicePlan",
    "compiler_for",
    "lowering_options",
    "normal_weights",
]

WEIGHTS = ("fp32", "fp16", "bf16", "int8", "int4", "mixed")
_ALIASES = MappingProxyType({"f32": "fp32", "f16": "fp16"})


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """What a target does for one kind of device.

    proof: the device that the artifact is validated on: itself, or one that runs the same graph where the build machine needs
    not have it ("graph-validated").   configurations: what `load` may run, the first by default.   integers: the same for weights
    that are integers, where the engine may round activations to 8 bits for a product; its exact mode is there too.
    weights: the precisions that it takes, the first where the checkpoint's own is not among them.   experts: the form of a
    mixture of experts that is taken unless another is asked for.   backend: of PROOF_BACKENDS, what plays the target on `proof`
    where that is not the target's own.   variant: what the names of the modules end with that lower for this device alone.
    """

    proof: str
    configurations: tuple[Configuration, ...]
    integers: tuple[Configuration, ...]
    weights: tuple[str, ...]
    experts: str
    backend: str = ""
    variant: str = ""

    def configurations_for(self, weights: str, shapes: Mapping[str, Sequence[int]]) -> tuple[Configuration, ...]:
        """What `load` may run of an artifact that stores `weights`, matrices [...,out,in] of these shapes by name, and what this
        machine can run: each has to be validated.

        No more activations share a scale than weights do: OpenVINO's kernels ask for that.
        """
        chosen = Quantisation.parse(weights)
        if chosen is None:
            return self.configurations
        group = {"dynamic_quantization_group": chosen.smallest_group(shapes)}
        return tuple(
            replace(one, options={name: group.get(name, value) for name, value in one.options.items()})
            for one in self.integers
            if missing(one.options) is None
        )


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """One target. accuracy: options of the engine's exact mode, what compile fidelity is measured in.

    devices: by name.   refused: devices that users would expect, and why not.   packages: whose versions go into the manifest.
    experts: the forms that it lowers a mixture of experts to.   kind: whose probe and companions it shares.   temporary: files
    of the lowering that validation reads and the artifact does not keep.   variant: that of the device, see `on`.
    """

    target: str
    accuracy: Mapping[str, str | int | bool]
    devices: Mapping[str, DevicePlan]
    refused: Mapping[str, str]
    packages: tuple[str, ...]
    experts: tuple[str, ...]
    kind: str = ""
    temporary: tuple[str, ...] = ()
    variant: str = ""

    def on(self, device: str) -> "Compiler":
        """The same for one of its devices, which may have a lowering and companions of its own. Raises UsageError."""
        return replace(self, variant=self.plan(device).variant)

    def plan(self, device: str) -> DevicePlan:
        """Raises UsageError naming the devices that it compiles for."""
        if device not in self.devices:
            why = f" ({self.refused[device]})" if device in self.refused else ""
            raise UsageError(
                f"--device {device}: target {self.target} is not compiled for it{why}: use {' or '.join(self.devices)}"
            )
        return self.devices[device]

    @property
    def lowering(self) -> Lowering:
        return cast(Lowering, self._module(f"alize.optimize.lower_{self.target.replace('-', '_')}{self.variant}"))

    @property
    def probe(self) -> Probe:
        return cast(Probe, self._module(f"alize.validate.probe_{self.kind or self.target}"))

    @property
    def slicer(self) -> Slicer:
        return cast(Slicer, self._module(f"alize.validate.slices_{self.kind or self.target}"))

    @property
    def companion(self) -> Companion:
        return cast(Companion, self._module(f"alize.optimize.companions_{self.kind or self.target}{self.variant}"))

    def versions(self) -> dict[str, str]:
        """Package -> version, of what decides the artifact's bytes. Raises BackendUnavailable."""
        try:
            return {package: _version(package) for package in self.packages}
        except PackageNotFoundError as error:
            raise BackendUnavailable(
                f"target {self.target} needs {error.name}: pip install 'alize[build,{self.target}]'"
            ) from error

    def _module(self, name: str) -> Any:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise BackendUnavailable(
                f"target {self.target} needs {error.name}: pip install 'alize[build,{self.target}]'"
            ) from error


# float32 arithmetic, also where the processor has bfloat16 units that OpenVINO would use by itself. Paged attention forgets for
# nothing, so that a window's cache needs no more slack than a chunk.
_OPENVINO: dict[str, str | int | bool] = {
    "attention": "paged",
    "inference_precision": "f32",
    "kv_cache_precision": "f16",
    "slack": DEFAULT_CHUNK,
}
_OPENVINO_INTEGERS = _OPENVINO | {"dynamic_quantization_group": 32}
_OPENVINO_GPU: dict[str, str | int | bool] = {"inference_precision": "f16", "kv_cache_precision": "f16"}
_EXACT = Configuration("exact", {"accuracy": True})

COMPILERS: dict[str, Compiler] = {
    "openvino": Compiler(
        target="openvino",
        accuracy={"accuracy": True},
        devices={
            "cpu": DevicePlan(
                proof="cpu",
                configurations=(Configuration("default", _OPENVINO),),
                # Activations rounded to 8 bits, as many sharing a scale as weights do.
                integers=(
                    Configuration("default", {**_OPENVINO_INTEGERS, "kernels": "alize"}),
                    Configuration("engine", _OPENVINO_INTEGERS),
                    _EXACT,
                ),
                weights=WEIGHTS,
                experts="apart",
            ),
            "gpu": DevicePlan(
                proof="cpu",
                configurations=(Configuration("default", _OPENVINO_GPU),),
                integers=(Configuration("default", _OPENVINO_GPU), _EXACT),
                weights=("fp16", "int8", "int4", "mixed"),
                experts="tiled",
            ),
        },
        refused={"npu": "its plugin takes static shapes and symmetric int4 weights only, which alize does not write"},
        packages=("torch", "onnx-ir", "openvino", "openvino-tokenizers", "tokenizers", "transformers"),
        experts=("apart", "tiled"),
    ),
    "onnxruntime": Compiler(
        target="onnxruntime",
        accuracy={},
        devices={
            "cpu": DevicePlan(
                proof="cpu",
                configurations=(Configuration("default", {}),),
                # The engine's float32 products with integer weights unpack all of them for every token: 5 to 10 times slower.
                integers=(Configuration("default", {"accuracy_level": 4}), Configuration("exact", {})),
                weights=WEIGHTS,
                experts="apart",
            ),
            "cuda": DevicePlan(
                proof="cpu",
                backend="onnxruntime-widened",
                configurations=(Configuration("default", {}),),
                integers=(Configuration("default", {}),),
                weights=("fp16", "int8", "int4"),
                experts="apart",
                variant="_cuda",
            ),
        },
        refused={"gpu": "its devices are cpu and cuda"},
        packages=("torch", "onnx-ir", "onnxruntime"),
        experts=("apart",),
    ),
}


def _tensorrt(package: Package) -> Compiler:
    """TensorRT by either package. What it computes in is settled by the graph, so there is one configuration."""
    plan = DevicePlan(
        proof="cpu",
        backend="graph",
        configurations=(Configuration("default", {}),),
        integers=(Configuration("default", {}),),
        weights=("fp16", "bf16", "int8", "int4"),
        experts="gathered",
    )
    return Compiler(
        target=package.target,
        accuracy={"accuracy": True},
        devices={"gpu": plan},
        refused={"cpu": "its engines are for NVIDIA GPUs"},
        packages=("torch", "onnx-ir", "onnxruntime", *package.distributions),
        experts=("gathered",),
        kind="tensorrt",
        temporary=("graph.onnx.data",),
    )


COMPILERS |= {target: _tensorrt(package) for target, package in PACKAGES.items()}

PROOF_BACKENDS = BACKENDS | {
    backend.name: backend
    for backend in (
        Backend(name="graph", extra="build", module="alize.validate.graph_proof"),
        Backend(name="onnxruntime-widened", extra="build", module="alize.validate.widened_proof"),
    )
}


def _version(package: str) -> str:
    """Of an installed package; onnxruntime-gpu is onnxruntime with another provider, and takes its place."""
    try:
        return version(package)
    except PackageNotFoundError:
        if package != "onnxruntime":
            raise
        try:
            return version("onnxruntime-gpu")
        except PackageNotFoundError:
            raise PackageNotFoundError(package) from None


def compiler_for(target: str) -> Compiler:
    """Raises UsageError naming the targets that exist."""
    if target not in COMPILERS:
        raise UsageError(f"target {target!r} can't be built yet: choose {' or '.join(COMPILERS)}")
    return COMPILERS[target]


def lowering_options(
    compiler: Compiler,
    info: ModelInfo,
    *,
    device: str,
    experts: str | None = None,
    engine: EngineOptions = NO_ENGINE_OPTIONS,
    weights: str = "",
) -> dict[str, str]:
    """The choices of a lowering that have a name on the command line: `experts` for a mixture of experts, and what an engine of
    static shapes is compiled for.

    Raises UsageError for a form that the target has not, for a model without experts, and for what `engine` can't be.
    """
    options = options_of_engine(compiler.target, info, engine, weights)
    if not info.experts:
        if experts is not None:
            raise UsageError(f"--experts {experts}: the model has no experts; leave it out")
        return options
    form = compiler.plan(device).experts if experts is None else experts
    if form not in compiler.experts:
        raise UsageError(f"--experts {form} is not a form of target {compiler.target}: use {' or '.join(compiler.experts)}")
    return {"experts": form} | options


def weights_for(plan: DevicePlan, device: str, *, asked: str | None, stored: str) -> str:
    """The precision that is asked for, else the checkpoint's own, else the first that the device takes. Raises UsageError."""
    name = asked or (stored if stored in plan.weights else plan.weights[0])
    if name.split("-")[0] not in plan.weights:
        raise UsageError(f"--weights {name} does not run on device {device}: use {' or '.join(plan.weights)}")
    return name


def normal_weights(weights: str, *, group_size: str | None = None, asymmetric: bool = False, bits: float | None = None) -> str:
    """The one name of a precision: fp32, fp16, bf16, or of integers with their groups (int4-g128, int8-channel-asym).

    group_size: 128, 64, 32 or channel, by default channel for int8, else 128. bits: of a weight of a mix (mixed-b5-g64), by
    default 5. Raises UsageError.
    """
    name = _ALIASES.get(weights, weights)
    chosen = Quantisation.parse(name)
    if chosen is None:
        if name not in WEIGHTS:
            raise UsageError(f"--weights {weights} is unknown: choose one of {', '.join(WEIGHTS)}")
        if group_size is not None or asymmetric:
            option = "--asymmetric" if group_size is None else f"--group-size {group_size}"
            raise UsageError(f"{option} is for --weights int8, int4 and mixed, not for {name}")
    if bits is not None:
        if chosen is None or not chosen.budget:
            raise UsageError(f"--bits {bits:g} is for --weights mixed, not for {name}")
        chosen = replace(chosen, budget=bits)
    if chosen is None:
        return name
    chosen = chosen if group_size is None else chosen.grouped(group_size)
    return str(replace(chosen, symmetric=False) if asymmetric else chosen)
