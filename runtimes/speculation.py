"""Speculative decoding: a drafter guesses tokens, one append of the model checks them all, and those it would have drawn stay.

    the session holds           ... the cat          and `sat` was drawn, but not appended yet
    the drafter guesses         on the hat
    append, keep = 4            sat on the hat       logits behind each of the four
    the model draws behind them on the mat           `hat` is not what it draws
    rewind 1                    ... the cat sat on the
    drawn                       on the mat           three tokens for one append

The token at a position is a function of the model's logits there, the seed and the position alone (docs/sampling.md). So it is
drawn as ever and compared with the draft: whatever the drafter says, the tokens are those of generating without it, greedy or
sampled, but for what the engine's logits of several tokens at once differ from those of one by one (docs/generation.md).
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from alize.errors import UsageError
from alize.runtimes.sampling import SamplingOptions, sample
from alize.runtimes.session import Session

__all__ = ["Drafter", "Speculation"]


class Drafter(Protocol):
    """Guesses what comes next. It is told of every token that the session holds, in the session's own words.

    A wrong guess costs time and never a token. One drafter belongs to one session.
    """

    def append(self, tokens: NDArray[np.int64]) -> None:
        """tokens[S]: the session holds them now, behind what it held."""
        ...

    def rewind(self, n: int) -> None:
        """The session has dropped its last n tokens."""
        ...

    def reset(self) -> None:
        """The session has forgotten everything."""
        ...

    def draft(self, token: int, *, limit: int, position: int, options: SamplingOptions) -> NDArray[np.int64]:
        """int64[n], 0 <= n <= limit: a guess of what follows `token`, itself the one that follows what was appended.

        position: that of the first token of the guess; with `options` it decides what is drawn there from given logits.
        """
        ...


class Speculation:
    """A session of one row with its drafter.   drafted, accepted: tokens so far. Raises UsageError for more than one row."""

    def __init__(self, session: Session, drafter: Drafter) -> None:
        if session.batch != 1:
            raise UsageError(
                f"a drafter serves one row and this session has {session.batch} (rows would accept different numbers of tokens, "
                "and rewinding drops the same of all): generate without one, or with a session for each row"
            )
        self._session, self._drafter = session, drafter
        self.drafted = self.accepted = 0

    def read(self, tokens: NDArray[np.int64]) -> None:
        """tokens[S] were appended to the session as they are."""
        self._drafter.append(tokens)

    def drop(self, n: int) -> None:
        """Rewinds the session and the drafter by n tokens."""
        self._session.rewind(n)
        self._drafter.rewind(n)

    def draw(self, token: int, options: SamplingOptions, *, most: int, stop: tuple[int, ...]) -> list[int]:
        """Appends `token` and draws 1..most tokens behind it, none behind one of `stop`: the session holds all but the last."""
        draft = self._draft(token, options, most - 1)
        logits = self._session.append(np.concatenate([[token], draft])[None], keep=len(draft) + 1)[0]
        drawn = list(self._drawn(logits, draft, options, stop))
        accepted = len(drawn) - 1
        self._session.rewind(len(draft) - accepted)
        self.drafted += len(draft)
        self.accepted += accepted
        self._drafter.append(np.array([token, *drawn[:-1]], np.int64))
        return drawn

    def _draft(self, token: int, options: SamplingOptions, limit: int) -> NDArray[np.int64]:
        """One chunk with `token` at most: then all of it can be dropped again. And the session has room for all of it."""
        room, chunk = self._session.room, self._session.limits.chunk
        limit = min(limit, chunk - 1, limit if room is None else room - 1)
        if limit < 1:
            return np.zeros(0, np.int64)
        draft = self._drafter.draft(token, limit=limit, position=self._session.position + 1, options=options)
        unknown = np.flatnonzero((draft < 0) | (draft >= self._session.vocab_size))  # a larger model of the same tokenizer
        return draft[: unknown[0]] if len(unknown) else draft

    def _drawn(
        self, logits: NDArray[np.float32], draft: NDArray[np.int64], options: SamplingOptions, stop: tuple[int, ...]
    ) -> Iterator[int]:
        """What the model draws behind each appended token, up to the first that the draft hasn't or that is in `stop`."""
        first = self._session.position - len(draft)
        for index, row in enumerate(logits):
            token = int(sample(row[None], np.array([first + index]), options)[0])
            yield token
            if token in stop or index == len(draft) or token != draft[index]:
                return
