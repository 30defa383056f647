"""Philox4x32-10, a counter-based random generator: the same counter and key give the same words in any language.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). docs/sampling.md spells it out.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["philox4x32", "uniform"]

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox4x32(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Ten rounds over counter[...,4], words of 32 bits held in uint64, under a key of two such words -> words[...,4]."""
    c0, c1, c2, c3 = (counter[..., word].astype(np.uint64) for word in range(4))
    k0, k1 = key
    for _ in range(10):
        left, right = c0 * _M0, c2 * _M1  # 32 x 32 bits: 64 bits hold the whole product
        c0, c1, c2, c3 = (right >> _SHIFT) ^ c1 ^ np.uint64(k0), right & _LOW, (left >> _SHIFT) ^ c3 ^ np.uint64(k1), left & _LOW
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def uniform(*, seed: int, rows: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """A float64 in [0, 1), a multiple of 2^-53, for each pair of rows[N] and positions[N] -> [N].

    Key: the low and the high word of the seed (0 .. 2^64-1). Counter: row low, row high, position low, position high.
    Of the result, word 0 is the low and word 1 the high half of 64 bits, of which the upper 53 make the number.
    """
    row, position = rows.astype(np.uint64), positions.astype(np.uint64)
    counter = np.stack([row & _LOW, row >> _SHIFT, position & _LOW, position >> _SHIFT], axis=-1)
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    bits = words[..., 0] | (words[..., 1] << _SHIFT)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
