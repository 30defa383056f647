"""Continuous batches: sequences of one model that are read and written together, each joining and leaving when it is ready.

Every step runs one token of each sequence that is being written, and of the prompts that wait as many tokens as fit: `chunk` in
all. On paged attention a step is one run of the engine over all of them, so that the weights are read once a step, not once a
sequence. Elsewhere the sequences of a step run one after the other, and say the same.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alize.errors import SessionError, UsageError
from alize.runtimes.generate import FinishReason, GenerationOptions, finish_reason
from alize.runtimes.model import Model
from alize.runtimes.sampling import sample
from alize.runtimes.session import Session

__all__ = ["ContinuousBatch", "NewToken"]


@dataclass(frozen=True)
class NewToken:
    """One token of one request; finish_reason: see Generation, None while it goes on."""

    request: int
    token: int
    finish_reason: FinishReason | None


@dataclass
class _Sequence:
    """A request that has a session. pending int64 [n]: what it has not read yet, the prompt's rest or the token drawn last."""

    request: int
    session: Session
    pending: NDArray[np.int64]
    options: GenerationOptions
    written: int = field(default=0)


class ContinuousBatch(Iterator[list[NewToken]]):
    """Up to `rows` sequences at once; more requests wait their turn. Iterate, or call `step`, until all have ended:

    with ContinuousBatch(model) as batch:
        numbers = [batch.submit(tokens, GenerationOptions(max_new_tokens=64)) for tokens in prompts]
        for step in batch:
            for new in step: ...

    A request may be submitted at any time, also between steps. One thread at a time.
    """

    def __init__(self, model: Model, *, rows: int = 8) -> None:
        if rows < 1:
            raise UsageError(f"rows {rows} must be at least 1")
        self._model, self._rows = model, rows
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._requests = 0

    def submit(self, tokens: ArrayLike, options: GenerationOptions, *, prefix: Session | None = None) -> int:
        """Queues tokens int64 [S] and returns the request's number. prefix: a session of the same model, of batch 1, that holds
        what comes before them; it is not changed, and what it has cached is shared, not computed again.

        Raises what `Session.append` raises of them, and SessionError for a prefix that cannot be shared.
        """
        if prefix is not None and prefix.batch != 1:
            raise SessionError(f"the prefix has a batch of {prefix.batch}: give a session of one row")
        prompt = np.asarray(tokens)
        session = self._model.session() if prefix is None else prefix.fork()
        try:
            session.check(prompt[None])
        except BaseException:
            session.close()
            raise
        self._requests += 1
        self._waiting.append(_Sequence(self._requests - 1, session, prompt.astype(np.int64), options))
        return self._requests - 1

    def cancel(self, request: int) -> None:
        """Forgets a request that has not ended. Raises UsageError for another."""
        for sequences in (self._waiting, self._running):
            for one in list(sequences):
                if one.request == request:
                    sequences.remove(one)
                    one.session.close()
                    return
        raise UsageError(f"request {request} is not running: {self._requests} were submitted, and it may have ended")

    def step(self) -> list[NewToken]:
        """One run over all sequences. Returns the tokens that were drawn, none where only prompts were read."""
        while self._waiting and len(self._running) < self._rows:
            self._running.append(self._waiting.popleft())
        chosen = self._share(self._model.limits.chunk)
        if not chosen:
            return []
        parts = [one.pending[:count] for one, count in chosen]
        logits = Session.append_together([one.session for one, _ in chosen], [part[None] for part in parts])
        new = []
        for (one, count), last in zip(chosen, logits, strict=True):
            one.pending = one.pending[count:]
            if not len(one.pending):
                new.append(self._draw(one, last))
        return new

    def __next__(self) -> list[NewToken]:
        if not self._waiting and not self._running:
            raise StopIteration
        return self.step()

    def close(self) -> None:
        """Forgets every request."""
        for one in (*self._waiting, *self._running):
            one.session.close()
        self._waiting.clear()
        self._running.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _share(self, budget: int) -> Sequence[tuple[_Sequence, int]]:
        """How many tokens each sequence reads: those that write their one token, then the prompts in their order."""
        writing = [one for one in self._running if one.written]
        chosen = [(one, 1) for one in writing[:budget]]
        left = budget - len(chosen)
        for one in self._running:
            if not one.written and left:
                chosen.append((one, min(left, len(one.pending))))
                left -= chosen[-1][1]
        return chosen

    def _draw(self, one: _Sequence, logits: NDArray[np.float32]) -> NewToken:
        token = int(sample(logits, one.session.positions, one.options)[0])
        one.written += 1
        one.pending = np.array([token], np.int64)
        reason = finish_reason(token, one.options, count=one.written, room=one.session.room)
        if reason is not None:
            self._running.remove(one)
            one.session.close()
        return NewToken(one.request, token, reason)
