"""How long the stages of a build take, from sizes and from what this machine does now (`alize.speeds`).

A stage is a sum of its work, each part divided by the speed of the kind of work that it is: products by their floating point
operations, matrices unpacked or compared by the bytes of new memory that they fill, decoding by the bytes it reads, graphs by
steps of the interpreter. What was measured is how many of those there are in a part, see docs/memory.md;
`benchmarks/build_memory.py --check` compares what comes of it with what builds take.
"""

from dataclasses import dataclass

from alize.costs import UNPACKED, Model, output_bytes
from alize.optimize.quantisation import Quantisation
from alize.speeds import Speed
from alize.validate.cases import Case, Plan
from alize.validate.references import MAX_KEPT

__all__ = ["stage_seconds"]

_NOMINAL = 2.2e7
"""Steps a second of the loop on the machine that `_python` was measured on."""

_FIRST_READ = 1e9
"""Bytes a second of the checkpoint's first reading, from the disk."""

_ENGINE = 30
"""What building a plan takes for each of its weights' bytes: as much as copying so many (benchmarks/engine_build.py)."""

_OPENED = {("openvino", False): (0.3, 0.028), ("openvino", True): (0.3, 0.035)}
_OPENED_PAGED = {("openvino", False): (0.3, 0.04), ("openvino", True): (0.3, 0.06)}
_OPENED_ELSEWHERE = 0.3, 0.04
"""Seconds of the interpreter's kind that an engine takes to open a graph, whatever it holds and for each dense layer; by
target and whether those are integers. OpenVINO's paged form is made of the stateful one at each opening."""

_UNPACKED_BYTES = {0: 4.0, 8: 7.5, 4: 10.0}
"""Of memory that the reference fills for each weight, by the bits it is stored in: float32, and what it goes through."""

_COMPARED_BYTES = {8: 9.0, 4: 16.0}
"""Of memory filled for each weight while the artifact's integers are compared with those that were made."""

_MEASURED_BYTES = 115.0
"""Of memory filled for each logit while two sets are compared: some 15 temporaries in float64 (`alize.validate.measure`)."""

