"""Figures along positions as lines that can be drawn: broken where positions are missing, thinned without losing a peak."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["COLUMNS", "Series", "envelope_step", "series"]

COLUMNS = 700
"""Points along a whole figure: more would be closer than a pixel. Of neighbours that share one, the largest is drawn."""

_Values = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """x, y: a line, NaN between its parts.   lone: x, y of points without neighbours.   infinite: x of what is not finite."""

    x: _Values
    y: _Values
    lone: tuple[_Values, _Values]
    infinite: _Values


def envelope_step(positions: NDArray[np.int64], *, columns: int = COLUMNS) -> int:
    """How many neighbouring positions are drawn as one point, of a row with at least one position."""
    return -(-int(np.ptp(positions) + 1) // columns)


def series(positions: NDArray[np.int64], values: _Values, *, columns: int = COLUMNS) -> Series:
    """positions: int64 [n], row after row; a line ends where the next position does not follow.   values: float64 [n]."""
    step = envelope_step(positions, columns=columns)
    finite = np.isfinite(values)
    kept = np.flatnonzero(finite)
    cuts = np.flatnonzero((np.diff(positions[kept]) != 1) | (np.diff(kept) != 1)) + 1
    xs, ys = [np.empty(0)], [np.empty(0)]
    lone = [np.empty(0, np.int64)]
    for run in np.split(kept, cuts):
        if len(run) == 1:
            lone.append(run)
        drawn = _largest(run, positions, values, step)
        xs.append(np.append(positions[drawn], np.nan))
        ys.append(np.append(values[drawn], np.nan))
    alone = np.concatenate(lone)
    return Series(
        x=np.concatenate(xs),
        y=np.concatenate(ys),
        lone=(positions[alone].astype(np.float64), values[alone]),
        infinite=np.unique(positions[~finite] // step * step).astype(np.float64),
    )


def _largest(indices: NDArray[np.int64], positions: NDArray[np.int64], values: _Values, step: int) -> NDArray[np.int64]:
    """Of the indices (a row without gaps) whose positions share a column, the one with the largest value. The last is no narrower
    than the rest: it would dip."""
    if step == 1 or len(indices) == 0:
        return indices
    column = np.minimum((positions[indices] - positions[indices[0]]) // step, max(len(indices) // step - 1, 0))
    order = np.lexsort((-values[indices], column))
    first = np.flatnonzero(np.diff(column[order], prepend=-1))
    return indices[order[first]]
