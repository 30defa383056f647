"""Rounding to integers, a group of values at a time, with the scale that loses least.

The scale of a group is searched on a grid for the least squared error, then refined: for given integers the best scale is a
quotient of two sums, for a given scale the best integers are the nearest. Scales are float16 values, so that every target may
store them as float16 or float32 and computes with the same numbers.

Each group is looked at by itself: sums go over a fixed tree of additions, so that a row gives the same integers alone as
among others, on any number of threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alize.errors import CorruptCheckpoint, UnsupportedModel
from alize.optimize.quantisation import Form

__all__ = ["Integers", "dequantised", "pack_nibbles", "quantised", "unpack_nibbles"]

_SMALLEST = 2.0**-24  # of float16; a group of zeros has a scale too
_GRIDS = {4: [1.0 - step / 32 for step in range(-1, 13)], 8: [1.0 - step / 128 for step in range(-1, 5)]}
"""Scales that are tried, as parts of the one that just reaches the largest value: clipping a few values may serve the rest."""
_REFINEMENTS = 2
_BLOCK = 1 << 20  # values rounded together: memory stays bounded, and threads wait for each other rarely


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
        zeros = [part.zero_points for part in parts if part.zero_points is not None]
        values, scales = (torch.stack(found) for found in ([part.values for part in parts], [part.scales for part in parts]))
        return Integers(values, scales, torch.stack(zeros) if zeros else None)

    def rows(self, chosen: "slice | Tensor") -> "Integers":
        """Some rows of a matrix [out,in]: a slice, or int64 [n]."""
        zeros = None if self.zero_points is None else self.zero_points[chosen]
        return Integers(self.values[chosen], self.scales[chosen], zeros)

    def part(self, index: int | None) -> "Integers":
        """One matrix of a stack; itself for None."""
        if index is None:
            return self
        zeros = None if self.zero_points is None else self.zero_points[index]
        return Integers(self.values[index], self.scales[index], zeros)


def quantised(name: str, rows: Tensor, form: Form) -> Integers:
    """Rounds the rows [...,in] of the weight `name`; each on its own.

    Raises CorruptCheckpoint (NaN or infinite values), UnsupportedModel (a scale beyond float16).
    """
    low, _ = form.limits
    count = rows.shape[-1] // form.group
    groups = rows.reshape(-1, form.group)
    values = torch.empty(groups.shape, dtype=torch.uint8 if low == 0 else torch.int8)
    scales = torch.empty(len(groups), dtype=torch.float16)
    zeros = torch.empty(len(groups), dtype=torch.uint8)
    step = max(1, _BLOCK // form.group)
    for start in range(0, len(groups), step):
        part = slice(start, start + step)
        block = groups[part].float()
        scale, zero = _scales(name, block, form)
        scales[part], zeros[part] = scale[:, 0], zero[:, 0]  # exact: they are values of these types
        values[part] = _rounded(block, scale, zero, form)
    shape = (*rows.shape[:-1], count)
    return Integers(values.reshape(rows.shape), scales.reshape(shape), None if form.symmetric else zeros.reshape(shape))


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


def _scales(name: str, groups: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """The scale and the zero point, float32 [n,1], that lose least of the groups [n,in/G]."""
    low, high = form.limits
    least, most = (edge[:, None] for edge in torch.aminmax(groups, dim=1))
    if not (least.isfinite().all() and most.isfinite().all()):
        raise CorruptCheckpoint(
            f"tensor {name} holds NaN or infinite values; the weights are damaged, fetch the checkpoint again"
        )
    if form.symmetric:
        reach = torch.maximum(-least, most) / high
    else:
        least, most = least.clamp(max=0), most.clamp(min=0)
        reach = (most - least) / (high - low)
    best, best_zero = torch.zeros_like(reach), torch.zeros_like(reach)
    best_error = torch.full_like(reach, torch.inf)
    candidates = _GRIDS[form.bits]
    for number in range(len(candidates) + _REFINEMENTS):
        if number < len(candidates):
            scale = _storable(name, reach * candidates[number])
            zero = torch.zeros_like(reach) if form.symmetric else (-least * candidates[number] / scale).round().clamp(low, high)
        else:
            steps = _rounded(groups, best, best_zero, form) - best_zero
            scale = _storable(name, _sum(groups * steps) / _sum(steps * steps).clamp(min=1))
            zero = best_zero
        error = groups - (_rounded(groups, scale, zero, form) - zero) * scale
        squares = _sum(error.square_())
        better = squares < best_error
        best_error = torch.where(better, squares, best_error)
        best, best_zero = torch.where(better, scale, best), torch.where(better, zero, best_zero)
    return best, best_zero


def _rounded(groups: Tensor, scale: Tensor, zero: Tensor, form: Form) -> Tensor:
    low, high = form.limits
    return (groups / scale).round_().add_(zero).clamp_(low, high)


def _storable(name: str, scale: Tensor) -> Tensor:
    """The nearest float16 value, as float32."""
    stored = scale.half().float().clamp(min=_SMALLEST)
    if not stored.isfinite().all():
        raise UnsupportedModel(
            f"{name} needs a scale of {float(scale.max()):.3g}, float16 ends at 65504: use --weights bf16 or fp32"
        )
    return stored


def _sum(x: Tensor) -> Tensor:
    """[n,m] -> [n,1] by halves: the same additions for a row whatever stands beside it, as no reduction kernel promises."""
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        rest = x[:, 2 * half :]
        x = x[:, :half] + x[:, half : 2 * half]
        if rest.shape[1]:
            x = torch.cat([x, rest], dim=1)
    return x
