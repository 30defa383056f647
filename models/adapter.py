"""What an adapter changes in a checkpoint's tensors, done while they are read: LoRA (Hu et al. 2021, arXiv:2106.09685).

    W + scale * left @ right        W [out,in], left [out,r], right [r,in]

Factors stay mapped; a product is made a block of rows at a time, so that besides the merged matrix only a block is in memory.
The arithmetic is that of peft's merge_and_unload, bit for bit where its products are: factors in float32, the sum in float32,
one rounding to the dtype that the weight is stored in; for embeddings and for what peft calls target parameters the product is
rounded to that dtype before it is added, too.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alize.errors import AdapterError
from alize.models.tensor_info import TensorInfo, View

__all__ = ["BLOCK", "Adapter", "LowRank", "Merge"]

BLOCK = 1 << 20  # elements of a product made together
HASHED = 1 << 24  # bytes hashed together


@dataclass(frozen=True)
class LowRank:
    """A product that is added to a matrix, or to part of a tensor.

    left: [out,r].   right: [r,in].   transposed: what is added is the product's transpose.
    rounded: the product is rounded to the weight's dtype before it is added.
    index: which matrix of a stack [E,out,in].   rows: which rows (from, to) of the stored matrix; None = all.
    """

    left: Callable[[], Tensor]
    right: Callable[[], Tensor]
    rank: int
    scale: float
    rounded: bool = False
    transposed: bool = False
    index: int | None = None
    rows: tuple[int, int] | None = None

    def add_to(self, place: Tensor) -> None:
        """Adds the product to the matrix `place` [out,in], in place."""
        compute = torch.promote_types(torch.float32, place.dtype)
        left, right = self.left().to(compute), self.right().to(compute)
        step = max(1, BLOCK // max(1, place.shape[1]))
        for start in range(0, place.shape[0], step):
            block = slice(start, start + step)
            product = (left @ right[:, block]).T if self.transposed else left[block] @ right
            product *= self.scale
            place[block] += product.to(place.dtype) if self.rounded else product


@dataclass(frozen=True)
class Merge:
    """What becomes of one stored tensor.

    name: of the tensor, for messages.   products: what is added.   whole: another tensor in its place, converted to its dtype.
    """

    name: str
    products: tuple[LowRank, ...] = ()
    whole: Callable[[], Tensor] | None = None

    def merged(self, stored: Tensor, index: int | None = None) -> Tensor:
        """The tensor, or of a stack [E,out,in] the matrix `index`, that `stored` is, in memory of its own and in its dtype.

        Raises AdapterError where the sum of finite numbers is too large for that dtype.
        """
        base = stored
        if self.whole is not None:
            whole = self.whole().to(stored.dtype)
            base = whole if index is None else whole[index]
        result = base.clone(memory_format=torch.contiguous_format)
        for product in self.products:
            if index is not None and product.index != index:
                continue
            matrix = result if index is not None or product.index is None else result[product.index]
            product.add_to(matrix if product.rows is None else matrix[slice(*product.rows)])
        if not _finite(result) and _finite(base):
            raise AdapterError(
                f"{self.name} plus what the adapter adds to it does not fit in {str(stored.dtype).removeprefix('torch.')}: "
                "the adapter belongs to another model, or needs the base in float32"
            )
        return result


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits a checkpoint.

    settings: of adapter_config.json, all that decides what is merged.   tensors: of adapter_model.safetensors.
    merges: by the name of the checkpoint's tensor.   view: a tensor as it is stored, mapped.
    """

    settings: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    merges: Mapping[str, Merge]
    view: View
    _identity: list[str] = field(default_factory=list, compare=False)

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(info.size for info in self.tensors.values())

    def sha256(self, *, advance: Callable[[int], object] | None = None) -> str:
        """Identity of settings and tensors, in hex, whatever the folder's name. advance: told the bytes read, tensor by tensor.

        Later calls answer from the first. Raises AdapterError naming a tensor that holds NaN or an infinity.
        """
        if not self._identity:
            self._identity.append(self._hash(advance or (lambda _: None)))
        return self._identity[0]

    def _hash(self, advance: Callable[[int], object]) -> str:
        rows = []
        for name, info in sorted(self.tensors.items()):
            values = self.view(info)
            if not _finite(values):
                raise AdapterError(f"{info.file}: tensor {name} holds NaN or infinite values: the adapter is damaged")
            rows.append([name, info.dtype, list(info.shape), _digest(values)])
            advance(info.size)
        identity = json.dumps([self.settings, rows], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(identity.encode()).hexdigest()


def _finite(values: Tensor) -> bool:
    return values.numel() == 0 or bool(torch.stack(torch.aminmax(values)).isfinite().all())


def _digest(values: Tensor) -> str:
    data = values.contiguous().view(torch.uint8).flatten().numpy().data
    digest = hashlib.sha256()
    for start in range(0, len(data), HASHED):
        digest.update(data[start : start + HASHED])
    return digest.hexdigest()