_UTILISED = 0.5
"""Of the speed of large products, what an engine reaches over a prompt of a few hundred tokens, attention and all."""


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
    def weights(self) -> int:
        """All that is multiplied with, every expert included."""
        return self.model.info.layers * self.model.layer + self.model.head

    @property
    def parts(self) -> float:
        """Of a graph, in dense layers: six experts and what chooses their tokens are as many nodes as another layer."""
        info = self.model.info
        return info.layers * (1 + info.experts / 6)

    def python(self, fixed: float, layer: float = 0.0, *, layers: float | None = None) -> float:
        """Work of the interpreter, of graphs and of many small things: seconds where `_NOMINAL` holds."""
        layers = self.model.info.layers if layers is None else layers
        return (fixed + layer * layers) * _NOMINAL / self.speed.interpreted

    def copied(self, sizes: float) -> float:
        return sizes / self.speed.copied

    def filled(self, sizes: float) -> float:
        return sizes / self.speed.filled

    def kept(self) -> float:
        """Writing the artifact's weights once."""
        return self.model.stored_bytes / self.speed.written

    def opened(self, *, paged: bool = False) -> float:
        """The engine opens the artifact and packs its weights for the first inference: integers as they are, floats unpacked."""
        known = (_OPENED_PAGED if paged else _OPENED).get((self.model.target, self.bits > 0), _OPENED_ELSEWHERE)
        unpacked = 4 * UNPACKED[self.model.target].get(self.model.weights, 1.0) * self.weights
        size = 2 * self.model.stored_bytes if self.bits else unpacked + 4 * self.weights
        return self.python(*known, layers=self.parts) + self.filled(size)

    def products(self, tokens: float) -> float:
        return 2 * self.model.active * tokens / self.speed.multiplied

    def measured(self, positions: float) -> float:
        """Two sets of logits are compared."""
        return self.filled(_MEASURED_BYTES * positions * self.model.info.vocab_size)

    def reference(self, tokens: int, *, stored: bool = True, times: int = 1) -> float:
        """One run of the reference, of so many sequences. stored: over the artifact's weights, which may be integers; else the
        checkpoint's."""
        unpacked = self.filled(_UNPACKED_BYTES[self.bits if stored else 0] * self.weights)
        logits = self.filled(3 * 4 * times * min(tokens, MAX_KEPT) * self.model.info.vocab_size)
        return self.python(0.05, 0.004) + times * self.products(tokens) + unpacked + logits + self.merged()

    def merged(self) -> float:
        return self.model.merging.seconds(multiplied=self.speed.multiplied, copied=self.speed.copied)

    def step(self, *, exact: bool) -> float:
        """One token of the artifact."""
        size = (self.bits or 32) / 8 * self.model.active
        slow = self.model.active / self.speed.unpacked if exact else 0.0
        return self.python(0.001, 0.0003, layers=self.parts) + size / self.speed.streamed + slow

    def case(self, case: Case, *, exact: bool) -> float:
        """One case in one configuration, and its figures."""
        rows = len(case.first)
        steps = rows + len(case.steps)  # unequal prompts are read one by one, or padded
        tokens = rows * (max(case.first) + sum(case.steps))
        return (
            self.products(tokens) / _UTILISED
            + steps * self.step(exact=exact)
            + self.measured(sum(min(size, MAX_KEPT) for size in case.rows))
        )


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
        seconds[f"round to {work.kind}"] = model.parameters / speed.rounded + work.kept() + work.merged()
    lowered = work.copied(4 * model.read_bytes + 4 * model.stored_bytes) + work.kept()
    if work.bits:
        lowered = work.kept() + (
            0.0 if model.target == "openvino" else work.copied((40 if work.bits == 4 else 8) * model.parameters)
        )
    elif model.target == "openvino":
        lowered += work.kept() + work.filled(2 * model.stored_bytes)  # the scratch file, whose pages are new ones
    lowered += plans * (work.python(3.0) + work.copied(_ENGINE * model.stored_bytes))
    return seconds | {
        "export to ONNX": work.python(1.5, 0.19),
        f"lower to {model.target}": work.python(0.3, 0.015) + lowered,
        "inspect the compiled graph": _inspecting(work),
        "companions": work.python((2.2 if model.target == "openvino" else 0.4) if work.tokenizer else 0.1),
        "report": work.python(0.5),
        "seal": output_bytes(model, plans) / speed.hashed + work.kept(),
    }


def _inspecting(work: _Work) -> float:
    """OpenVINO compiles both forms, and looks for its products with integers once more."""
    if work.model.target != "openvino":
        return work.python(0.2, 0.01) + work.opened()
    return work.python(0.3) + work.opened() * (2 if work.bits else 1) + work.opened(paged=True)


def _validating(work: _Work, *, exact: bool) -> dict[str, float]:
    model, plan = work.model, work.plan
    compared = _COMPARED_BYTES[work.bits] * model.parameters if work.bits else 4 * model.stored_bytes
    once, floor = work.reference(plan.length), work.measured(min(plan.length, MAX_KEPT))
    seconds = {
        "compare weights": work.python(0.15) + work.filled(compared),
        "reference": work.python(0.05) + once,
        "reference, summed otherwise": once + 0.2 * work.products(plan.length) + floor,
    }
    if plan.bf16_floor:
        seconds["reference in bfloat16"] = once + floor
    if not exact:
        seconds["reference, original weights"] = work.reference(plan.length, stored=False) + floor
    seconds["artifact"] = work.opened() + sum(work.case(case, exact=True) for case in plan.cases)
    paged = model.target == "openvino"
    if work.bits or paged:  # as `load` runs it, which is not the engine's exact mode
        seconds["artifact"] += work.opened(paged=paged) + sum(work.case(case, exact=False) for case in plan.cases)
    if model.info.experts:  # four ways of turning them, of the golden prompts' tokens
        seconds["turn the router's near-ties round"] = work.reference(min(640, plan.length), times=4) + 4 * floor
    if plan.continuation:  # the artifact writes, and the reference reads that
        tokens = min(64, plan.length // 2)
        writes = work.products(tokens) / _UTILISED + plan.continuation * work.step(exact=False)
        seconds["greedy continuation"] = work.opened(paged=paged) + writes
        read = work.reference(tokens + plan.continuation) + work.measured(plan.continuation)
        seconds["reference, what was continued"] = read
    return seconds
