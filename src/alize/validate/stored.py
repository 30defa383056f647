"""The weights as an artifact stores them: what the reference computes with, and what the artifact's files have to hold."""

import torch

from alize.models.reference import ROUND_TRIPS, WeightRule
from alize.optimize.quantisation import Form, Quantisation
from alize.optimize.round_to_integers import Integers, dequantised, quantised

__all__ = ["as_stored", "changed_integers"]


def as_stored(weights: str) -> WeightRule:
    """What an artifact's weights go through: matrices are stored as `weights`, vectors (of norms) in float32 always."""
    chosen = Quantisation.parse(weights)
    dtype = None if chosen else ROUND_TRIPS[weights]

    def rule(name: str, rows: torch.Tensor) -> torch.Tensor:
        form = chosen.form(name, rows.shape) if chosen else None
        if form is not None:
            return dequantised(quantised(name, rows, form))
        return rows.float() if dtype is None or rows.ndim == 1 else rows.to(dtype).float()

    return rule


def changed_integers(name: str, stored: Integers, original: torch.Tensor, form: Form | None) -> str | None:
    """How a matrix of integers differs from what the checkpoint's [out,in] is rounded to; None where it does not."""
    if form is None:
        return f"weight {name} is stored as integers, and should be in floats"
    expected = quantised(name, original, form)
    parts = {
        "integers": (stored.values, expected.values),
        "scales": (stored.scales, expected.scales),
        "zero points": (stored.zero_points, expected.zero_points),
    }
    for part, (found, right) in parts.items():
        if _kind(found) != _kind(right):
            return f"weight {name} is stored as {_kind(found)} {part}, and should be as {_kind(right)}"
    for part, (found, right) in parts.items():
        if found is not None and right is not None and (wrong := found != right).any():
            where = wrong.nonzero()[0].tolist()
            return f"weight {name} differs in {int(wrong.sum())} of {wrong.numel()} {part}, first at {where}"
    return None


def _kind(values: torch.Tensor | None) -> str:
    return "no" if values is None else f"{str(values.dtype).removeprefix('torch.')} {list(values.shape)}"
