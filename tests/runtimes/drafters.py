"""Drafters that are right as often as a test wants them to be."""

import numpy as np
from numpy.typing import NDArray

from alize.runtimes.sampling import SamplingOptions

__all__ = ["Oracle"]


class Oracle:
    """Knows all tokens of the row, the prompt's too. The draft of call n begins with right[n] right tokens, then a wrong one.

    After the last entry of `right` it begins with the first again. It checks what it is told.
    """

    def __init__(self, row: list[int], right: list[int], *, vocabulary: int, beyond: int = 0) -> None:
        self._row, self._right, self._vocabulary, self._beyond = row, right, vocabulary, beyond
        self.told = 0
        self.calls = 0

    def append(self, tokens: NDArray[np.int64]) -> None:
        assert tokens.tolist() == self._row[self.told : self.told + len(tokens)]
        self.told += len(tokens)

    def rewind(self, n: int) -> None:
        self.told -= n

    def reset(self) -> None:
        self.told = 0

    def draft(self, token: int, *, limit: int, position: int, options: SamplingOptions) -> NDArray[np.int64]:
        assert limit >= 1
        assert position == self.told + 1
        assert token == self._row[self.told]
        right = self._right[self.calls % len(self._right)]
        self.calls += 1
        truth = np.array([*self._row[position:], *[0] * (right + 1)], np.int64)
        draft = truth[: right + 1 + self._beyond]
        draft[right:] = (draft[right:] + 1) % self._vocabulary
        return draft[:limit]
