"""Generation: the one loop over every back-end."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alize.errors import UsageError
from alize.runtimes.sampling import SamplingOptions, sample
from alize.runtimes.session import Session

__all__ = ["ENDED", "FinishReason", "Generation", "GenerationOptions", "generate"]

FinishReason = Literal["stop", "length", "context"]

ENDED = -1
"""What `Generation` yields for a row that has ended while others go on."""


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(SamplingOptions):
    """max_new_tokens: for each row.   stop_token_ids: a row ends behind any of these.   The rest: see SamplingOptions."""

    max_new_tokens: int = 256
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens {self.max_new_tokens} must be 1 or more")


def generate(
    session: Session, tokens: ArrayLike, options: GenerationOptions, *, lengths: ArrayLike | None = None
) -> "Generation":
    """Append tokens[B,S] (ragged with lengths[B], as for Session.append) and generate: an iterator of int64[B].

    The session may hold tokens already; the prompt is appended at the first `next`. Raises what Session.append raises.
    """
    return Generation(session, tokens, options, lengths=lengths)


class Generation(Iterator[NDArray[np.int64]]):
    """Yields the next token of each row, int64[B]: its stop token last, then ENDED while other rows go on.

    finish_reasons: per row None while it runs, then "stop" (a stop token), "length" (max_new_tokens) or "context" (the
    model has no position left for another token; only where some layer is full attention).

    A token is appended when the next one is asked for. So after the loop the session holds the prompt and every token
    but the last one yielded. With B > 1 a row that has ended goes on, unseen, until all have ended.
    """

    def __init__(self, session: Session, tokens: ArrayLike, options: GenerationOptions, *, lengths: ArrayLike | None) -> None:
        self.finish_reasons: list[FinishReason | None] = [None] * session.batch
        self._session, self._options = session, options
        self._pending: tuple[ArrayLike, ArrayLike | None] = (tokens, lengths)
        self._count = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> NDArray[np.int64]:
        if self._count and all(self.finish_reasons):
            raise StopIteration
        tokens, lengths = self._pending
        logits = self._session.append(tokens, lengths=lengths, keep=1)[:, -1]
        drawn = sample(logits, self._session.positions, self._options)
        self._count += 1
        yielded = np.where([reason is None for reason in self.finish_reasons], drawn, ENDED)
        self._finish(yielded)
        self._pending = (drawn[:, None], None)
        return yielded

    def _finish(self, yielded: NDArray[np.int64]) -> None:
        room = self._session.room
        for row, token in enumerate(yielded):
            if self.finish_reasons[row] is not None:
                continue
            if token in self._options.stop_token_ids:
                self.finish_reasons[row] = "stop"
            elif self._count >= self._options.max_new_tokens:
                self.finish_reasons[row] = "length"
            elif room == 0:
                self.finish_reasons[row] = "context"
