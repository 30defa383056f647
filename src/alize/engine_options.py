"""What an engine of static shapes is compiled for, from the command line to the manifest. TensorRT itself is not imported."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from alize.artifact.manifest import Configuration, ModelInfo
from alize.errors import BackendUnavailable, UsageError
from alize.nvidia import BATCH, CONTEXT, LARGEST_GPU, PACKAGES, Package, cache_bytes, engine_limits, parse_sms
from alize.runtimes.cuda import Cuda

__all__ = ["NO_ENGINE_OPTIONS", "EngineOptions", "check_gpu", "compiled_for", "options_of_engine"]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Of an engine with static shapes. sm: compute capabilities, as 80,89.   capacity: tokens that its caches hold, where a layer
    has no window.   batch: rows of a session at most."""

    sm: str | None = None
    capacity: int | None = None
    batch: int | None = None


NO_ENGINE_OPTIONS = EngineOptions()


def options_of_engine(target: str, info: ModelInfo, engine: EngineOptions, weights: str) -> dict[str, str]:
    """The choices of TensorRT's lowering; of another target none. Raises UsageError for what cannot be built."""
    if target not in PACKAGES:
        given = [name for name, value in vars(engine).items() if value is not None]
        if given:
            raise UsageError(f"--{given[0]} is for --target {' and '.join(PACKAGES)}, not for {target}: leave it out")
        return {}
    sms = parse_sms(PACKAGES[target], engine.sm, weights)
    batch = BATCH if engine.batch is None else engine.batch
    options = {"sm": ",".join(map(str, sms)), "batch": str(batch)}
    if batch < 1:
        raise UsageError(f"--batch {batch} must be at least 1")
    if 0 not in info.windows:
        if engine.capacity is not None:
            raise UsageError(
                f"--capacity {engine.capacity}: every layer has a window, which decides what is cached; leave it out"
            )
        return options
    capacity = min(CONTEXT, info.max_positions) if engine.capacity is None else engine.capacity
    if not 1 <= capacity <= info.max_positions:
        raise UsageError(f"--capacity {capacity} must be at least 1 and at most {info.max_positions}, the model's positions")
    _check_cache(info, capacity, batch)
    return options | {"capacity": str(capacity)}


def check_gpu(package: Package, sms: str) -> None:
    """Where a package compiles for the GPU in the machine, that has to be of the SM that is asked for.

    Raises BackendUnavailable without a GPU, UsageError for another.
    """
    if package.cross_compiles:
        return
    problem = Cuda.problem()
    if problem is not None:
        raise BackendUnavailable(
            f"{package.target} compiles for the GPU in the machine, and there is none to be used ({problem}): build where one "
            "is, or use --target tensorrt-rtx, which needs none"
        )
    here = Cuda().properties().sm
    if str(here) != sms:
        raise UsageError(
            f"--sm {sms}: {package.target} compiles for the GPU in the machine, which is SM {here}: build on one of SM {sms}, or "
            "use --target tensorrt-rtx, which needs none"
        )


def _check_cache(info: ModelInfo, capacity: int, batch: int) -> None:
    """Raises UsageError for caches that no GPU could hold."""
    size = cache_bytes(info.windows, capacity, batch, 2 * info.key_value_heads * info.head_size)
    if size > LARGEST_GPU:
        rows = f" for {batch} rows" if batch > 1 else ""
        raise UsageError(
            f"--capacity {capacity}{rows} takes {size / 1e9:.0f} GB of caches, and no GPU has more than {LARGEST_GPU / 1e9:.0f}: "
            "choose a smaller one, or a smaller --batch"
        )


def compiled_for(
    target: str, info: ModelInfo, options: Mapping[str, str], configurations: tuple[Configuration, ...]
) -> tuple[ModelInfo, tuple[Configuration, ...]]:
    """The model and the configurations as an engine of static shapes has them: no more positions than its caches hold, and
    sessions that cut their work to its chunk. Of other targets both as they are."""
    if target not in PACKAGES:
        return info, configurations
    context = int(options.get("capacity", 0))
    limits = engine_limits(info.windows, context)
    cut: dict[str, str | int | bool] = {"chunk": limits.chunk}
    if limits.window_capacity:
        cut["slack"] = limits.window_capacity - (max(info.windows) - 1)
    return (
        replace(info, max_positions=min(context, info.max_positions) if context else info.max_positions),
        tuple(replace(one, options={**one.options, **cut}) for one in configurations),
    )
