"""Prompt lookup: what followed the last few tokens when they occurred before is the guess of what follows now.

Saxena, *Prompt lookup decoding*, 2023. Here the place that shares most tokens with the end is copied, of equals the latest, and
twice as many tokens are copied as it shares: a draft is short where a word occurred before by chance, and long once a passage is
being repeated. As in LZ77 the copy may run into itself, so that a loop is continued as a loop.

    ... the old boat was sold. The new boat was      shares `boat was`: the draft is `sold . The new`
"""

import numpy as np
from numpy.typing import NDArray

from alize.errors import UsageError
from alize.runtimes.sampling import SamplingOptions

__all__ = ["PromptLookup"]

_REACH = 1 << 16  # tokens that are looked through: memory stays constant in an endless session


class PromptLookup:
    """A `Drafter` without a model, over the tokens of one session (the last 65,536 of them at least).

    num_tokens: of a draft, at most.   min_ngram: of the last tokens so many must have occurred together before.   max_ngram: so
    many are compared. Raises UsageError.
    """

    def __init__(self, *, num_tokens: int = 16, min_ngram: int = 1, max_ngram: int = 16) -> None:
        if num_tokens < 1:
            raise UsageError(f"num_tokens {num_tokens} must be 1 or more: leave the drafter out to generate without drafts")
        if not 1 <= min_ngram <= max_ngram:
            raise UsageError(f"min_ngram {min_ngram} and max_ngram {max_ngram} must be 1 or more and the first not the larger")
        self._num_tokens, self._min, self._max = num_tokens, min_ngram, max_ngram
        self._tokens = np.zeros(1024, np.int64)
        self._size = 0

    def append(self, tokens: NDArray[np.int64]) -> None:
        """See Drafter."""
        kept = self._tokens[: self._size]
        if self._size + len(tokens) > len(self._tokens):
            self._tokens = np.zeros(2 * min(self._size + len(tokens), _REACH), np.int64)
            kept, tokens = kept[-_REACH:], tokens[-_REACH:]
            self._tokens[: len(kept)] = kept
        self._size = len(kept) + len(tokens)
        self._tokens[len(kept) : self._size] = tokens

    def rewind(self, n: int) -> None:
        """See Drafter."""
        self._size = max(0, self._size - n)

    def reset(self) -> None:
        """See Drafter."""
        self._size = 0

    def draft(self, token: int, *, limit: int, position: int, options: SamplingOptions) -> NDArray[np.int64]:  # noqa: ARG002
        """See Drafter."""
        text = np.append(self._tokens[: self._size], token)
        start, shared = self._find(text)
        if shared < self._min:
            return np.zeros(0, np.int64)
        return np.resize(text[start:], min(limit, self._num_tokens, 2 * shared))  # repeated where it runs into its own end

    def _find(self, text: NDArray[np.int64]) -> tuple[int, int]:
        """Behind the place that shares most tokens with the end, at most max_ngram; and how many it shares, 0 for none."""
        ends = np.flatnonzero(text[:-1] == text[-1])
        if not len(ends):
            return 0, 0
        shared = 1
        while shared < self._max:
            longer = ends[ends >= shared]
            longer = longer[text[longer - shared] == text[-1 - shared]]
            if not len(longer):
                break
            ends, shared = longer, shared + 1
        return int(ends[-1]) + 1, shared
