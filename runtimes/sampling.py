"""Sampling: from logits to tokens, bit for bit the same on every machine and in every language. docs/sampling.md specifies it.

Nothing here depends on a library's exp or on the order of a parallel sum: exp is spelled out, and sums go from left to right.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alize.errors import SessionError, UsageError
from alize.runtimes.philox import uniform

__all__ = ["SamplingOptions", "exp", "sample"]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """temperature 0 = greedy; top_k 0, top_p 1 and min_p 0 = off. Applied in that order. Raises UsageError."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        rules = (
            ("temperature", self.temperature, math.isfinite(self.temperature) and self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (off) or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0 and at most 1 (off)"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "within 0 (off) .. 1"),
            ("seed", self.seed, 0 <= self.seed < 1 << 64, "within 0 .. 2^64-1"),
        )
        for name, value, fits, limit in rules:
            if not fits:
                raise UsageError(f"{name} {value} must be {limit}")


def sample(logits: NDArray[np.float32], positions: NDArray[np.int64], options: SamplingOptions) -> NDArray[np.int64]:
    """Draw a token for each row: logits[B,V] float32 -> int64[B].

    positions[B]: the absolute position that the token will have; with the row's number b and the seed it decides the draw,
    so drawing again gives the same. Raises SessionError when a row's logits hold NaN, +infinity or nothing but -infinity.
    """
    logits = np.asarray(logits, np.float32)
    best: NDArray[np.int64] = logits.argmax(axis=-1).astype(np.int64)  # of equals the lowest id; a NaN counts as greatest
    peaks = np.take_along_axis(logits, best[:, None], axis=-1)
    if not np.isfinite(peaks).all():
        row = int(np.flatnonzero(~np.isfinite(peaks))[0])
        raise SessionError(f"the greatest logit of row {row} is {peaks[row, 0]}, not finite: try `alize validate ARTIFACT`")
    if options.temperature == 0:
        return best
    draws = uniform(seed=options.seed, rows=np.arange(len(logits)), positions=positions)
    return np.array([_draw(row, float(draw), options) for row, draw in zip(logits, draws, strict=True)], np.int64)


def exp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """e**x for x <= 0 by multiplications and additions alone, so that no library's rounding decides; 0 below -708.

    x = n ln 2 + r with |r| <= 0.35, then the Taylor polynomial of degree 13 in r, then times 2**n. Within 2 units in the
    last place.
    """
    within = np.where(x < -708.0, 0.0, x)
    n = np.floor(within * _INVERSE_LN2 + 0.5)
    r = (within - n * _LN2_HIGH) - n * _LN2_LOW
    total = np.full_like(r, _TAYLOR[13])
    for coefficient in _TAYLOR[12::-1]:
        total *= r
        total += coefficient
    return np.where(x < -708.0, 0.0, np.ldexp(total, n.astype(np.int32)))


_INVERSE_LN2 = float.fromhex("0x1.71547652b82fep+0")
_LN2_HIGH = float.fromhex("0x1.62e42feep-1")  # 32 bits: n times it is exact
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_TAYLOR = [1.0 / math.factorial(degree) for degree in range(14)]


def _draw(logits: NDArray[np.float32], draw: float, options: SamplingOptions) -> int:
    order = _descending(logits, options.top_k or len(logits))
    ordered = logits[order].astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature: -infinity, whose weight is 0, is right
        weights = exp((ordered - ordered[0]) / options.temperature)
    sums = np.cumsum(weights)  # from left to right
    if options.top_p < 1:
        sums = sums[: 1 + int(np.count_nonzero(sums[:-1] < options.top_p * sums[-1]))]
    if options.min_p > 0:
        below = weights < options.min_p
        sums = sums[: int(below.argmax())] if below.any() else sums
    return int(order[np.count_nonzero(sums <= draw * sums[-1])])  # draw <= 1 - 2^-53: the product is below the sum


def _descending(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The first `count` token ids by logit descending, equals by id ascending: one sort of integers that hold both."""
    bits = (logits + np.float32(0)).view(np.uint32)  # + 0: -0 becomes 0, its equal
    ascending = np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))
    keys = (~ascending).astype(np.uint64) << np.uint64(32) | np.arange(len(logits), dtype=np.uint64)
    if count < len(keys):
        keys = np.partition(keys, count)[:count]
    return (np.sort(keys) & np.uint64(0xFFFFFFFF)).astype(np.int64)
