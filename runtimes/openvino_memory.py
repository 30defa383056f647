"""The memory of a paged cache: tensors of an OpenVINO request, in blocks that tables number."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alize.runtimes.block_tables import Pool, Table

__all__ = ["Block", "PagedMemory"]

Block = tuple[Any, list[int]]
"""Of a cache's tensor: its type, and the sizes of a block."""


class PagedMemory:
    """The keys and values of some layers in blocks: tensors [blocks,K,...] as the compiled graph wants them."""

    def __init__(
        self, layers: Sequence[int], blocks: Mapping[str, Block], give: Callable[[str, Any], None], *, hidden: bool
    ) -> None:
        """blocks: of `key_cache.{layer}` and `value_cache.{layer}`.   give: takes a tensor when it has grown.   hidden: block 0
        is for what a window hides, and holds zeros."""
        self.layers, self.hidden = layers, hidden
        self._blocks, self._give = blocks, give
        self._tensors: dict[str, Any] = {}
        self.size = blocks[f"value_cache.{layers[0]}"][1][1]
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

        for name, (kind, sizes) in self._blocks.items():
            tensor = openvino.Tensor(kind, [blocks, *sizes])
            kept = min(blocks, self._tensors[name].shape[0]) if name in self._tensors else 0
            if kept:
                _part(self._tensors[name], 0, kept).copy_to(_part(tensor, 0, kept))
            self._give(name, tensor)
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
