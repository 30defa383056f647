"""How far the reference runs of an interrupted build got: the hidden states behind the last layer that was done."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alize.artifact.pieces import Pieces
from alize.models.reference import Halfway
from alize.models.routing import Routing

__all__ = ["PieceBookmark"]

_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.int64)}


@dataclass(frozen=True)
class PieceBookmark:
    """The bookmark of one run, a piece of the unfinished build. A later layer's takes the place of the one before.

    identity: of what is run, so that another run, over other tokens say, does not go on from it.
    """

    pieces: Pieces
    identity: str

    @staticmethod
    def of(pieces: Pieces, name: str, arrays: Sequence[NDArray[np.int64]]) -> "PieceBookmark":
        """name: of the run.   arrays: the tokens, and which experts are followed."""
        digest = hashlib.sha256(name.encode())
        for array in arrays:
            digest.update(json.dumps(array.shape).encode() + array.tobytes())
        return PieceBookmark(pieces, f"reference-{digest.hexdigest()[:16]}")

    def load(self, layers: int) -> Halfway | None:
        """The furthest that is there and whole, of a model of so many layers."""
        for done in range(layers, 0, -1):
            path = self.pieces.get(self._piece(done))
            if path is not None:
                return _read(path, done)
        return None

    def save(self, halfway: Halfway) -> None:
        """Keeps it, and then lets go of the layer before."""
        tensors = list(halfway.hidden)
        for routing in (layer for layers in halfway.routed for layer in layers):
            tensors += [torch.from_numpy(array) for array in (routing.experts, routing.logits, routing.lag)]
        header = {"sequences": len(halfway.hidden), "tensors": [[str(one.dtype), list(one.shape)] for one in tensors]}
        data = [one.contiguous().reshape(-1).view(torch.uint8).numpy().data for one in tensors]
        self.pieces.put(self._piece(halfway.layers), [json.dumps(header).encode() + b"\n", *data])
        self.pieces.drop(self._piece(halfway.layers - 1))

    def _piece(self, layers: int) -> str:
        return f"{self.identity}.{layers}"


def _read(path: Path, done: int) -> Halfway:
    with path.open("rb") as file:
        header = json.loads(file.readline())
        tensors = [_tensor(file.read, _DTYPES[dtype], shape) for dtype, shape in header["tensors"]]
    count = header["sequences"]
    hidden, rest = tensors[:count], [one.numpy() for one in tensors[count:]]
    layers = [Routing(*rest[start : start + 3]) for start in range(0, len(rest), 3)]
    each = len(layers) // count
    return Halfway(done, hidden, [layers[number * each : (number + 1) * each] for number in range(count)])


def _tensor(read: Callable[[int], bytes], dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    size = int(np.prod(shape)) * dtype.itemsize
    return torch.frombuffer(bytearray(read(size)), dtype=dtype).reshape(shape)
