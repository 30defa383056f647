"""Keys and values in a GPU's memory: where they lie, and how rows move there. Addresses are plain integers, see cuda.py."""

from alize.artifact.manifest import ModelInfo
from alize.runtimes.cuda import Cuda
from alize.runtimes.linear_rows import cache_names

__all__ = ["DeviceCaches"]

_BYTES = 2  # of a value: caches are in half types


class DeviceCaches:
    """The caches [B,K,C,D] of B rows, key and value of each layer. full, window: C of layers without and with a window."""

    def __init__(self, cuda: Cuda, info: ModelInfo, batch: int, *, full: int, window: int, stream: int) -> None:
        self._cuda, self._info, self._batch, self._stream = cuda, info, batch, stream
        self.names = [name for name, _ in cache_names(info)]
        self._windowed = {name for name, window in cache_names(info) if window}
        self._capacity = {name: window if name in self._windowed else full for name in self.names}
        self._addresses: dict[str, int] = {}
        self._scratch = 0
        try:
            for name in self.names:
                self._addresses[name] = cuda.allocate(batch * self._row(name), stream)
            if self._windowed:
                self._scratch = cuda.allocate(max(self._row(name) for name in self._windowed), stream)
        except BaseException:  # no room for all of them: none is kept
            self.close()
            raise

    @property
    def full(self) -> int:
        """C of the layers without a window; 0 where every layer has one."""
        return next((self._capacity[name] for name in self.names if name not in self._windowed), 0)

    def place(self, name: str, rows: slice) -> tuple[int, tuple[int, int, int, int]]:
        """Address and shape of some rows of a cache."""
        batch = rows.stop - rows.start
        shape = (batch, self._info.key_value_heads, self._capacity[name], self._info.head_size)
        return self._addresses[name] + rows.start * self._row(name), shape

    def move(self, row: int, count: int, keep: int) -> None:
        """In every cache of a layer with a window: the row's last `keep` of `count` positions become its first. By way of a
        scratch buffer: source and destination may overlap."""
        width, heads = _BYTES * self._info.head_size, self._info.key_value_heads
        for name in self._windowed:
            pitch, start, size = width * self._capacity[name], self._addresses[name] + row * self._row(name), width * keep
            self._cuda.copy_rows(self._scratch, size, start + width * (count - keep), pitch, size, heads, self._stream)
            self._cuda.copy_rows(start, pitch, self._scratch, size, size, heads, self._stream)

    def grow(self, capacity: int) -> None:
        """Gives the layers without a window so many places, one cache after the other, and keeps what they hold."""
        width = _BYTES * self._info.head_size
        for name in self.names:
            if name in self._windowed:
                continue
            old, size = self._addresses[name], width * self._capacity[name]
            self._capacity[name] = capacity
            new = self._cuda.allocate(self._batch * self._row(name), self._stream)
            heads = self._batch * self._info.key_value_heads
            self._cuda.copy_rows(new, width * capacity, old, size, size, heads, self._stream)
            self._cuda.synchronise(self._stream)
            self._addresses[name] = new
            self._cuda.free(old)

    def close(self) -> None:
        """Frees them; nothing may be running."""
        for address in (*self._addresses.values(), self._scratch):
            self._cuda.free(address)
        self._addresses, self._scratch = {}, 0

    def _row(self, name: str) -> int:
        """Bytes of one row."""
        return _BYTES * self._info.key_value_heads * self._capacity[name] * self._info.head_size
