"""The weights as an artifact stores them: what the reference computes with, and what the artifact's files have to hold."""

import torch

from alize.models.reference import ALL_ROWS, ROUND_TRIPS, Rows, WeightRule
from alize.optimize.quantisation import Quantisation
from alize.optimize.round_to_integers import Integers, dequantised, quantised
from alize.optimize.rounded import IntegerSource

__all__ = ["as_stored", "changed_integers"]


def as_stored(weights: str | Quantisation, integers: IntegerSource | None = None) -> WeightRule:
    """What an artifact's weights go through: matrices are stored as `weights`, vectors (of norms) in float32 always.

    integers: where those of a matrix are read; without it they are found anew each time, without calibration.
    """
    chosen = Quantisation.parse(weights) if isinstance(weights, str) else weights
    dtype = ROUND_TRIPS[weights] if isinstance(weights, str) and chosen is None else None

    def rule(name: str, stored: torch.Tensor, rows: Rows = ALL_ROWS, /) -> torch.Tensor:
        form = chosen.form(name, stored.shape) if chosen else None
        if form is None:
            return stored.float() if dtype is None or stored.ndim == 1 else stored.to(dtype).float()
        if integers is None:
            return dequantised(quantised(name, stored, form))
        return dequantised(integers(name).rows(rows))

    return rule


def changed_integers(name: str, stored: Integers, expected: Integers) -> str | None:
    """How a matrix of integers differs from those that the weights were rounded to; None where it does not."""
    parts = {
        "integers": (stored.values, expected.values),
        "scales": (stored.scales, expected.scales),
        "zero points": (stored.zero_points, expected.zero_points),
    }
    for part, (found, right) in parts.items():
        if _kind(found) != _kind(right):
            return f"weight {name} is stored as {_kind(found)} {part}, and should be as {_kind(right)}"
    for part, (found, right) in parts.items():
        if found is not None and right is not None and not torch.equal(found, right):
            wrong = found != right
            where = wrong.nonzero()[0].tolist()
            return f"weight {name} differs in {int(wrong.sum())} of {wrong.numel()} {part}, first at {where}"
    return None


def _kind(values: torch.Tensor | None) -> str:
    return "no" if values is None else f"{str(values.dtype).removeprefix('torch.')} {list(values.shape)}"
