"""What Session itself checks and counts, on the fake back-end."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from alize.errors import ContextExceeded, RewindTooFar, SessionClosed, SessionError, TokenOutOfRange, UsageError
from alize.runtimes.fake import FakeRunner
from alize.runtimes.session import Session, session_limits
from tests.runtimes.backends import FULL, MAX_POSITIONS, MIXED, UNIFORM, VOCABULARY, model_info


def session(windows: tuple[int, ...] = UNIFORM, *, batch: int = 1, chunk: int = 4, slack: int = 6) -> Session:
    runner = FakeRunner(windows, VOCABULARY, batch=batch)
    return Session(runner, model_info(windows), batch=batch, chunk=chunk, slack=slack)


@pytest.mark.parametrize(
    ("append", "error", "message"),
    [
        (lambda s: s.append([[1, VOCABULARY, 2]]), TokenOutOfRange, r"token 61 at index 1 of row 0 is outside 0..60"),
        (lambda s: s.append([[1, 2, -1]]), TokenOutOfRange, r"token -1 at index 2 of row 0"),
        (lambda s: s.append(np.array([[2**63]], np.uint64)), TokenOutOfRange, "row 0"),
        (lambda s: s.append([[]]), SessionError, "row 0 is an empty prompt"),
        (lambda s: s.append([[1, 2]], lengths=[0]), SessionError, "row 0 is an empty prompt"),
        (lambda s: s.append([[1, 2]], lengths=[3]), SessionError, "length 3 of row 0 is more than the 2 tokens"),
        (lambda s: s.append([[1, 2]], lengths=[1, 1]), SessionError, r"lengths have shape \[2\]"),
        (lambda s: s.append([1, 2]), SessionError, r"shape \[2\], not \[B,S\]"),
        (lambda s: s.append([[1], [2]]), SessionError, r"shape \[2, 1\], not \[B,S\] with B = 1"),
        (lambda s: s.append([[1, 2], [3]]), SessionError, "unequal length: pad"),
        (lambda s: s.append([[1.0, 2.0]]), SessionError, "dtype float64, not integers"),
        (lambda s: s.append([["a"]]), SessionError, "not integers"),
        (lambda s: s.append([[1, 2]], keep=3), SessionError, r"keep 3 is not within 0..2"),
        (lambda s: s.append([[1, 2]], keep=-1), SessionError, "keep -1"),
        (lambda s: s.rewind(-1), SessionError, "cannot rewind -1"),
    ],
)
def test_what_cannot_be_meant_changes_nothing(append: Callable[[Session], Any], error: type[Exception], message: str) -> None:
    with session() as one:
        one.append([[5, 6, 7]])
        with pytest.raises(error, match=message):
            append(one)
        assert one.position == 3
        logits = one.append([[8]])
    with session() as other:
        np.testing.assert_array_equal(logits, other.append([[5, 6, 7, 8]]))


def test_a_prompt_beyond_the_models_positions_is_refused_whole() -> None:
    with session(FULL) as full:
        full.append([[1] * 10])
        with pytest.raises(ContextExceeded, match=rf"prompt of 55 tokens at position 10 needs 65 .* has {MAX_POSITIONS}:"):
            full.append([[1] * 55])
        assert full.position == 10
        full.append([[1] * 54])
        assert full.room == 0


def test_one_layer_of_full_attention_binds_the_positions() -> None:
    with session(MIXED) as mixed, pytest.raises(ContextExceeded):
        mixed.append([[1] * (MAX_POSITIONS + 1)])


def test_the_longest_row_decides_the_context() -> None:
    with session(FULL, batch=2) as full:
        full.append(np.ones((2, 60), np.int64), lengths=[60, 1])
        with pytest.raises(ContextExceeded, match="prompt of 5 tokens at position 60"):
            full.append(np.ones((2, 60), np.int64), lengths=[5, 60])


def test_worked_example_of_the_module() -> None:
    """W = 4, slack = 3: the table in session.py, line by line."""
    runner = FakeRunner((4, 4), VOCABULARY, batch=1)
    with Session(runner, model_info((4, 4)), batch=1, chunk=3, slack=3) as one:
        for size, cached, rewindable in ((3, 3, 3), (2, 5, 5), (2, 5, 2), (1, 6, 3)):
            one.append([[7] * size])
            assert (runner.cached(), one.rewindable) == (cached, rewindable)
        one.rewind(3)
        assert (runner.cached(), one.rewindable) == (3, 0)
        with pytest.raises(RewindTooFar, match=r"cannot rewind 1 tokens, the limit is 0 \(the window moved on\)"):
            one.rewind(1)


def test_rewinding_more_than_was_appended() -> None:
    with session() as one:
        one.append([[1, 2]])
        with pytest.raises(RewindTooFar, match=r"limit is 2 \(no more were appended\)"):
            one.rewind(3)
        one.rewind(2)
        assert one.position == 0


def test_limits() -> None:
    assert session_limits(model_info(UNIFORM), {}).capacity == 4 + 512
    assert session_limits(model_info((4096, 4096)), {}).slack == 4096
    assert session_limits(model_info(FULL), {}).capacity is None
    with pytest.raises(UsageError, match="chunk 8 must be at least 1 and at most slack 4"):
        session_limits(model_info(UNIFORM), {"chunk": 8, "slack": 4})
    with pytest.raises(UsageError, match="chunk 0"):
        session_limits(model_info(UNIFORM), {"chunk": 0})
    with pytest.raises(UsageError, match="batch 0"):
        session(batch=0)


def test_closed() -> None:
    one = session()
    one.close()
    one.close()
    for call in (lambda: one.append([[1]]), lambda: one.rewind(0), one.reset):
        with pytest.raises(SessionClosed, match="open another"):
            call()


def test_a_context_manager_closes() -> None:
    with session() as one:
        one.append([[1]])
    with pytest.raises(SessionClosed):
        one.append([[1]])


class Slow(FakeRunner):
    """Waits inside a step until it is let go."""

    inside = threading.Event()
    go = threading.Event()

    def step(self, *arguments: Any) -> NDArray[np.float32]:
        self.inside.set()
        assert self.go.wait(30)
        return super().step(*arguments)


def test_a_second_thread_is_turned_away() -> None:
    one = Session(Slow(UNIFORM, VOCABULARY, batch=1), model_info(UNIFORM), batch=1, chunk=4, slack=6)
    results: list[NDArray[np.float32]] = []
    first = threading.Thread(target=lambda: results.append(one.append([[1, 2]])))
    first.start()
    assert Slow.inside.wait(30)
    for call in (lambda: one.append([[3]]), lambda: one.rewind(1), one.reset, one.close):
        with pytest.raises(SessionError, match="another thread is inside"):
            call()
    Slow.go.set()
    first.join(30)
    assert one.position == 2
    one.append([[3]])
    with session() as other:
        np.testing.assert_array_equal(results[0], other.append([[1, 2]]))


class Failing(FakeRunner):
    """Fails at the given step, as an engine out of memory or Ctrl-C would."""

    steps = 0

    def step(self, *arguments: Any) -> NDArray[np.float32]:
        self.steps += 1
        if self.steps == 2:
            raise KeyboardInterrupt
        return super().step(*arguments)


def test_an_interrupted_append_needs_a_reset() -> None:
    one = Session(Failing(UNIFORM, VOCABULARY, batch=1), model_info(UNIFORM), batch=1, chunk=4, slack=6)
    with pytest.raises(KeyboardInterrupt):
        one.append([[1] * 8])
    for call in (lambda: one.append([[1]]), lambda: one.rewind(1)):
        with pytest.raises(SessionError, match=r"interrupted half-way .* reset\(\)"):
            call()
    one.reset()
    with session() as other:
        np.testing.assert_array_equal(one.append([[1] * 8]), other.append([[1] * 8]))


class Strict(FakeRunner):
    """Checks what Session promises to a runner."""

    def step(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        assert tokens.dtype == lengths.dtype == positions.dtype == np.int64
        assert tokens.flags.c_contiguous
        assert 1 <= tokens.shape[1] == lengths.max() <= 4
        assert 1 <= keep <= tokens.shape[1]
        padding = np.arange(tokens.shape[1]) >= lengths[:, None]
        assert not tokens[padding].any()
        held = [row[0].size for row in self._caches]
        assert positions.tolist() == held, "full attention: everything is cached"
        positions += 100  # its own copy
        return super().step(tokens, lengths, positions - 100, keep)


def test_what_a_runner_is_given() -> None:
    one = Session(Strict(FULL, VOCABULARY, batch=3), model_info(FULL), batch=3, chunk=4, slack=6)
    for keep in (0, 1, 2):
        one.append(np.full((3, 12), 60), lengths=[2, 11, 5], keep=keep)
    one.append(np.asfortranarray(np.ones((3, 2), np.int32)), keep=2)
    assert one.positions.tolist() == [8, 35, 17]


def test_properties() -> None:
    with session(batch=3) as one:
        one.append(np.ones((3, 5), np.int64), lengths=[2, 5, 1])
        assert (one.batch, one.position, one.positions.tolist(), one.rewindable) == (3, 5, [2, 5, 1], 1)
        one.positions[:] = 0
        assert one.position == 5
