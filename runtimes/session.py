"""Session: a sequence of tokens being read and written by one engine, through a back-end's Runner.

Session checks every argument, splits long appends into chunks, forgets what no layer can see any more and knows
how far back it can go. Runner does what it is told: it checks nothing. So every back-end behaves the same.

Constant memory, when every layer has a window (W is the widest):

    A token at position p sees the positions p-W+1 .. p: itself and the W-1 before it. So W-1 cached positions are
    enough to go on from anywhere, and a cache of capacity W-1+slack takes `slack` more before it must forget.
    Before a chunk of S <= slack tokens that would pass the capacity, all but the last W-1 are evicted: one copy of
    W-1 positions for every `slack` tokens or more.

    W = 4, slack = 3: capacity 6                cached positions        forgotten    rewindable
        append 3 tokens                         0 1 2                   -            3: all that there is
        append 2 tokens                         0 1 2 3 4               -            5
        append 2 tokens: 5+2 > 6, evict to 3    2 3 4 | 5 6             0 1          2: 5 cached, 3 are needed
        append 1 token:  5+1 = 6                2 3 4 5 6 7             0 1          3
        rewind 3                                2 3 4                   0 1          0

    After eviction n tokens can be dropped only while W-1 positions stay cached: rewindable = cached-(W-1). Before
    the first eviction nothing was forgotten and everything can be dropped.

When only some layers have a window, those are evicted in the same way and the others keep their whole cache; then the
bound on rewinding is the same, and the model's maximum position holds. Without any window nothing is evicted.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from weakref import WeakSet

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alize.artifact.manifest import ModelInfo
from alize.errors import RewindTooFar, SessionClosed, SessionError, UsageError
from alize.runtimes.given_tokens import checked_tokens
from alize.runtimes.runner import Runner, RunnerStep, SharingRunner, run_together
from alize.runtimes.saved_session import SavedSession, read_session, write_session

__all__ = ["DEFAULT_CHUNK", "Limits", "Session", "session_limits"]

DEFAULT_CHUNK = 512


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How a session cuts its work: `chunk` tokens a step at most, `slack` cached positions beyond the W-1 needed.

    capacity: the most positions that a sliding-window layer ever caches (W-1+slack), None without any window.
    """

    chunk: int
    slack: int
    capacity: int | None


def session_limits(info: ModelInfo, options: Mapping[str, str | int | bool]) -> Limits:
    """The limits of a runtime configuration: its options `chunk` and `slack`, or the defaults.

    By default a chunk is 512 tokens and slack is the window (at least the chunk): one copy a token, amortised.
    Raises UsageError.
    """
    window = max(info.windows)
    chunk = int(options.get("chunk", DEFAULT_CHUNK))
    slack = int(options.get("slack", max(chunk, window)))
    if not 1 <= chunk <= slack:
        raise UsageError(f"chunk {chunk} must be at least 1 and at most slack {slack}: a chunk has to fit in the slack")
    return Limits(chunk=chunk, slack=slack, capacity=window - 1 + slack if window else None)


