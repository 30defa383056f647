"""Which tokens an artifact is asked about, and in which steps. The cases come from the config, not from taste.

One sequence of N tokens is read by the reference in one pass; every case feeds the artifact prefixes of it, so that one
reference serves them all. N = 2W+3 where that fits the time, W+3 (one crossing of the window's edge) where it doesn't, and less,
which proves no window, where somebody asks for less time than that.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from alize.artifact.manifest import ModelInfo
from alize.models.checkpoint import Checkpoint, Weight
from alize.models.registry import weights_of

__all__ = ["UNWINDOWED_SPAN", "USUAL_SECONDS", "Case", "Plan", "active_parameters", "make_plan", "plan_for"]

USUAL_SECONDS = 300.0
"""For the full plan, where nobody says how long a validation may take."""

_SECONDS_A_MULTIPLICATION = 1 / 30e9
"""What a token costs for each parameter that it is multiplied with: two cores reach some 70 GFLOP/s, half of it is assumed."""

UNWINDOWED_SPAN = 64
"""Stands for W where no layer has a window: the lengths that are tried are then 2*64+3 tokens and less."""

_CHUNK = 17
_LEAST_SPAN = 3  # so that even a window of 1 leaves room for the cases' steps around its edge
_CONTINUATION = 32


@dataclass(frozen=True)
class Case:
    """rows: the prefix that each row of the batch reads.   first: tokens of each row in the first append (the prompt).

    steps: sizes of the appends that follow, the same for every row.   chunk: the largest step of the engine, and the slack of
    its cache: a small one makes a windowed cache shift often.
    """

    name: str
    first: tuple[int, ...]
    steps: tuple[int, ...]
    chunk: int

    @property
    def rows(self) -> tuple[int, ...]:
        return tuple(size + sum(self.steps) for size in self.first)

    @property
    def tokens(self) -> int:
        return sum(self.rows)


@dataclass(frozen=True)
class Plan:
    """length: N, 0 = nothing is run.   edges: positions where a window begins to cut, for the report.

    left_out: what the budget cut.   partial: not even the minimum set is run.
    """

    length: int
    cases: tuple[Case, ...]
    edges: tuple[int, ...]
    continuation: int
    bf16_floor: bool
    left_out: tuple[str, ...]
    partial: bool = False


def plan_for(checkpoint: Checkpoint, info: ModelInfo, budget_seconds: float | None) -> Plan:
    """What a validation of that budget runs, from the checkpoint's headers alone."""
    seconds_a_token = active_parameters(weights_of(checkpoint), info) * _SECONDS_A_MULTIPLICATION
    return make_plan(info, seconds_a_token=seconds_a_token, budget_seconds=budget_seconds)


def make_plan(info: ModelInfo, *, seconds_a_token: float, budget_seconds: float | None) -> Plan:
    """The full plan where it fits, else the minimum set: one edge crossing, one chunked prefill, one unequal batch.

    seconds_a_token: what one pass of one token is expected to cost, reference or artifact. budget_seconds: None allows
    USUAL_SECONDS to the full plan and what it takes to the minimum set; below that set's cost as many tokens are read as fit.
    """
    window = max(info.windows)
    span = max(window or min(UNWINDOWED_SPAN, (info.max_positions - 3) // 2), _LEAST_SPAN)
    edges = (window - 1, window, 2 * window) if window else (span - 1, span, 2 * span)
    continuation = _CONTINUATION if 0 not in info.windows else min(_CONTINUATION, info.max_positions - (span + 1))
    full = _full(span, edges, continuation)
    cost, allowed = _cost(full) * seconds_a_token, USUAL_SECONDS if budget_seconds is None else budget_seconds
    if cost <= allowed:
        return full
    least = _minimum(span, edges, f"{cost:.0f} s expected, {allowed:.0f} s allowed")
    cost = _cost(least) * seconds_a_token
    if budget_seconds is None or cost <= budget_seconds:
        return least
    return _partial(span, seconds_a_token, budget_seconds, f"{cost:.0f} s expected, {budget_seconds:g} s allowed")


def _cost(plan: Plan) -> float:
    """Token passes: two or three of the reference over N and the bf16 floor, and every case in two configurations."""
    return 4 * plan.length + 2 * sum(case.tokens for case in plan.cases) + 3 * plan.continuation


def _full(span: int, edges: tuple[int, ...], continuation: int) -> Plan:
    length = 2 * span + 3
    cases = (
        Case("one append", (length,), (), chunk=length),
        _chunked(length, decode=6),
        Case("decode across the edge", (max(span - 2, 1),), (1,) * 6, chunk=length),
        _unequal(span),
    )
    return Plan(length, cases, edges, continuation, bf16_floor=True, left_out=())


def _minimum(span: int, edges: tuple[int, ...], why: str) -> Plan:
    length = span + 3
    crossing = Case("decode across the edge", (max(span - 2, 1),), (1,) * 5, chunk=length)
    left_out = (
        f"lengths beyond W+3 = {length} ({why})",
        "decode past two windows",
        "greedy continuation",
        "the bfloat16 floor",
    )
    return Plan(length, (crossing, _chunked(length), _unequal(span)), edges[:2], 0, False, left_out)


def _partial(span: int, seconds_a_token: float, budget_seconds: float, why: str) -> Plan:
    """The minimum set's cases on the longest span that fits: half of W, a quarter of it and so on; nothing where none does."""
    while (span := span // 2) >= _LEAST_SPAN:
        plan = _minimum(span, (), why)
        if _cost(plan) * seconds_a_token <= budget_seconds:
            decode, *others = plan.cases
            cases = (replace(decode, name="decode"), *others)
            return replace(
                plan, cases=cases, left_out=(f"all but {plan.length} tokens ({why})", *plan.left_out[1:]), partial=True
            )
    return Plan(0, (), (), 0, False, (f"everything: the validation budget is {budget_seconds:g} s",), partial=True)


def _chunked(length: int, *, decode: int = 0) -> Case:
    """Small chunks, and the last `decode` tokens one by one: a windowed model's cache is shifted again and again.

    At most 31 chunks: a long window would otherwise be read in thousands of steps.
    """
    prefill = length - decode
    size = max(min(_CHUNK, prefill // 2), -(-prefill // 31))
    sizes = [size] * (prefill // size) + ([prefill % size] if prefill % size else []) + [1] * decode
    name = f"chunks of {size}, then decode past two windows" if decode else f"chunks of {size}"
    return Case(name, (sizes[0],), tuple(sizes[1:]), chunk=size)


def _unequal(span: int) -> Case:
    """Three rows around the edge, so that one is cut by the window, one is not and one is mostly padding."""
    rows = (span + 1, max(span - 2, 1), min(7, span))
    return Case("unequal batch", rows, (1, 1), chunk=span + 3)


def active_parameters(weights: Mapping[str, Weight], info: ModelInfo) -> float:
    """What a token is multiplied with: of a stack of experts [E,...], top_k of them."""
    sizes = {name: math.prod(weight.shape) for name, weight in weights.items()}
    share = info.experts_per_token / info.experts if info.experts else 1.0
    return sum(size * (share if len(weights[name].shape) > 2 else 1.0) for name, size in sizes.items())
