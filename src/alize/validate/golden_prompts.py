"""The golden prompts that travel with an artifact: what a device is asked at its first load, and what it may be off by.

A replay has no reference that could follow a router's near-tie, and another device may decide one otherwise: all that follows
from the other expert's answer is then off by more than any rounding, and right all the same. So a model with experts is asked
only where that changes little: the reference runs the prompts again with its near-ties turned round, all of them and drawn halves
of them, and positions that are moved by more than a part of the budget are left for the nearest ones that are not.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo
from alize.models.reference import Reference
from alize.models.routing import NearTies, Routing
from alize.optimize.quantisation import Quantisation
from alize.progress import Progress
from alize.runtimes import golden
from alize.validate.judge import Budget
from alize.validate.near_ties import ROUTER_NEAR_TIE
from alize.validate.references import References

__all__ = ["SIZES", "TURNED", "Replay", "golden_budget", "golden_replay"]

SIZES = (33, 640)  # tokens: a short prompt, and one as long as a replay of a few seconds allows, past the window's edge if it can
_ROUNDED_LOG_PROB_ERROR = 20.0
"""Nats, of any token at all, where the engine rounds activations."""

TURNED = (NearTies(ROUTER_NEAR_TIE), *(NearTies(ROUTER_NEAR_TIE, share=0.5, seed=seed) for seed in (1, 2, 3)))
_SHARE = 0.25
"""Of each limit: what near-ties may use up, the rest being the device's own."""


@dataclass(frozen=True)
class Replay:
    """cases: the golden prompts.   budget: their limits.   figures: what near-ties did to them, for the manifest."""

    cases: tuple[golden.Case, ...]
    budget: golden.Budget
    figures: dict[str, float]


@dataclass(frozen=True)
class _Moved:
    """By how much turned near-ties move the reference at most, [n] of the kept positions below `size`."""

    positions: NDArray[np.int64]
    kl: NDArray[np.float64]
    error: NDArray[np.float64]

    def within(self, budget: golden.Budget) -> NDArray[np.int64]:
        """Positions that they move by less than their share of the budget."""
        within = (self.kl <= _SHARE * budget.kl) & (self.error <= _SHARE * budget.max_log_prob_error)
        return self.positions[within]


def golden_replay(
    info: ModelInfo,
    tokens: NDArray[np.int64],
    references: References,
    budget: golden.Budget,
    *,
    reference: Reference,
    progress: Progress,
) -> Replay:
    """reference: of the artifact's own weights, to be run again where a router has near-ties."""
    size = min(max(SIZES), len(tokens))
    kept = references.kept[references.kept < size]
    ties = _near_ties(references.routing, size)
    if not ties:
        cases = _cases(info, tokens, references, kept)
        return Replay(cases, budget, {} if references.routing is None else _figures(0, cases, cases, 0.0))
    progress.stage("turn the router's near-ties round", steps=1)
    moved = _move(reference, tokens[:size], references, kept)
    progress.advance()
    steady = moved.within(budget)
    if not len(steady):  # nowhere: the place that is moved least, and a wider budget
        least = int(moved.kl.argmin())
        steady = moved.positions[least : least + 1]
        kl, error = (max(limit, float(found[least]) / _SHARE) for limit, found in (
            (budget.kl, moved.kl), (budget.max_log_prob_error, moved.error)
        ))  # fmt: skip
        budget = dataclasses.replace(budget, kl=kl, max_log_prob_error=error)
    cases = _cases(info, tokens, references, steady)
    asked = np.isin(moved.positions, np.concatenate([case.positions for case in cases]))
    wanted = _cases(info, tokens, references, kept)
    return Replay(cases, budget, _figures(ties, cases, wanted, float(moved.kl[asked].max())))


def golden_budget(budget: Budget, weights: str) -> golden.Budget:
    """Where activations are rounded too, the least likely of all tokens move by several nats: KL alone judges."""
    rounded = Quantisation.parse(weights) is not None
    return golden.Budget(kl=budget.runtime_kl_max, max_log_prob_error=_ROUNDED_LOG_PROB_ERROR if rounded else 1.0)


def _near_ties(routing: Routing | None, size: int) -> int:
    """How many there are, in all layers, in the first `size` tokens."""
    if routing is None or routing.experts.shape[-1] == routing.logits.shape[-1]:
        return 0
    count = routing.experts.shape[-1]
    ordered = -np.sort(-routing.logits[:, :size], axis=-1)
    return int((ordered[..., count - 1] - ordered[..., count] <= ROUTER_NEAR_TIE).sum())


def _move(reference: Reference, tokens: NDArray[np.int64], references: References, kept: NDArray[np.int64]) -> _Moved:
    runs = reference.run([tokens] * len(TURNED), positions=[kept] * len(TURNED), follow=TURNED)
    found = [golden.compare(references.log_probs(kept), logits) for logits in runs.logits]
    return _Moved(kept, *(np.max([getattr(one, name) for one in found], axis=0) for name in ("kl", "error")))


def _cases(
    info: ModelInfo, tokens: NDArray[np.int64], references: References, there: NDArray[np.int64]
) -> tuple[golden.Case, ...]:
    """there: positions that may be asked. A prompt without any is left out."""
    window, cases = max(info.windows), []
    for size in sorted({min(size, len(tokens)) for size in SIZES}):
        edges = [0, size // 2, *(window + step for step in (-2, -1, 0, 1)), size - 2, size - 1]
        near = {_nearest(edge, there[there < size], window, size) for edge in edges if 0 <= edge < size}
        positions = np.array(sorted(near - {None}), np.int64)  # type: ignore[type-var]
        if len(positions):
            cases.append(golden.Case(tokens[:size], positions, references.log_probs(positions)))
    return tuple(cases)


def _nearest(wanted: int, there: NDArray[np.int64], window: int, size: int) -> int | None:
    """The position itself or the nearest on its side of the window's edge, and of where tokens are decoded one by one."""

    def side(positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return 2 * (positions >= window) + (positions >= size - golden.DECODED)

    alike = there[side(there) == side(np.array([wanted]))]
    return int(alike[np.abs(alike - wanted).argmin()]) if len(alike) else None


def _figures(ties: int, cases: tuple[golden.Case, ...], wanted: tuple[golden.Case, ...], kl: float) -> dict[str, float]:
    asked = [
        {(len(case.prompt), position) for case in found for position in case.positions.tolist()} for found in (cases, wanted)
    ]
    return {
        "golden_near_ties": float(ties),
        "golden_positions": float(len(asked[0])),
        "golden_positions_moved": float(len(asked[1] - asked[0])),
        "golden_kl_of_near_ties": kl,
    }