class Session:
    """B rows of tokens on one engine, appended to and rewound together. One thread at a time.

    runner: a fresh state for `batch` rows.   info: the model's sizes, windows and maximum position.
    chunk, slack: see `session_limits`.   family: who closes this session closes those that are forked of it, too.
    identity: what a saved session belongs to.
    """

    def __init__(
        self,
        runner: Runner,
        info: ModelInfo,
        *,
        batch: int,
        chunk: int,
        slack: int,
        family: "WeakSet[Session] | None" = None,
        identity: Mapping[str, str] | None = None,
    ) -> None:
        limits = session_limits(info, {"chunk": chunk, "slack": slack})
        if batch < 1:
            raise UsageError(f"batch {batch} must be at least 1")
        self._runner, self._info, self._limits = runner, info, limits
        self._window = max(info.windows)
        self._bounded = 0 in info.windows
        self._positions = np.zeros(batch, np.int64)
        self._cached = np.zeros(batch, np.int64)
        self._family: WeakSet[Session] = WeakSet() if family is None else family
        self._family.add(self)
        self._identity = dict(identity or {})
        self._lock = threading.Lock()
        self._closed = False
        self._torn = False

    @property
    def batch(self) -> int:
        """B, the number of rows."""
        return len(self._positions)

    @property
    def position(self) -> int:
        """Tokens that the longest row holds: the absolute position of its next token."""
        return int(self._positions.max())

    @property
    def positions(self) -> NDArray[np.int64]:
        """int64[B]: the absolute position of each row's next token."""
        return self._positions.copy()

    @property
    def room(self) -> int | None:
        """How many more tokens the longest row can take; None = endless (every layer has a window)."""
        return max(0, self._info.max_positions - self.position) if self._bounded else None

    @property
    def vocab_size(self) -> int:
        """V: the width of the logits, and the tokens that can be appended are 0 .. V-1."""
        return self._info.vocab_size

    @property
    def limits(self) -> Limits:
        """How appends are cut and how much is cached."""
        return self._limits

    @property
    def rewindable(self) -> int:
        """How many tokens `rewind` can drop now: those of the last append at least, where it fitted in one chunk.

        See the worked example above.
        """
        evicted = self._cached < self._positions
        rows = np.where(evicted, self._cached - (self._window - 1), self._positions)
        return max(0, int(rows.min()))

    @property
    def headroom(self) -> int | None:
        """How many more tokens can be appended before a sliding window forgets any; None where nothing ever is forgotten.

        Until then all that is appended can be rewound, whatever steps it comes in; then `rewindable` falls.
        """
        return None if self._limits.capacity is None else self._limits.capacity - int(self._cached.max())

    def append(self, tokens: ArrayLike, *, lengths: ArrayLike | None = None, keep: int = 1) -> NDArray[np.float32]:
        """Append tokens[B,S] (integers) and return the logits of the last `keep` of each row: float32[B,keep,V].

        lengths[B]: how many tokens of each row count; the rest is padding on the right, whatever it holds.
        keep = 0 returns all: float32[B,S,V], 0 where a row is padding.

        Raises SessionError (wrong shape, an empty row, another thread inside), TokenOutOfRange, ContextExceeded,
        SessionClosed; none of them changes the session.
        """
        with self._entered():
            checked, counts = self._check(tokens, lengths, keep)
            with self._tearing():
                return self._append(checked, counts, keep)

    @staticmethod
    def append_together(sessions: "Sequence[Session]", tokens: Sequence[ArrayLike]) -> list[NDArray[np.float32]]:
        """One step of several sessions of one model: tokens[i] [B,S] for sessions[i], S at most `limits.chunk`. Returns for each
        the logits of its last token, float32 [B,V].

        What `append` of each would say, in one run of an engine that can do that (paged attention), else one after the other.
        Raises what `append` raises, and none of the sessions is changed then.
        """
        with ExitStack() as stack:
            for session in sessions:
                stack.enter_context(session._entered())
            checked = [session._check(part, None, 1) for session, part in zip(sessions, tokens, strict=True)]
            for session, (part, _) in zip(sessions, checked, strict=True):
                if part.shape[1] > session.limits.chunk:
                    raise SessionError(
                        f"a step of {part.shape[1]} tokens is more than the chunk of {session.limits.chunk}: append it in parts"
                    )
            for session, (_, counts) in zip(sessions, checked, strict=True):
                stack.enter_context(session._tearing())
                session._make_room(counts)
            logits = run_together(
                [
                    RunnerStep(session._runner, part, counts, session._positions.copy(), 1)
                    for session, (part, counts) in zip(sessions, checked, strict=True)
                ]
            )
            for session, (_, counts) in zip(sessions, checked, strict=True):
                session._advance(counts)
            return [one[:, -1] for one in logits]

    def check(self, tokens: ArrayLike) -> None:
        """Raises what `append` of tokens[B,S] would raise now, and changes nothing."""
        with self._entered():
            self._check(tokens, None, 1)

    def fork(self) -> "Session":
        """A new session that holds what this one holds; what is cached is shared until one of them changes it.

        Raises SessionError where the back-end, or its configuration, cannot share a cache.
        """
        with self._entered():
            self._check_whole()
            twin = self._like(self._sharing().fork())
            twin._positions, twin._cached = self._positions.copy(), self._cached.copy()
            return twin

    def save(self, path: Path) -> None:
        """Writes what the session holds to a file, from which `Model.resume` makes it again on a device like this one.

        Raises SessionError where the back-end, or its configuration, cannot, and where the file cannot be written.
        """
        with self._entered():
            self._check_whole()
            saved = SavedSession(self._positions, self._cached, self._sharing().save())
            write_session(path, saved, self._identity)

    def restore(self, path: Path) -> None:
        """Makes a fresh session hold what was saved. Raises SessionError where it belongs to something else."""
        with self._entered():
            self._check_whole()
            saved = read_session(path, self._identity)
            if len(saved.positions) != self.batch or self.position:
                raise SessionError(
                    f"{path} has {len(saved.positions)} rows, for a fresh session of so many: not one of {self.batch}"
                )
            with self._tearing():
                self._sharing().restore(saved.held)
                self._positions, self._cached = saved.positions, saved.cached

    def _sharing(self) -> SharingRunner:
        if not isinstance(self._runner, SharingRunner):
            raise SessionError("this configuration cannot share or save what it has cached: one with attention=paged can")
        return self._runner

    def _like(self, runner: Runner) -> "Session":
        limits, family, identity = self._limits, self._family, self._identity
        return Session(
            runner, self._info, batch=self.batch, chunk=limits.chunk, slack=limits.slack, family=family, identity=identity
        )

    def rewind(self, n: int) -> None:
        """Drop the last n tokens of every row. Raises RewindTooFar when n > rewindable, SessionError when n < 0."""
        with self._entered():
            self._check_whole()
            if n < 0:
                raise SessionError(f"cannot rewind {n} tokens: give the number of tokens to drop, 0 or more")
            if n > self.rewindable:
                why = "the window moved on" if (self._cached < self._positions).any() else "no more were appended"
                raise RewindTooFar(f"cannot rewind {n} tokens, the limit is {self.rewindable} ({why}): reset() and append again")
            if n:
                with self._tearing():
                    self._runner.drop_last(n)
                    self._positions -= n
                    self._cached -= n

    def reset(self) -> None:
        """Forget every token: as good as new."""
        with self._entered(), self._tearing():
            self._runner.reset()
            self._positions[:] = 0
            self._cached[:] = 0

    def close(self) -> None:
        """Release the engine's state. May be called again; every other call then raises SessionClosed."""
        if self._closed:
            return
        with self._entered():
            self._closed = True
            self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _entered(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise SessionError("another thread is inside this session: use one session a thread (model.session() is cheap)")
        try:
            if self._closed:
                raise SessionClosed("this session is closed: open another with model.session()")
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _tearing(self) -> Iterator[None]:
        # Whatever stops a step half-way (Ctrl-C, an engine's error) leaves a state that nobody can describe.
        self._torn = True
        yield
        self._torn = False

    def _check_whole(self) -> None:
        if self._torn:
            raise SessionError("an earlier call was interrupted half-way and the state is unknown: call reset() and append again")

    def _check(self, tokens: ArrayLike, lengths: ArrayLike | None, keep: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        self._check_whole()
        return checked_tokens(tokens, lengths, keep, positions=self._positions, info=self._info, bounded=self._bounded)

    def _append(self, tokens: NDArray[np.int64], counts: NDArray[np.int64], keep: int) -> NDArray[np.float32]:
        kept = np.zeros((self.batch, keep or tokens.shape[1], self._info.vocab_size), np.float32)
        first = np.maximum(counts - keep, 0) if keep else np.zeros_like(counts)  # row b: logits wanted from this token on
        for start in range(0, int(counts.max()), self._limits.chunk):
            stop = min(start + self._limits.chunk, int(counts.max()))
            lengths = np.clip(counts - start, 0, stop - start)
            wanted = np.clip(start + lengths - first, 0, lengths)
            logits = self._step(tokens[:, start:stop], lengths, max(1, int(wanted.max())))
            for row in np.flatnonzero(wanted):
                end = start + lengths[row] - first[row]
                kept[row, end - wanted[row] : end] = logits[row, logits.shape[1] - wanted[row] :]
        return kept

    def _step(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], keep: int) -> NDArray[np.float32]:
        self._make_room(lengths)
        logits = self._runner.step(np.ascontiguousarray(tokens), lengths, self._positions.copy(), keep)
        assert logits.shape == (self.batch, keep, self._info.vocab_size), f"the runner returned logits of shape {logits.shape}"
        self._advance(lengths)
        return logits

    def _make_room(self, lengths: NDArray[np.int64]) -> None:
        if self._limits.capacity is not None and int((self._cached + lengths).max()) > self._limits.capacity:
            self._runner.evict(self._window - 1)
            self._cached = np.minimum(self._cached, self._window - 1)

    def _advance(self, lengths: NDArray[np.int64]) -> None:
        self._positions += lengths
        self._cached += lengths
