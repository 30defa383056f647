"""One layer's mixture of experts, cut out of the artifact and fed hidden states that make its router choose by name.

The answers are compared with those of the reference's experts on the same states, as stored, in float32. Where they differ,
each answer is taken apart into the answers of the single experts: what combination of them it is says what is wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alize.compiler_modules import Probe
from alize.models.reference import Mixture
from alize.models.routing import Routing
from alize.validate.near_ties import far_choices, one_set
from alize.validate.solve import forcing_states

__all__ = ["CutOut", "examine"]

_LEAST = float(np.finfo(np.float32).eps)
_NEAR = 0.01  # two shares that differ by less are the same


@dataclass(frozen=True)
class CutOut:
    """One layer, fed several states for each of some experts.

    ran: experts among those asked for that answered.   unreachable: those that no state puts among the chosen.
    wrong: those that took part in a wrong answer.   findings: what is wrong.
    """

    ran: tuple[int, ...]
    unreachable: tuple[int, ...]
    wrong: tuple[int, ...]
    findings: tuple[str, ...]


def examine(
    probe: Probe, folder: Path, mixture: Mixture, layer: int, experts: Sequence[int], *, top_k: int, factor: float
) -> CutOut:
    """Runs `experts` of the layer by name. factor: errors may be so many times those of another summation order."""
    states = {e: forcing_states(mixture.router, e, top_k, seed=layer) for e in experts}
    fed = {e: found for e, found in states.items() if found is not None}
    never = [e for e in experts if e not in fed]
    if not fed:
        return CutOut((), tuple(never), (), ())
    hidden = np.concatenate(list(fed.values()))
    asked = np.repeat(list(fed), [len(found) for found in fed.values()])
    logits, chosen, output = probe.cut_experts(folder, layer, hidden)
    expected, routing = mixture.answer(hidden, follow=chosen)
    other, rounded = mixture.answer(hidden, follow=chosen, summation="split")
    tolerance = factor * _floor(routing.logits, rounded.logits)
    off = np.flatnonzero(~(np.abs(logits - routing.logits).max(axis=0) <= tolerance)).tolist()
    if off:
        finding = f"layer {layer}: the router's logits of experts {one_set(tuple(off))} are wrong"
        return CutOut(tuple(fed), tuple(never), tuple(off), (finding,))
    far = far_choices(Routing.stack([routing]), chosen[None], np.array([tolerance]), first_layer=layer)
    if far:
        finding = (
            f"layer {layer}: the router chooses experts {one_set(far[0].experts)} where its logits say "
            f"{one_set(far[0].instead_of)}, by {far[0].by:.2g} ({len(far)} of {len(hidden)} hidden states of the cut-out layer)"
        )
        return CutOut(tuple(fed), tuple(never), tuple(sorted({int(asked[choice.position]) for choice in far})), (finding,))
    never += [e for e in fed if not (chosen[asked == e] == e).any()]  # it ties with one that the engine puts first
    ran = tuple(e for e in fed if e not in never)
    limit = factor * _floor(expected, other)
    bad = ~(np.abs(output - expected).max(axis=1) <= limit)
    if not bad.any():
        return CutOut(ran, tuple(never), (), ())
    groups = [_group(mixture, hidden[asked == e], output[asked == e], chosen[asked == e][0], bad[asked == e], limit) for e in fed]
    wrong, findings = explain(groups, layer)
    return CutOut(ran, tuple(never), wrong, findings)


def _floor(plain: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The largest error of another summation order; where it happens to be none, that of one rounding."""
    return max(float(np.abs(plain - other).max()), _LEAST * float(np.abs(plain).max()))


@dataclass(frozen=True)
class Group:
    """States with the same logits. chosen: the experts.   shares: float64 [E], what each should count, 0 where not chosen.

    found: float64 [E], what each was found to count; None where no combination of the experts' answers is the output.
    whole: the probability of the chosen together, of all E.   bad: whether any of the answers is wrong.
    """

    chosen: tuple[int, ...]
    shares: NDArray[np.float64]
    found: NDArray[np.float64] | None
    whole: float
    bad: bool


