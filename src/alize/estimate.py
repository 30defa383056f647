"""What a build will need, from config.json and the checkpoint's headers alone: memory, disk and time; and whether that is here.

Anonymous memory of a build has two parts. Building itself streams: its peak is one layer in float32 and what is computed with
it, however many layers there are. The artifact's own run holds the weights as the engine unpacks them: where that does not
fit, it is done in slices of layers.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alize.artifact.manifest import ModelInfo
from alize.calibration_costs import CALIBRATE, Calibrating
from alize.costs import OTHER_FILES, PROCESS, Model, build_memory, output_bytes, run_memory, scratch_bytes
from alize.durations import stage_seconds
from alize.errors import BuildError
from alize.memory import available_bytes, existing, free_bytes
from alize.mixing_costs import WEIGH, Weighing
from alize.models.checkpoint import Checkpoint
from alize.models.registry import single_weights
from alize.optimize.openvino_slices import Slices
from alize.optimize.quantisation import MIXED
from alize.progress import byte_count
from alize.record import builds
from alize.speeds import Speed
from alize.validate.cases import Plan
from alize.validate.references import stored_exactly
from alize.validate.slices import even_slices, spelt

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes and seconds.

    build_memory: anonymous, at the peak of everything but the artifact's own run.   run_memory: of that run, in `slices` where
    it has to be cut (None: all layers at once).   whole_run_memory: of it uncut.   output: of the sealed folder.   disk: with
    scratch files, at their peak.   stages: seconds of each, by its name, those that build and those that validate being summed
    up in build_seconds and validate_seconds.   memory_limit: what may be used (None: unknown).   problem: why it cannot fit, and
    what would.
    """

    build_memory: int
    run_memory: int
    whole_run_memory: int
    slices: Slices | None
    output: int
    disk: int
    build_seconds: float
    validate_seconds: float
    stages: dict[str, float]
    memory_limit: int | None
    free_disk: int
    problem: str | None

    def line(self) -> str:
        """For the start of a build."""
        memory, disk, time = (text for _, text in self._rows())
        sliced = "" if self.slices is None else f" in {len(self.slices)} slices"
        return f"estimate: memory {memory}{sliced}, disk {disk}, time {time}"

    def lines(self) -> list[str]:
        """For `--dry-run`."""
        rows = self._rows()
        if self.slices is not None:
            rows.insert(1, ("slices", f"{spelt(self.slices)}; all at once would take {byte_count(self.whole_run_memory)}"))
        rows.append(("fits", "yes" if self.problem is None else f"no: {self.problem}"))
        return [f"{name:8}{text}" for name, text in rows]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rounded = {name: round(getattr(self, name), 1) for name in ("build_seconds", "validate_seconds")}
        return asdict(self) | rounded | {"stages": {name: round(seconds, 1) for name, seconds in self.stages.items()}}

    def check(self) -> None:
        """Raises BuildError where the build cannot fit."""
        if self.problem is not None:
            raise BuildError(self.problem)

    def _rows(self) -> list[tuple[str, str]]:
        limit = "" if self.memory_limit is None else f" ({byte_count(self.memory_limit)} may be used)"
        return [
            ("memory", f"{byte_count(self.build_memory)} to build and {byte_count(self.run_memory)} to run the artifact{limit}"),
            (
                "disk",
                f"{byte_count(self.output)}, {byte_count(self.disk)} with scratch files ({byte_count(self.free_disk)} free)",
            ),
            ("time", f"{_minutes(self.build_seconds)} to build, {_minutes(self.validate_seconds)} to validate"),
        ]


