"""Rounding to integers, a group of values at a time, with the scale that loses least.

Of 4 bits the scale of a group is searched on a grid for the least squared error, then refined: for given integers the best
scale is a quotient of two sums, for a given scale the best integers are the nearest. Each error counts by the size of its weight:
where plain squares would clip a large weight to serve many small ones, a network loses more than they say. Of 8 bits, and of 4
in small symmetric groups, it is the scale that just reaches the largest weight. A scale may be negative, so that this weight
gets the integer that has no opposite, -8 or -128: of 4 bits a sixteenth finer than 7 at the top.
Scales are float16 values, so that every target may store them as float16 or float32 and computes with the same numbers.

Each group is looked at by itself: sums go over a fixed tree of additions, so that a row gives the same integers alone as
among others, on any number of threads.

Some groups at a time are turned to columns [in/G,n], as many as a core's cache holds: sums over a group are then additions of
whole rows. Each thread takes every so-manieth of these blocks, so that none waits for another at each small step.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from alize.errors import CorruptCheckpoint, UnsupportedModel
from alize.optimize.quantisation import Form

__all__ = ["Integers", "dequantised", "pack_nibbles", "quantised", "scales_of", "unpack_nibbles"]

_SMALLEST = 2.0**-24  # of float16; a group of zeros has a scale too
_GRIDS = {
    True: [8 / 7, *(1.0 - step / 32 for step in range(-2, 7))],
    False: [1.0 - step / 32 for step in range(9)],
}
"""Of 4 bits, symmetric or not: scales that are tried, as parts of the one that just reaches the largest value."""
_REFINEMENTS = 2
_SMALL = 32  # values of a symmetric group: a search over so few lowers the squared error, and raises KL (docs/weights.md)
_SHORT = 128  # values of a group, of 8 bits: a longer one is a whole row, whose product can be multiplied with a sign
_BLOCK = 1 << 16  # values rounded together by a thread: with what is computed of them they fit in its cache
_COLUMNS = 64  # groups that are together at least: a row of fewer is no work for vector instructions


@dataclass(frozen=True)
class Integers:
    """A matrix as it is stored. G groups a row, each of in/G values.

    values: int8 (symmetric) or uint8, [...,out,in].   scales: float16 [...,out,G].   zero_points: uint8 [...,out,G], or None.
    """

    values: Tensor
    scales: Tensor
    zero_points: Tensor | None

    @staticmethod
    def stack(parts: "Sequence[Integers]") -> "Integers":
        """[E,out,in] of matrices [out,in]."""
        return Integers._joined(parts, torch.stack)

    @staticmethod
    def above(parts: "Sequence[Integers]") -> "Integers":
        """One matrix of the rows of several."""
        return Integers._joined(parts, torch.cat)

    @staticmethod
    def _joined(parts: "Sequence[Integers]", join: Callable[[list[Tensor]], Tensor]) -> "Integers":
        zeros = [part.zero_points for part in parts if part.zero_points is not None]
        values, scales = (join(found) for found in ([part.values for part in parts], [part.scales for part in parts]))
        return Integers(values, scales, join(zeros) if zeros else None)

    def rows(self, chosen: "slice | Tensor") -> "Integers":
        """Some rows of a matrix [out,in]: a slice, or int64 [n]."""
        zeros = None if self.zero_points is None else self.zero_points[chosen]
        return Integers(self.values[chosen], self.scales[chosen], zeros)


def quantised(name: str, rows: Tensor, form: Form) -> Integers:
    """Rounds the rows [...,in] of the weight `name`; each on its own.

    Raises CorruptCheckpoint (NaN or infinite values), UnsupportedModel (a scale beyond float16).
    """
    low, _ = form.limits
    groups = rows.reshape(-1, form.group)
    values = torch.empty(groups.shape, dtype=torch.uint8 if low == 0 else torch.int8)
    scales = torch.empty(len(groups), dtype=torch.float16)
    zeros = torch.empty(len(groups), dtype=torch.uint8)
    step = max(_COLUMNS, _BLOCK // form.group)

    def work(starts: range) -> None:
        for start in starts:
            part = slice(start, start + step)
            columns = groups[part].float().t().contiguous()
            scale, zero = _scales(name, columns, form)
            scales[part], zeros[part] = scale, zero  # exact: they are values of these types
            values[part] = _steps(columns, scale, zero, form).add_(zero).t()

    _share(work, len(groups), step)
    shape = (*rows.shape[:-1], rows.shape[-1] // form.group)
    return Integers(values.reshape(rows.shape), scales.reshape(shape), None if form.symmetric else zeros.reshape(shape))


def scales_of(name: str, rows: Tensor, form: Form, *, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The scales, float16 [out,G], and zero points, uint8 [out,G], that lose least of the rows [out,in].

    importance: what the error at each input counts, float32 [in]; by default that of a weight counts by its size. Raises what
    `quantised` raises.
    """
    shape = (*rows.shape[:-1], rows.shape[-1] // form.group)
    groups = rows.reshape(-1, form.group)
    scales, zeros = torch.empty(len(groups), dtype=torch.float16), torch.empty(len(groups), dtype=torch.uint8)
    counted = None if importance is None else importance.reshape(shape[-1], form.group)
    places = torch.arange(len(groups)) % shape[-1]
    step = max(_COLUMNS, _BLOCK // form.group)

    def work(starts: range) -> None:
        for start in starts:
            part = slice(start, start + step)
            columns = groups[part].float().t().contiguous()
            scale, zero = _scales(name, columns, form, None if counted is None else counted[places[part]].t())
            scales[part], zeros[part] = scale, zero

    _share(work, len(groups), step)
    return scales.reshape(shape), zeros.reshape(shape)


def _share(work: Callable[[range], None], count: int, step: int) -> None:
    """Lets as many threads as PyTorch uses do the blocks that begin at 0, step, ... below count."""
    threads = min(torch.get_num_threads(), -(-count // step))
    if threads < 2:
        work(range(0, count, step))
        return
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:  # no threads of theirs
            for _ in pool.map(work, [range(first * step, count, threads * step) for first in range(threads)]):
                pass
    finally:
        torch.set_num_threads(before)  # what a thread sets for itself is also what new ones begin with


def dequantised(integers: Integers) -> Tensor:
    """The rows that are computed with, float32 [...,in]: (value - zero point) * scale, which float32 holds exactly."""
    groups = integers.values.float().reshape(*integers.scales.shape, -1)  # a copy, so that the rest is done in place
    if integers.zero_points is not None:
        groups -= integers.zero_points.float()[..., None]
    groups *= integers.scales.float()[..., None]
    return groups.reshape(integers.values.shape)


def pack_nibbles(values: Tensor) -> Tensor:
    """int8 or uint8 of any shape, each of 4 bits -> uint8 [ceil(n/2)]: the earlier value in the lower half, as ONNX has it."""
    flat = values.reshape(-1).view(torch.uint8) & 15
    if len(flat) % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    return flat[0::2] | (flat[1::2] << 4)


def unpack_nibbles(packed: Tensor, count: int, *, signed: bool) -> Tensor:
    """uint8 [ceil(count/2)] -> int8 or uint8 [count]"""
    flat = torch.stack([packed & 15, packed >> 4], dim=1).reshape(-1)[:count]
    return ((flat ^ 8).view(torch.int8) - 8) if signed else flat


def _scales(name: str, columns: Tensor, form: Form, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The scale and the zero point, float32 [n], of the groups [in/G,n]. importance: of each value, of 4 bits."""
    low, high = form.limits
    least, most = columns.amin(0), columns.amax(0)
    if not (least.isfinite().all() and most.isfinite().all()):
        raise CorruptCheckpoint(
            f"tensor {name} holds NaN or infinite values; the weights are damaged, fetch the checkpoint again"
        )
    if form.symmetric:
        reach = _symmetric_reach(least, most, form)
    else:
        least, most = least.clamp(max=0), most.clamp(min=0)
        reach = (most - least) / (high - low)

    def part_of_reach(part: float) -> tuple[Tensor, Tensor]:
        scale = _storable(name, reach * part)
        return scale, torch.zeros_like(reach) if form.symmetric else (-least * part / scale).round().clamp(low, high)

    if form.bits == 8 or (importance is None and form.symmetric and form.group <= _SMALL):
        return part_of_reach(1.0)
    return _searched(name, columns, form, columns.abs() if importance is None else importance, part_of_reach)


def _searched(
    name: str, columns: Tensor, form: Form, importance: Tensor, part_of_reach: Callable[[float], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Of the grid's scales and zero points, and those fitted to the integers that they give, the ones that lose least."""
    candidates = _GRIDS[form.symmetric]
    best, best_zero = part_of_reach(1.0)
    best_error = torch.full_like(best, torch.inf)
    scaled, steps = torch.empty_like(columns), torch.empty_like(columns)
    for number in range(len(candidates) + _REFINEMENTS):
        if number < len(candidates):
            scale, zero = part_of_reach(candidates[number])
        else:
            _steps(columns, best, best_zero, form, scaled=scaled, out=steps)
            zero, scale = best_zero, _storable(name, _fitted(columns, steps, importance, best))
        _steps(columns, scale, zero, form, scaled=scaled, out=steps)
        squares = _sum(scaled.sub_(steps).square_().mul_(importance)) * scale.square()
        better = squares < best_error
        best_error = torch.where(better, squares, best_error)
        best, best_zero = torch.where(better, scale, best), torch.where(better, zero, best_zero)
    return best, best_zero


def _symmetric_reach(least: Tensor, most: Tensor, form: Form) -> Tensor:
    """The scale at which the largest value is just reached: by the lowest integer, whichever its sign; in short groups of 8 bits
    by the end on its side, so that the scale is positive, as TensorRT wants those of int8."""
    low, high = form.limits
    if form.bits == 8 and form.group <= _SHORT:
        return torch.maximum(least / low, most / high)
    return torch.where(most > -least, most, least) / low


def _fitted(columns: Tensor, steps: Tensor, importance: Tensor, fallback: Tensor) -> Tensor:
    """The scale that is best for given integers, of importance-weighted squares; `fallback` where all integers are 0."""
    weighted = steps * importance
    squares = _sum(weighted * steps)
    return torch.where(squares > 0, _sum(weighted * columns) / squares, fallback)


def _steps(
    columns: Tensor, scale: Tensor, zero: Tensor, form: Form, *, scaled: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """How many scales each value of [in/G,n] is away from 0, to the nearest that there is; `scaled` takes it unrounded."""
    low, high = form.limits
    scaled = torch.mul(columns, scale.reciprocal(), out=scaled)
    return torch.round(scaled, out=out).clamp_(low - zero, high - zero)


def _storable(name: str, scale: Tensor) -> Tensor:
    """The nearest float16 value but 0, as float32."""
    stored = scale.half().float()
    stored = torch.where(stored < 0, stored.clamp(max=-_SMALLEST), stored.clamp(min=_SMALLEST))
    if not stored.isfinite().all():
        raise UnsupportedModel(
            f"{name} needs a scale of {float(scale.abs().max()):.3g}, float16 ends at 65504: use --weights bf16 or fp32"
        )
    return stored


def _sum(x: Tensor) -> Tensor:
    """[m,n] -> [n] by halves: the same additions for a column whatever stands beside it, as no reduction kernel promises."""
    while len(x) > 1:
        half = len(x) // 2
        rest = x[2 * half :]
        x = x[:half] + x[half : 2 * half]
        if len(rest):
            x = torch.cat([x, rest])
    return x[0]
