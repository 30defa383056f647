"""Which matrices of a mix are stored in 8 bits and which in 4: a budget of bits is spent where it lowers KL most.

Each unit (see `alize.optimize.quantisation`) costs KL in int4 and less of it in int8, as `alize.sensitivity` estimates. Units
are taken to int8 in order of the KL that a bit saves, as long as they fit in the budget. The order depends on the checkpoint, the
text and the form of the int4 matrices alone: every target gets the same integers.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alize.artifact.pieces import Pieces
from alize.calibration_text import BUILT_IN, CalibrationText
from alize.errors import UsageError
from alize.mixing_costs import SEQUENCE, SEQUENCES
from alize.models.checkpoint import Checkpoint
from alize.models.registry import single_weights
from alize.optimize.quantisation import MIXED, Form, Quantisation, unit_of
from alize.progress import Progress
from alize.sensitivity import Loss, losses

__all__ = ["Mix", "check_budget", "choose", "plan_mix", "text_for_mix"]

_PLAN = "mix.losses"
_DIGITS = 4


@dataclass(frozen=True)
class Mix:
    """quantisation: with the wide units.   bits: of a weight, scales and zero points counted, as far as a mix chooses them.

    kl: what the mix is expected to add, nats a token.   curve: (bits, KL) from all in int4 to all in int8.   text: what it was
    estimated on.
    """

    quantisation: Quantisation
    bits: float
    kl: float
    curve: tuple[tuple[float, float], ...]
    text: str

    def as_structure(self) -> dict[str, Any]:
        """For the manifest's `structure`: the layers of each part in int8."""
        parts = defaultdict[str, list[int]](list)
        for unit in self.quantisation.wide:
            _, layer, part = unit.split(".", 2)
            parts[part].append(int(layer))
        return {
            "bits": _rounded(self.bits),
            "estimated_kl": _rounded(self.kl),
            "estimated_kl_of_int4": _rounded(self.curve[0][1]),
            "text": self.text,
            "int8": {part: sorted(layers) for part, layers in sorted(parts.items())},
        }

    def line(self) -> str:
        """For the progress."""
        return (
            f"{len(self.quantisation.wide)} of {len(self.curve) - 1} groups of matrices in int8: {self.bits:.3f} bits a weight, "
            f"estimated KL {self.kl:.4f} instead of {self.curve[0][1]:.4f} in int4"
        )


@dataclass(frozen=True)
class _Unit:
    """weights: how many.   narrow, wide: bytes in int4 and in int8."""

    weights: int = 0
    narrow: int = 0
    wide: int = 0

    def __add__(self, other: "_Unit") -> "_Unit":
        return _Unit(self.weights + other.weights, self.narrow + other.narrow, self.wide + other.wide)


def check_budget(shapes: Mapping[str, Sequence[int]], quantisation: Quantisation) -> None:
    """shapes: of every weight, by name. Raises UsageError for a budget that int4 goes beyond, or that int8 needs no more than."""
    if not quantisation.budget:
        return
    total = sum(_units(shapes, quantisation).values(), _Unit())
    low, high = (8 * size / total.weights for size in (total.narrow, total.wide))
    if low <= quantisation.budget <= high:
        return
    from_to = f"from {math.ceil(100 * low) / 100:.2f} to {math.floor(100 * high) / 100:.2f}"
    if quantisation.budget < low:
        raise UsageError(
            f"--bits {quantisation.budget:g}: int4 alone takes {low:.2f} bits a weight here, scales counted: give {from_to}, "
            "or larger groups"
        )
    raise UsageError(
        f"--bits {quantisation.budget:g}: int8 takes {high:.2f} bits a weight here: use --weights int8, or give {from_to}"
    )


def text_for_mix(weights: str, text: CalibrationText | None, checkpoint: Checkpoint) -> CalibrationText | None:
    """What a mix is chosen on: what is calibrated with, else the text that comes with alize; None for other `weights`.

    Raises UsageError: without a tokenizer no text can be read.
    """
    chosen = Quantisation.parse(weights)
    if chosen is None or not chosen.budget:
        return None
    text = text or CalibrationText.open(BUILT_IN)
    text.sequences(checkpoint, option=f"--weights {MIXED}")
    return text


def plan_mix(checkpoint: Checkpoint, weights: str, text: CalibrationText, pieces: Pieces, *, progress: Progress) -> Mix:
    """Estimates what each matrix loses, and chooses; an estimate that is in `pieces` is used as it is.

    weights: the name of a mix.

    Raises what `losses` raises, UsageError for a text that is too short.
    """
    quantisation = Quantisation.parse(weights)
    assert quantisation is not None
    path = pieces.get(_PLAN)
    if path is None:
        found = losses(checkpoint, quantisation, _samples(text.sequences(checkpoint)), pieces, progress=progress)
        path = pieces.put(_PLAN, [json.dumps(found).encode()])
    known: dict[str, Loss] = {name: (narrow, wide) for name, (narrow, wide) in json.loads(path.read_bytes()).items()}
    shapes = {name: weight.shape for name, weight in single_weights(checkpoint).items()}
    mix = choose(shapes, quantisation, known, text=str(text))
    progress.note(mix.line())
    return mix


def choose(shapes: Mapping[str, Sequence[int]], quantisation: Quantisation, known: Mapping[str, Loss], *, text: str = "") -> Mix:
    """The mix that a budget buys. shapes: of every weight, by name.   known: what matrices lose."""
    units = _units(shapes, quantisation)
    saved, kl = defaultdict[str, float](float), sum(narrow for narrow, _ in known.values())
    for name, (narrow, wide) in known.items():
        saved[str(unit_of(name))] += narrow - wide
    total = sum(units.values(), _Unit())
    size, limit = 8 * total.narrow, quantisation.budget * total.weights
    curve = [(size / total.weights, kl)]
    chosen, used, lost = set[str](), size, kl
    for name in sorted(units, key=lambda name: (-saved[name] / (units[name].wide - units[name].narrow), name)):
        more = 8 * (units[name].wide - units[name].narrow)
        size, kl = size + more, kl - saved[name]
        curve.append((size / total.weights, kl))
        if used + more <= limit:
            chosen.add(name)
            used, lost = used + more, lost - saved[name]
    return Mix(replace(quantisation, wide=frozenset(chosen)), used / total.weights, lost, tuple(curve), text)


def _units(shapes: Mapping[str, Sequence[int]], quantisation: Quantisation) -> dict[str, _Unit]:
    found = defaultdict[str, _Unit](_Unit)
    for name, shape in shapes.items():
        unit, form = unit_of(name), quantisation.form(name, shape)
        if unit is not None and form is not None:
            wide = Form(8, shape[-1], form.symmetric)
            found[unit] += _Unit(math.prod(shape), form.stored_bytes(shape), wide.stored_bytes(shape))
    return dict(found)


def _samples(sequences: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Their beginnings, of so many spread evenly over the text."""
    places = np.linspace(0, len(sequences) - 1, min(len(sequences), SEQUENCES)).astype(np.int64)
    return [sequences[place][:SEQUENCE] for place in places]


def _rounded(figure: float) -> float:
    return float(f"{figure:.{_DIGITS}g}")
