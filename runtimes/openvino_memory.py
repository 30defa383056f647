"""The memory of a paged cache: tensors of an OpenVINO request, in blocks that tables number."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alize.runtimes.block_tables import Pool, Table

__all__ = ["PagedMemory"]


class PagedMemory:
    """The keys and values of some layers in blocks: tensors [blocks,K,...] as the compiled graph wants them."""

    def __init__(self, request: Any, layers: Sequence[int], inputs: Mapping[str, Any], *, hidden: bool) -> None:
        """inputs: of the compiled graph, by name.   hidden: block 0 is for what a window hides, and holds zeros."""
        self.layers, self.hidden = layers, hidden
        self._request = request
        self._inputs = {name: inputs[name] for layer in layers for name in (f"key_cache.{layer}", f"value_cache.{layer}")}
        self._tensors: dict[str, Any] = {}
        self.size = int(inputs[f"value_cache.{layers[0]}"].get_partial_shape()[2].get_length())
        self.pool = Pool(self._grow, self._copy)
        self.pool.shrink(0)
        if hidden:
            self.pool.reserve(1)
            block = self.pool.take()
            for tensor in self._tensors.values():
                _part(tensor, block, block + 1).data[:] = 0

    def shrink_unused(self) -> None:
        """Gives the memory back where no table has a block."""
        if self.pool.used == self.hidden:
            self.pool.shrink(int(self.hidden))

    def indices(self, tables: Sequence[Table], counts: Sequence[int]) -> NDArray[np.int32]:
        """The first counts[i] blocks of some rows, one row behind another; what was forgotten is named where it is hidden."""
        forgotten = ([0] * (table.first // table.size) if self.hidden else [] for table in tables)
        rows = zip(forgotten, tables, counts, strict=True)
        return np.array([block for some, table, count in rows for block in (some + table.blocks)[:count]], np.int32)

    def read(self, blocks: Sequence[int]) -> dict[str, NDArray[np.uint8]]:
        """What is in some blocks: of each tensor uint8 [blocks,bytes]."""
        return {name: _bytes(tensor)[list(blocks)] for name, tensor in self._tensors.items()}

    def write(self, blocks: Sequence[int], values: Mapping[str, NDArray[np.uint8]]) -> None:
        """The other way round."""
        for name, tensor in self._tensors.items():
            _bytes(tensor)[list(blocks)] = values[name]

    def _grow(self, blocks: int) -> None:
        import openvino

        for name, value in self._inputs.items():
            _, *rest = value.get_partial_shape()
            tensor = openvino.Tensor(value.get_element_type(), [blocks, *(size.get_length() for size in rest)])
            kept = min(blocks, self._tensors[name].shape[0]) if name in self._tensors else 0
            if kept:
                _part(self._tensors[name], 0, kept).copy_to(_part(tensor, 0, kept))
            self._request.set_tensor(name, tensor)
            self._tensors[name] = tensor

    def _copy(self, source: int, target: int) -> None:
        for tensor in self._tensors.values():
            _part(tensor, source, source + 1).copy_to(_part(tensor, target, target + 1))


def _bytes(tensor: Any) -> NDArray[np.uint8]:
    """The same memory as uint8 [blocks,bytes]."""
    memory: NDArray[np.uint8] = tensor.data.view(np.uint8).reshape(tensor.shape[0], -1)
    return memory


def _part(tensor: Any, first: int, stop: int) -> Any:
    """Some blocks, in the same memory."""
    import openvino

    _, *rest = tensor.shape
    return openvino.Tensor(tensor, [first, 0, 0, 0], [stop, *rest])
