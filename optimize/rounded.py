"""The integers of a model, rounded once: where a build keeps them, and how a lowering, a comparison and the reference read them.

    IntegerSource       name of a matrix [out,in] -> its Integers: what an artifact of any target has to hold

A matrix lies in one file, the same whatever the target: its values row by row, nibbles packed as ONNX has them, then from the
next multiple of 64 bytes on its scales in float16, then its zero points packed like the values.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alize.artifact.pieces import Pieces
from alize.models.checkpoint import Checkpoint, Weight
from alize.optimize.quantisation import Form, Quantisation
from alize.optimize.round_to_integers import Integers, pack_nibbles, quantised, unpack_nibbles

__all__ = ["IntegerSource", "Rounded", "digest_of", "encoded", "rounded_now"]

_ALIGNMENT = 64

IntegerSource = Callable[[str], Integers]
"""source(name of one matrix of the model) -> its integers, scales and zero points. Each call may read them anew."""


@dataclass(frozen=True)
class Rounded:
    """The integers of a build, in its pieces. quantisation: what decides their forms.   forms, shapes: of every matrix that is
    stored as integers, by name.

    A call gives the Integers of a matrix, read from its file: values of 8 bits stay mapped, nibbles are unpacked.
    """

    pieces: Pieces
    quantisation: Quantisation
    forms: Mapping[str, Form]
    shapes: Mapping[str, tuple[int, ...]]

    @staticmethod
    def of(weights: Mapping[str, Weight], quantisation: Quantisation, pieces: Pieces) -> "Rounded":
        """weights: every matrix under a name of its own (`single_weights`)."""
        forms = {name: quantisation.form(name, weight.shape) for name, weight in weights.items()}
        chosen = {name: form for name, form in forms.items() if form is not None}
        return Rounded(pieces, quantisation, chosen, {name: weights[name].shape for name in chosen})

    def missing(self) -> list[str]:
        """The matrices that are not there yet, in the order of the layers."""
        return [name for name in self.forms if self.pieces.get(_piece(name)) is None]

    def put(self, name: str, integers: Integers) -> None:
        """Keeps a matrix that was rounded."""
        self.pieces.put(_piece(name), encoded(integers, self.forms[name]))

    def path(self, name: str) -> Path:
        """The file that holds a matrix, as the module's docstring says."""
        path = self.pieces.get(_piece(name))
        if path is None:
            raise KeyError(f"{name} was not rounded yet")
        return path

    def __call__(self, name: str) -> Integers:
        return _decoded(self.path(name), self.shapes[name], self.forms[name])

    def places(self, name: str) -> tuple[tuple[int, int], ...]:
        """Offset and length in the file, in bytes, of values, scales and, unless symmetric, zero points."""
        return _places(self.shapes[name], self.forms[name])

    def digest(self) -> str:
        """Identity of all integers, the same for every target: see `digest_of`."""
        return _digest({name: self.pieces.digest(_piece(name)) for name in self.forms})


def rounded_now(checkpoint: Checkpoint, weights: Mapping[str, Weight], quantisation: Quantisation) -> IntegerSource:
    """A source that rounds a matrix whenever it is asked for one, without calibration.

    Raises what `quantised` raises.
    """

    def source(name: str) -> Integers:
        form = quantisation.form(name, weights[name].shape)
        if form is None:
            raise KeyError(f"{name} is not stored as integers")
        return quantised(name, checkpoint.stored(weights[name])[0], form)

    return source


def digest_of(names: Mapping[str, Form], source: IntegerSource) -> str:
    """sha256, in hex, of the canonical JSON of {name: sha256 of the file that holds the matrix}."""
    digests = {}
    for name, form in names.items():
        digest = hashlib.sha256()
        for part in encoded(source(name), form):
            digest.update(part)
        digests[name] = digest.hexdigest()
    return _digest(digests)


def _digest(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def encoded(integers: Integers, form: Form) -> list[memoryview]:
    """The parts of a matrix's file."""
    pack = pack_nibbles if form.bits == 4 else _bytes
    parts = [pack(integers.values), _bytes(integers.scales)]
    if integers.zero_points is not None:
        parts.append(pack(integers.zero_points))
    padding = torch.zeros(-len(parts[0]) % _ALIGNMENT, dtype=torch.uint8)
    return [part.numpy().data for part in (parts[0], padding, *parts[1:])]


def _places(shape: tuple[int, ...], form: Form) -> tuple[tuple[int, int], ...]:
    count = int(np.prod(shape))
    groups = count // form.group
    sizes = [(count * form.bits + 7) // 8, 2 * groups]
    if not form.symmetric:
        sizes.append((groups * form.bits + 7) // 8)
    scales = sizes[0] + -sizes[0] % _ALIGNMENT
    return tuple(zip((0, scales, scales + sizes[1]), sizes, strict=False))


def _decoded(path: Path, shape: tuple[int, ...], form: Form) -> Integers:
    data = np.memmap(path, dtype=np.uint8, mode="c")  # copy on write: torch wants to be able to write
    values, scales, *zeros = (torch.from_numpy(data[start : start + size]) for start, size in _places(shape, form))
    small = (*shape[:-1], shape[-1] // form.group)
    return Integers(
        _unpacked(values, shape, form),
        scales.view(torch.float16).reshape(small),
        _unpacked(zeros[0], small, form) if zeros else None,
    )


def _unpacked(packed: Tensor, shape: tuple[int, ...], form: Form) -> Tensor:
    if form.bits == 4:
        return unpack_nibbles(packed, int(np.prod(shape)), signed=form.symmetric).reshape(shape)
    return packed.view(torch.int8 if form.symmetric else torch.uint8).reshape(shape)


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().reshape(-1).view(torch.uint8)


def _piece(name: str) -> str:
    """Of a matrix: names of weights are words with dots, so that they serve as file names."""
    return f"{name}.integers"