def _group(
    mixture: Mixture,
    hidden: NDArray[np.float32],
    output: NDArray[np.float32],
    chosen: NDArray[np.int64],
    bad: NDArray[np.bool_],
    limit: float,
) -> Group:
    """Takes outputs [n,M] apart: the shares by which the answers of the single experts add up to them, by least squares."""
    count = len(mixture.router)
    logits = (hidden[0].astype(np.float64) @ mixture.router.T.astype(np.float64)).ravel()
    powers = np.exp(logits - logits.max())
    shares = np.zeros(count)
    shares[chosen] = powers[chosen] / powers[chosen].sum()
    found = None
    if bad.any() and np.isfinite(output).all():
        alone = [mixture.answer(hidden, follow=np.full((len(hidden), 1), e))[0].ravel() for e in range(count)]
        answers = np.stack(alone, axis=1).astype(np.float64)
        combined = np.linalg.lstsq(answers, output.ravel().astype(np.float64), rcond=None)[0].astype(np.float64)
        if np.abs(answers @ combined - output.ravel()).max() <= 3 * limit:
            found = combined
    whole = float(powers[chosen].sum() / powers.sum())
    return Group(tuple(chosen.tolist()), shares, found, whole, bool(bad.any()))


def explain(groups: Sequence[Group], layer: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """What the wrong groups have in common: the experts that are wrong, and findings that name them."""
    wrong = [group for group in groups if group.bad]
    if all(group.found is not None and _same(group.found, group.shares * group.whole) for group in wrong):
        experts = {e for group in wrong for e in group.chosen}
        return tuple(sorted(experts)), (f"layer {layer}: the shares of the chosen experts are not renormalised",)
    moves = [_moves(group) for group in wrong]
    if all(moves):
        return _moved(layer, {e: place for move in moves if move for e, place in move.items() if place != e})
    counts = {e for group in wrong for e in group.chosen}
    suspects = sorted(e for e in counts if all(group.bad for group in groups if e in group.chosen)) or sorted(counts)
    names = f"expert {suspects[0]}" if len(suspects) == 1 else f"experts {', '.join(map(str, suspects))}"
    return tuple(suspects), (f"layer {layer}: the answer of {names} is wrong{_combination(wrong[0])}",)


def _same(left: NDArray[np.float64], right: NDArray[np.float64]) -> bool:
    return bool(np.abs(left - right).max() < _NEAR)


def _moves(group: Group) -> dict[int, int] | None:
    """Chosen expert -> the one that answered in its place, with its share; None where it is not like that."""
    if group.found is None:
        return None
    places = {e: int(np.abs(group.found - group.shares[e]).argmin()) for e in group.chosen}
    moved = np.zeros(len(group.shares))
    for e, place in places.items():
        moved[place] += group.shares[e]
    return places if _same(group.found, moved) else None


def _moved(layer: int, moves: Mapping[int, int]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    pairs = [(e, place) for e, place in sorted(moves.items()) if moves.get(place) == e and e < place]
    swapped = {e for pair in pairs for e in pair}
    findings = [f"layer {layer}: experts {e} and {place} are swapped" for e, place in pairs]
    others = [(e, place) for e, place in sorted(moves.items()) if e not in swapped]
    findings += [f"layer {layer}: expert {place} answers for expert {e}" for e, place in others]
    return tuple(sorted(moves)), tuple(findings)


def _combination(group: Group) -> str:
    """Whose answers count more or less than they should, where the output is made of the experts' answers."""
    if group.found is None:
        return ""
    told = np.flatnonzero(np.abs(group.found - group.shares) >= _NEAR).tolist()
    parts = [f"expert {e} counts {round(group.found[e], 2) + 0.0:.2f}, not {group.shares[e]:.2f}" for e in told]
    return f" ({', '.join(parts)})" if parts else ""
