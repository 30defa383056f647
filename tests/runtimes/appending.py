"""What the conformance suite appends, compares and watches with."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alize.runtimes.runner import Runner
from alize.runtimes.session import Session
from tests.runtimes.backends import VOCABULARY, Subject

CHUNK, SLACK = 4, 6  # small, so that short appends are cut and evict


def tokens(size: int, *, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, size)


def session(subject: Subject, *, batch: int = 1, chunk: int = CHUNK, slack: int = SLACK) -> Session:
    return Session(subject.runner(batch), subject.info, batch=batch, chunk=chunk, slack=slack)


def alone(subject: Subject, row: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits[S,V] of one row in one step of a fresh session: what everything else is compared to."""
    with session(subject, chunk=len(row), slack=len(row)) as fresh:
        logits: NDArray[np.float32] = fresh.append(row[None], keep=0)[0]
        return logits


def assert_same(subject: Subject, found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=subject.tolerance)


def pad(rows: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows, padded on the right with what Session must never look at."""
    lengths = np.array([len(row) for row in rows])
    padded = np.full((len(rows), lengths.max()), -100)
    for row, part in zip(padded, rows, strict=True):
        row[: len(part)] = part
    return padded, lengths


class Watched(Runner):
    """A runner that remembers the most that the engine's caches ever held."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.most = 0

    def step(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        logits = self._runner.step(tokens, lengths, positions, keep)
        self.most = max(self.most, self._runner.cached())
        return logits

    def drop_last(self, n: int) -> None:
        self._runner.drop_last(n)

    def evict(self, keep: int) -> None:
        self._runner.evict(keep)

    def cached(self) -> int:
        return self._runner.cached()

    def reset(self) -> None:
        self._runner.reset()

    def close(self) -> None:
        self._runner.close()
