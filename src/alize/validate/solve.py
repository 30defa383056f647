"""Hidden states that make a router choose an expert: solved from its rows, so that no weight has to be edited.

A router's logits are G h, a row of G [E,M] an expert. As a rule its rows are independent, any logits can be had, and least
squares gives an h for those that put expert e first and the next ones behind it. Where rows depend on each other, e can be
among the top_k exactly when, for some set A of top_k-1 others allowed above it, an h has (g_e - g_j) h > 0 for every other j:
when 0 is not in the convex hull of those differences. The hull's point of least norm is then such an h, with the widest margin.
"""

from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

__all__ = ["ROWS", "forcing_states", "least_norm_point"]

ROWS = 4
"""Hidden states for each expert: the same logits, other directions that no router sees."""

_LARGEST = 4.0  # root mean square of the solved part, where a norm's output has about 1
_MARGIN = 0.1  # between logits that should be 1 apart: less is not what was asked for
_LEAST = 1e-5  # of the rows' size: what is nearer to dependent is not told apart by logits in float32
_SETS = 5000  # sets A that are tried


def forcing_states(router: NDArray[np.float32], expert: int, top_k: int, *, seed: int) -> NDArray[np.float32] | None:
    """float32 [ROWS,M]: hidden states for which `expert` is among the top_k of router [E,M]; None where none can be had.

    Where the rows allow it expert e is first, e+1 (modulo E) second and so on, their logits 1 apart. Of experts with the very
    same row the lower one counts as the larger, as the operator has it.
    """
    rows = router.astype(np.float64)
    solved = _in_order(rows, expert, top_k)
    if solved is None:
        solved = _anywhere(rows, expert, top_k)
    if solved is None:
        return None
    _, sizes, seen = np.linalg.svd(rows, full_matrices=False)
    seen = seen[sizes > sizes.max(initial=0) * _LEAST]  # an orthonormal basis of what the router sees
    noise = np.random.default_rng([expert, seed, ROWS]).normal(size=(ROWS, rows.shape[1]))
    states: NDArray[np.float32] = (solved + noise - noise @ seen.T @ seen).astype(np.float32)
    return states


def _in_order(rows: NDArray[np.float64], expert: int, top_k: int) -> NDArray[np.float64] | None:
    """[M], or None where the rows depend on each other so that these logits cannot be had."""
    count = len(rows)
    order = (expert + np.arange(count)) % count
    wanted = np.empty(count)
    wanted[order] = np.maximum(top_k - np.arange(count), 0)
    solved: NDArray[np.float64] = np.linalg.lstsq(rows, wanted, rcond=_LEAST)[0].astype(np.float64)
    logits = (rows @ solved)[order]
    steps = np.append(logits[: top_k - 1] - logits[1:top_k], logits[top_k - 1] - logits[top_k:].max(initial=-np.inf))
    return _shortened(solved) if (steps > _MARGIN).all() else None


def _anywhere(rows: NDArray[np.float64], expert: int, top_k: int) -> NDArray[np.float64] | None:
    """[M] with the widest margin found between the expert and those below the top_k, or None."""
    others = [j for j in range(len(rows)) if j != expert]
    equal_above = {j for j in others if j > expert and (rows[j] == rows[expert]).all()}  # a tie is the lower one's
    best, widest = None, 0.0
    for above in islice(combinations(others, top_k - 1), _SETS):
        below = [j for j in others if j not in above and j not in equal_above]
        if not below:
            return np.zeros(rows.shape[1])  # whatever the state, no other can push it out
        differences = rows[expert] - rows[below]
        point = least_norm_point(differences)
        length = float(point @ point)
        if length > max(widest, _LEAST**2 * float((differences**2).sum(axis=1).max())):
            best, widest = point / length, length  # margin 1 over each below
    return None if best is None else _shortened(best)


def _shortened(state: NDArray[np.float64]) -> NDArray[np.float64]:
    size = float(np.sqrt((state**2).mean()))
    return state * min(1.0, _LARGEST / max(size, 1e-300))


def least_norm_point(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The point of the convex hull of points [n,d] that is nearest to 0 (Wolfe 1976, Finding the nearest point in a polytope).

    Its inner product with every point is at least its squared norm, 0 exactly where the hull holds 0.
    """
    largest = max(float((points**2).sum(axis=1).max()), 1e-300)
    corners, shares = [int((points**2).sum(axis=1).argmin())], np.ones(1)
    for _ in range(100 * len(points)):
        nearest = shares @ points[corners]
        further = int((points @ nearest).argmin())
        if points[further] @ nearest > nearest @ nearest - 1e-14 * largest or further in corners:
            break
        corners, shares = [*corners, further], np.append(shares, 0.0)
        while (affine := _affine_shares(points[corners])).min() <= 1e-12:
            falling = affine < shares
            steps = shares[falling] / (shares[falling] - affine[falling])
            shares = shares + min(float(steps.min()), 1.0) * (affine - shares)
            kept = shares > 1e-12
            corners, shares = [corner for corner, stays in zip(corners, kept, strict=True) if stays], shares[kept]
        shares = affine
    return np.asarray(shares @ points[corners])


def _affine_shares(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares that sum to 1 of the point nearest to 0 in the plane through the corners [n,d]."""
    count = len(corners)
    system = np.ones((count + 1, count + 1))
    system[0, 0], system[1:, 1:] = 0.0, corners @ corners.T
    return np.asarray(np.linalg.lstsq(system, np.eye(count + 1)[0], rcond=None)[0][1:])