def estimate(
    checkpoint: Checkpoint,
    info: ModelInfo,
    plan: Plan,
    *,
    target: str,
    weights: str,
    output: Path,
    choices: Sequence[str] = (),
    calibrated: bool = False,
    plans: int = 0,
    max_memory: int | None = None,
) -> Estimate:
    """What building `checkpoint` into the folder `output` needs. Nothing is read but its headers.

    plan: the validation's cases. weights: the precision that is stored; choices: those that the target takes, to say what
    would fit. calibrated: whether the weights are rounded for a text. plans: of TensorRT, one for each SM. max_memory: bytes of
    anonymous memory that may be used, however many are available.
    """
    limits = [limit for limit in (available_bytes(), max_memory) if limit is not None]
    limit = min(limits, default=None)
    models = {name: Model.of(checkpoint, info, target=target, weights=name) for name in dict.fromkeys((weights, *choices))}
    model = models[weights]
    slices = None if plans else _slices(model, plan, limit)
    files = OTHER_FILES + sum(path.stat().st_size for path in checkpoint.companions)
    tokenizer = any(path.name == "tokenizer.json" for path in checkpoint.companions)
    speed, needed = Speed.here(existing(output.absolute().parent), model), build_memory(model, plan)
    stages = stage_seconds(model, plan, speed, tokenizer=tokenizer, exact=stored_exactly(checkpoint, weights), plans=plans)
    shapes = {name: weight.shape for name, weight in single_weights(checkpoint).items()}
    if calibrated:
        calibrating = Calibrating.of(shapes, info)
        needed = max(needed, PROCESS + calibrating.memory)
        stages[CALIBRATE] = calibrating.operations / speed.multiplied
    if weights.startswith(MIXED):
        weighing = Weighing.of(shapes, info, model.inner)
        needed = max(needed, PROCESS + weighing.memory)
        stages[WEIGH] = weighing.operations / speed.multiplied + weighing.rounded / speed.rounded
    building = sum(seconds for name, seconds in stages.items() if builds(name))
    free = free_bytes(output.absolute().parent)
    return Estimate(
        build_memory=needed,
        run_memory=run_memory(model, plan, max(stop - first for first, stop in slices or ((0, info.layers),))),
        whole_run_memory=run_memory(model, plan, info.layers),
        slices=slices,
        output=output_bytes(model, plans) + files,
        disk=_disk(model, files, plans),
        build_seconds=building,
        validate_seconds=sum(stages.values()) - building,
        stages=stages,
        memory_limit=limit,
        free_disk=free,
        problem=_memory_problem(models, plan, weights, needed, limit, plans)
        or _disk_problem(models, weights, files, free, output, plans),
    )


def _disk(model: Model, files: int, plans: int) -> int:
    return output_bytes(model, plans) + scratch_bytes(model, plans) + files


def _slices(model: Model, plan: Plan, limit: int | None) -> Slices | None:
    """None where all layers fit at once; else the fewest that fit, of one layer at worst."""
    layers = model.info.layers
    if limit is None:
        return None
    most = max((count for count in range(1, layers + 1) if run_memory(model, plan, count) <= limit), default=1)
    return None if most == layers else even_slices(layers, most)


def _least(model: Model, plan: Plan) -> int:
    """Of the artifact's own run, cut as far as it can be."""
    return run_memory(model, plan, 1)


def _memory_problem(
    models: dict[str, Model], plan: Plan, weights: str, building: int, limit: int | None, plans: int
) -> str | None:
    """plans: of TensorRT, whose graphs are proven whole: they are not cut into slices."""
    if limit is None:
        return None
    needed = {name: run_memory(one, plan, one.info.layers) if plans else _least(one, plan) for name, one in models.items()}
    running = needed[weights]
    if building > limit:
        return (
            f"the build needs {byte_count(building)} of memory for one layer in float32 and what is computed with it, "
            f"{byte_count(limit)} may be used: free memory, or build on a larger machine"
        )
    if running <= limit:
        return None
    fitting = [f"--weights {name} ({byte_count(size)})" for name, size in needed.items() if size <= limit]
    return (
        f"validating needs {byte_count(running)} of memory to run the artifact in {weights}, {byte_count(limit)} may be used: "
        f"{', '.join([*fitting, 'build on a larger machine'])}"
    )


def _disk_problem(models: dict[str, Model], weights: str, files: int, free: int, output: Path, plans: int) -> str | None:
    needed = _disk(models[weights], files, plans)
    if needed <= free:
        return None
    sizes = {name: _disk(one, files, plans) for name, one in models.items()}
    fitting = [f"--weights {name} ({byte_count(size)})" for name, size in sizes.items() if size <= free]
    fitting += ["fewer SMs at a time"] if plans > 1 else []
    return (
        f"the build needs {byte_count(needed)} of disk in {output.absolute().parent}, {byte_count(free)} are free: "
        f"{', '.join([*fitting, 'choose an --output on another disk'])}"
    )


def _minutes(duration: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if duration >= 2 * size:
            return f"{duration / size:.1f} {unit}" if duration < 10 * size else f"{duration / size:.0f} {unit}"
    return f"{duration:.0f} s"
