"""The fake back-end: a "language model" of integer arithmetic that any test can run, and whose every bit can be foreseen.

It has the dependences of a real one and nothing else. With mix() a hash of 64 bits and sums modulo 2^64:

    state[0, i]   = mix(token[i], position[i])
    state[l+1, i] = mix(state[l, i] + sum of mix(state[l, j]) over the j that i sees in layer l)      j <= i, i - j < W
    logits[i, v]  = mix(state[L, i], v), scaled to -8..8

Layer l caches mix(state[l, j]) for every j, as a transformer caches keys and values. A position too many or too few, a
wrong absolute position or a stale entry changes every logit; the way an append is cut into chunks changes none.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import Manifest, ModelInfo

__all__ = ["FakeEngine", "FakeRunner", "available", "devices", "fingerprint", "open"]


def available() -> str | None:
    """Always: it needs numpy only."""
    return None


def devices() -> list[str]:
    return ["cpu"]


def fingerprint(device: str) -> dict[str, str]:
    return {"backend": "fake", "device": device}


def open(  # noqa: A001  the name that every back-end gives it
    folder: Path,  # noqa: ARG001  no file holds any weight
    manifest: Manifest,
    device: str,  # noqa: ARG001
    options: Mapping[str, str | int | bool],  # noqa: ARG001
    taps: Sequence[str] = (),  # noqa: ARG001  it has no tensors
) -> "FakeEngine":
    """A model with the manifest's layers, windows and vocabulary. No file is read."""
    return FakeEngine(manifest.model)


class FakeEngine:
    """Engine of the fake back-end."""

    def __init__(self, info: ModelInfo) -> None:
        self._info = info

    def runner(self, batch: int) -> "FakeRunner":
        return FakeRunner(self._info.windows, self._info.vocab_size, batch=batch)

    def close(self) -> None:
        """Nothing to release."""


class FakeRunner:
    """Runner of the fake back-end. windows: one W a layer, 0 = full attention."""

    def __init__(self, windows: tuple[int, ...], vocab_size: int, *, batch: int) -> None:
        self._windows = windows
        self._vocabulary = np.arange(vocab_size, dtype=np.uint64)
        self._caches = [[_EMPTY for _ in windows] for _ in range(batch)]  # [row][layer] -> uint64[cached]

    def step(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        """See Runner."""
        kept = np.zeros((len(tokens), keep or tokens.shape[1], len(self._vocabulary)), np.float32)
        for row, length in enumerate(lengths):
            state = self._append(row, tokens[row, :length], int(positions[row]))
            if keep:
                state = state[-keep:]
                kept[row, keep - len(state) :] = self._logits(state)
            else:
                kept[row, :length] = self._logits(state)
        return kept

    def drop_last(self, n: int) -> None:
        """See Runner."""
        self._caches = [[cache[: len(cache) - n] for cache in row] for row in self._caches]

    def evict(self, keep: int) -> None:
        """See Runner."""
        for row in self._caches:
            for layer, window in enumerate(self._windows):
                if window:
                    row[layer] = row[layer][max(0, len(row[layer]) - keep) :]

    def cached(self) -> int:
        """See Runner."""
        windowed = [layer for layer, window in enumerate(self._windows) if window] or range(len(self._windows))
        return max(len(row[layer]) for row in self._caches for layer in windowed)

    def reset(self) -> None:
        """See Runner."""
        self._caches = [[_EMPTY for _ in row] for row in self._caches]

    def close(self) -> None:
        """See Runner."""
        self._caches = []

    def _append(self, row: int, tokens: NDArray[np.int64], position: int) -> NDArray[np.uint64]:
        places = np.arange(position, position + len(tokens), dtype=np.uint64)
        state = _mix(_mix(tokens.astype(np.uint64)) + places)
        for layer, window in enumerate(self._windows):
            cache = np.concatenate([self._caches[row][layer], _mix(state)])
            self._caches[row][layer] = cache
            sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(cache, dtype=np.uint64)])  # wraps at 2^64
            stop = np.arange(len(cache) - len(tokens), len(cache)) + 1
            start = np.maximum(stop - window, 0) if window else np.zeros_like(stop)
            state = _mix(state + sums[stop] - sums[start])
        return state

    def _logits(self, state: NDArray[np.uint64]) -> NDArray[np.float32]:
        bits = _mix(state[:, None] + _mix(self._vocabulary)) >> np.uint64(44)  # 20 bits: exact in float32
        return (bits.astype(np.float32) - np.float32(2**19)) / np.float32(2**16)


_EMPTY = np.zeros(0, np.uint64)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014) behind an offset, so that 0 does not stay 0."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
