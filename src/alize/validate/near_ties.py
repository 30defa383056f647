"""A router's near-tie: two logits that float noise can order either way, so that both choices are right.

What follows from the other choice differs by far more than float noise. So where a case fails, the artifact is asked what it
chose; where that is as good as what the reference chose, the reference makes the same choice and is compared again.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alize.models.reference import Reference
from alize.models.routing import Routing
from alize.validate.cases import Case
from alize.validate.drive import places
from alize.validate.references import References

__all__ = ["ROUTER_NEAR_TIE", "Choice", "Followed", "far_choices", "follow", "one_set"]


ROUTER_NEAR_TIE = 0.01
"""Nats: how far apart two router logits may be for a runtime setting (a cache in float16, say) to change which is larger without
being held to what the reference chose. A hundredth: the share of the one is then the other's to a percent."""


@dataclass(frozen=True)
class Choice:
    """Another choice than the router's own: `by` is how far its lowest logit lies below the router's lowest."""

    layer: int
    position: int
    experts: tuple[int, ...]
    instead_of: tuple[int, ...]
    by: float

    def __str__(self) -> str:
        return (
            f"layer {self.layer}, position {self.position}: chose experts {one_set(self.experts)} where the router's logits say "
            f"{one_set(self.instead_of)}, by {self.by:.2g}"
        )


@dataclass(frozen=True)
class Followed:
    """logits: float32 [m,V] of a reference that chose as the artifact did, None where a choice is too far from its own.

    near: choices that were followed.   far: those beyond the tolerance, the lowest layer first.
    """

    logits: NDArray[np.float32] | None
    near: tuple[Choice, ...]
    far: tuple[Choice, ...]


def follow(
    reference: Reference,
    references: References,
    case: Case,
    tokens: NDArray[np.int64],
    choices: list[NDArray[np.int64]],
    *,
    tolerance: NDArray[np.float64],
) -> Followed:
    """choices: experts [L,S,top_k] that the artifact chose in each row of the case.

    A choice is a near-tie where it lies below the reference's own by tolerance [L] or less, all choices before it being the
    artifact's. Rows in which it chose as the reference did are the reference's as they are.
    """
    assert references.routing is not None
    own = references.routing.experts
    rows = [b for b, made in enumerate(choices) if (np.sort(made) != np.sort(own[:, : made.shape[1]])).any()]
    of, positions = places(case, references.kept)
    logits = references.logits_at(positions).copy()
    if not rows:
        return Followed(logits, (), ())
    kept = [references.kept[references.kept < case.rows[b]] for b in rows]
    run = reference.run([tokens[: case.rows[b]] for b in rows], positions=kept, follow=[choices[b] for b in rows])
    near, far = set[Choice](), set[Choice]()
    for b, routing in zip(rows, run.routing, strict=True):
        beyond = far_choices(routing, choices[b], tolerance)
        far.update(beyond)
        near.update(set(_other_choices(routing, choices[b])) - set(beyond))
    for b, found, where in zip(rows, run.logits, kept, strict=True):
        logits[of == b] = found[np.searchsorted(where, positions[of == b])]
    return Followed(
        None if far else logits, *(tuple(sorted(found, key=lambda one: (one.layer, one.position))) for found in (near, far))
    )


def far_choices(
    routing: Routing, made: NDArray[np.int64], tolerance: NDArray[np.float64], *, first_layer: int = 0
) -> list[Choice]:
    """Of the choices made [L,S,top_k], which the routing followed, those too far below the router's own; tolerance [L].

    In the order of layers, then positions.
    """
    wrong = np.argwhere(~(routing.lag <= tolerance[:, None]))
    return [_choice(routing, made, layer, position, first_layer) for layer, position in wrong.tolist()]


def _other_choices(routing: Routing, made: NDArray[np.int64]) -> list[Choice]:
    """Those that are not the router's own, however near."""
    differs = (np.sort(made) != np.sort(_own(routing.logits, made.shape[-1]))).any(axis=-1)
    return [_choice(routing, made, layer, position, 0) for layer, position in np.argwhere(differs).tolist()]


def _choice(routing: Routing, made: NDArray[np.int64], layer: int, position: int, first_layer: int) -> Choice:
    chosen, own = made[layer, position], _own(routing.logits[layer, position], made.shape[-1])
    by = float(routing.lag[layer, position])
    return Choice(first_layer + layer, position, tuple(sorted(chosen.tolist())), tuple(sorted(own.tolist())), by)


def _own(logits: NDArray[np.float32], top_k: int) -> NDArray[np.int64]:
    return np.argsort(-logits, axis=-1, kind="stable")[..., :top_k]


def one_set(experts: tuple[int, ...]) -> str:
    """{1, 3}"""
    return "{" + ", ".join(map(str, experts)) + "}"
