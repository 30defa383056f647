"""How long the stages of a build take, from sizes and from what this machine does now in a second or two.

A stage is a few sums of work, each divided by the speed of the kind of work that it is most like. The factors were fitted to
builds of the demo model and of Mistral-7B's shape cut short, see docs/memory.md; `benchmarks/build_memory.py --check` compares
what comes of them with what builds take.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alize.costs import Model, output_bytes
from alize.optimize.quantisation import Quantisation
from alize.validate.cases import Plan

__all__ = ["Speed", "stage_seconds"]


@dataclass(frozen=True)
class Speed:
    """Units a second, measured now: other work on the machine slows a build as well.

    hashed: bytes by one thread.   copied: bytes from place to place in memory.   multiplied: floating point operations of float32
    matrix products.   streamed: bytes of a matrix that is multiplied with one vector.   interpreted: steps of a Python loop.
    rounded: weights to the model's integers.   written: bytes to the output's disk.
    """

    hashed: float
    copied: float
    multiplied: float
    streamed: float
    interpreted: float
    rounded: float
    written: float

    @staticmethod
    def here(folder: Path, model: Model) -> "Speed":
        """Measured now, or less than a minute ago by this process. folder: on the disk that is written to; where nothing can be
        written, the disk is taken to be as fast as memory."""
        key = folder.stat().st_dev, model.weights, model.info.hidden_size
        if key not in _MEASURED or time.monotonic() - _MEASURED[key][0] > _MINUTE:
            _MEASURED[key] = (time.monotonic(), Speed._measured(folder, model))
        return _MEASURED[key][1]

    @staticmethod
    def _measured(folder: Path, model: Model) -> "Speed":
        import torch

        data = bytes(1 << 22)
        source, place = torch.ones(1 << 22), torch.empty(1 << 22)
        left, right = torch.ones(256, 2048), torch.ones(2048, 2048)
        copied = _rate(4 << 22, lambda: place.copy_(source))
        return Speed(
            hashed=_rate(len(data), lambda: hashlib.sha256(data).digest()),
            copied=copied,
            multiplied=_rate(2 * 256 * 2048 * 2048, lambda: left @ right),
            streamed=_rate(4 << 22, lambda: right @ left[0]),
            interpreted=_rate(200_000, _loop),
            rounded=_rounded(model),
            written=_written(folder) or copied,
        )


_MINUTE = 60.0
_MEASURED: dict[tuple[int, str, int], tuple[float, Speed]] = {}


def _rounded(model: Model) -> float:
    """Weights a second of rounding some rows as long as the model's; 1 where it is stored in floats."""
    import torch

    from alize.optimize.round_to_integers import quantised

    chosen = Quantisation.parse(model.weights)
    form = None if chosen is None else chosen.form("calibration", (1, model.info.hidden_size))
    if form is None:
        return 1.0
    rows = torch.linspace(-1, 1, (1 << 19) // model.info.hidden_size * model.info.hidden_size).reshape(-1, model.info.hidden_size)
    return _rate(rows.numel(), lambda: quantised("calibration", rows, form))


def _loop() -> int:
    total = 0
    for number in range(200_000):
        total += number * number
    return total


def _written(folder: Path, size: int = 1 << 24) -> float | None:
    """Bytes a second that reach the disk."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            block = os.urandom(size)

            def write() -> None:
                file.seek(0)
                file.write(block)
                file.flush()
                os.fsync(file.fileno())

            return _rate(size, write)
    except OSError:
        return None


def _rate(amount: float, work: Callable[[], object], least: float = 0.2) -> float:
    """Over `least` seconds, not for the best moment of them: a build meets the machine's other work as well."""
    rounds, spent, began = 0, 0.0, time.perf_counter()
    while spent < least:
        work()
        rounds, spent = rounds + 1, time.perf_counter() - began
    return rounds * amount / spent


_NOMINAL = 2.2e7
"""Steps a second of the loop on the machine that `_python` was measured on."""

_FIRST_READ = 1e9
"""Bytes a second of the checkpoint's first reading, from the disk."""

_ENGINE = 30
"""What building a plan takes for each of its weights' bytes: as much as copying so many (benchmarks/engine_build.py)."""

_SLOW_STEPS = {("onnxruntime", 4): 0.8e-9, ("onnxruntime", 8): 7e-9}
"""Seconds a weight and step: ONNX Runtime's exact products with integers unpack all of them for every token."""


@dataclass(frozen=True)
class _Work:
    """What the sums below are made of."""

    model: Model
    plan: Plan
    speed: Speed
    tokenizer: bool

    @property
    def bits(self) -> int:
        """Of the weights, 0 for floats."""
        chosen = Quantisation.parse(self.model.weights)
        return 0 if chosen is None else chosen.bits

    @property
    def kind(self) -> str:
        """int4, int8 or mixed."""
        chosen = Quantisation.parse(self.model.weights)
        return "" if chosen is None else chosen.kind

    @property
    def floats(self) -> int:
        """Bytes of all that is multiplied with, in float32."""
        return 4 * (self.model.info.layers * self.model.layer + self.model.head)

    def python(self, fixed: float, layer: float = 0.0) -> float:
        """Work of the interpreter, of graphs and of many small things: seconds where `_NOMINAL` holds."""
        return (fixed + layer * self.model.info.layers) * _NOMINAL / self.speed.interpreted

    def copied(self, sizes: float) -> float:
        return sizes / self.speed.copied

    def kept(self) -> float:
        """Writing the artifact's weights once."""
        return self.model.stored_bytes / self.speed.written

    def opened(self) -> float:
        """The engine opens the artifact: integers stay packed, floats are unpacked and packed again."""
        if self.bits:
            return self.python(0.6, 0.06) + self.copied(2 * self.model.stored_bytes)
        return self.python(0.3, 0.03) + self.copied(2 * self.floats)

    def products(self, tokens: int) -> float:
        return 2 * self.model.active * tokens / self.speed.multiplied

    def reference(self, tokens: int, *, stored: bool = True) -> float:
        """One run of the reference. stored: over the artifact's weights, which may be integers; else the checkpoint's."""
        unpacked = 12 * self.floats / 4 * (5 if stored and self.bits else 1)
        return self.python(0.5, 0.05) + self.products(tokens) + self.copied(unpacked) + self.merged()

    def merged(self) -> float:
        return self.model.merging.seconds(multiplied=self.speed.multiplied, copied=self.speed.copied)

    def step(self, *, exact: bool) -> float:
        """One token of the artifact."""
        slow = _SLOW_STEPS.get((self.model.target, self.bits), 0.0) if exact else 0.0
        size = (self.bits or 32) / 8 * self.model.active
        return self.python(0.01, 0.0005) + size / self.speed.streamed + slow * self.model.active


def stage_seconds(model: Model, plan: Plan, speed: Speed, *, tokenizer: bool, exact: bool, plans: int = 0) -> dict[str, float]:
    """Seconds of each stage of a build, by its name. tokenizer: the checkpoint has one.   exact: the artifact keeps its weights
    bit for bit, so that what rounding loses is not measured.   plans: of TensorRT, one for each SM."""
    work = _Work(model, plan, speed, tokenizer)
    return _building(work, plans) | (_validating(work, exact=exact) if plan.cases else {})


def _building(work: _Work, plans: int) -> dict[str, float]:
    model, speed = work.model, work.speed
    read = (model.read_bytes + model.merging.read_bytes) / min(2 * speed.hashed, _FIRST_READ)
    seconds = {"hash the checkpoint": read}
    if work.bits:
        seconds[f"round to {work.kind}"] = 0.9 * model.parameters / speed.rounded + work.kept() + work.merged()
    lowered = work.copied(4 * model.read_bytes + 4 * model.stored_bytes) + work.kept()
    if work.bits:
        lowered = work.kept() + (
            0.0 if model.target == "openvino" else work.copied((40 if work.bits == 4 else 8) * model.parameters)
        )
    elif model.target == "openvino":
        lowered += work.kept()  # the scratch file
    lowered += plans * (work.python(3.0) + work.copied(_ENGINE * model.stored_bytes))
    return seconds | {
        "export to ONNX": work.python(1.0, 0.12),
        f"lower to {model.target}": work.python(0.3, 0.015) + lowered,
        "inspect the compiled graph": work.python(0.7, 0.08 if model.target == "openvino" else 0.01) + work.opened(),
        "companions": work.python((2.0 if model.target == "openvino" else 0.5) if work.tokenizer else 0.1),
        "report": work.python(0.5),
        "seal": output_bytes(model, plans) / speed.hashed + work.kept(),
    }


def _validating(work: _Work, *, exact: bool) -> dict[str, float]:
    model, plan = work.model, work.plan
    once = work.reference(plan.length)
    runs = {"reference": work.python(1.0) + once, "reference, summed otherwise": once}
    if plan.bf16_floor:
        runs["reference in bfloat16"] = once
    if not exact:
        runs["reference, original weights"] = work.reference(plan.length, stored=False)
    compared = (120 if work.bits == 4 else 25) * model.parameters if work.bits else 6 * model.stored_bytes
    tokens, steps = sum(case.tokens for case in plan.cases), sum(1 + len(case.steps) for case in plan.cases)
    differs = work.bits or model.target == "openvino"  # from the engine's exact mode
    artifact = work.opened() + work.products(tokens) + steps * work.step(exact=True)
    if differs:
        artifact += work.opened() + work.products(tokens) + steps * work.step(exact=False)
    seconds = {"compare weights": work.python(1.0) + work.copied(compared), **runs, "artifact": artifact}
    if model.info.experts:  # four ways of turning them, of the golden prompts' tokens
        seconds["turn the router's near-ties round"] = 4 * work.reference(min(640, plan.length))
    if plan.continuation:
        read = min(64, plan.length // 2) + plan.continuation
        seconds["greedy continuation"] = (
            work.opened() + work.products(read) + plan.continuation * work.step(exact=False) + work.reference(read)
        )
    return seconds
