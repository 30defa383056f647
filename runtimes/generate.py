"""Generation: the one loop over every back-end."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alize.errors import UsageError
from alize.runtimes.sampling import SamplingOptions, sample
from alize.runtimes.session import Session
from alize.runtimes.speculation import Drafter, Speculation

__all__ = ["ENDED", "FinishReason", "Generation", "GenerationOptions", "finish_reason", "generate"]

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


def finish_reason(token: int, options: GenerationOptions, *, count: int, room: int | None) -> FinishReason | None:
    """Why a row ends behind `token`, its count-th new one; None where it goes on. room: see Session."""
    if token in options.stop_token_ids:
        return "stop"
    if count >= options.max_new_tokens:
        return "length"
    return "context" if room == 0 else None


def generate(
    session: Session,
    tokens: ArrayLike,
    options: GenerationOptions,
    *,
    lengths: ArrayLike | None = None,
    drafter: Drafter | None = None,
) -> "Generation":
    """Append tokens[B,S] (ragged with lengths[B], as for Session.append) and generate: an iterator of int64[B].

    The session may hold tokens already; the prompt is appended at the first `next`. Raises what Session.append raises.

    drafter: guesses tokens that the model then checks several at a time (`PromptLookup`, `AssistantModel`); it changes the time
    and not the tokens, see docs/generation.md. For sessions of one row: UsageError for more.
    """
    return Generation(session, tokens, options, lengths=lengths, drafter=drafter)


class Generation(Iterator[NDArray[np.int64]]):
    """Yields the next token of each row, int64[B]: its stop token last, then ENDED while other rows go on.

    finish_reasons: per row None while it runs, then "stop" (a stop token), "length" (max_new_tokens) or "context" (the
    model has no position left for another token; only where some layer is full attention).

    A token is appended when the next one is asked for. So after the loop the session holds the prompt and every token
    but the last one yielded. With B > 1 a row that has ended goes on, unseen, until all have ended.

    With a drafter the session may be ahead of what was yielded: who leaves the loop early and goes on with the session calls
    `close`. drafted, accepted: tokens of drafts so far, and how many of them were right.
    """

    def __init__(
        self,
        session: Session,
        tokens: ArrayLike,
        options: GenerationOptions,
        *,
        lengths: ArrayLike | None,
        drafter: Drafter | None = None,
    ) -> None:
        self.finish_reasons: list[FinishReason | None] = [None] * session.batch
        self._session, self._options = session, options
        self._speculation = None if drafter is None else Speculation(session, drafter)
        self._pending: tuple[ArrayLike, ArrayLike | None] = (tokens, lengths)
        self._drawn: deque[NDArray[np.int64]] = deque()  # drawn and not yielded; the session holds all but the last of them
        self._count = 0
        self._closed = False

    @property
    def drafted(self) -> int:
        """Tokens that the drafter guessed and the model checked."""
        return 0 if self._speculation is None else self._speculation.drafted

    @property
    def accepted(self) -> int:
        """How many of them were what the model draws."""
        return 0 if self._speculation is None else self._speculation.accepted

    def close(self) -> None:
        """Ends the loop here: the session then holds the prompt and every token but the last one yielded. May be called again."""
        self._closed = True
        if self._drawn and self._speculation is not None:
            self._speculation.drop(len(self._drawn))
            self._drawn.clear()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> NDArray[np.int64]:
        if self._closed or (self._count and all(self.finish_reasons)):
            raise StopIteration
        if not self._drawn:
            self._drawn.extend(self._draw())
        drawn = self._drawn.popleft()
        self._count += 1
        yielded = np.where([reason is None for reason in self.finish_reasons], drawn, ENDED)
        self._finish(yielded)
        self._pending = (drawn[:, None], None)
        return yielded

    def _draw(self) -> list[NDArray[np.int64]]:
        """The next token of each row, and with a drafter those behind it that it foresaw."""
        tokens, lengths = self._pending
        if self._speculation is not None and self._count:
            most, stop = self._options.max_new_tokens - self._count, self._options.stop_token_ids
            drawn = self._speculation.draw(int(np.asarray(tokens)[0, 0]), self._options, most=most, stop=stop)
            return [np.array([token], np.int64) for token in drawn]
        logits = self._session.append(tokens, lengths=lengths, keep=1)[:, -1]
        if self._speculation is not None:
            self._speculation.read(np.asarray(tokens)[0, : None if lengths is None else np.asarray(lengths)[0]])
        return [sample(logits, self._session.positions, self._options)]

    def _finish(self, yielded: NDArray[np.int64]) -> None:
        room = None if self._session.room is None else self._session.room + len(self._drawn)
        for row, token in enumerate(yielded.tolist()):
            if self.finish_reasons[row] is None:
                self.finish_reasons[row] = finish_reason(token, self._options, count=self._count, room=room)
