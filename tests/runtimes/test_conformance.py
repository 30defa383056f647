"""What every back-end must do, through Session: one suite for all of them. See backends.py."""

import dataclasses
import gc
import weakref
from pathlib import Path

import numpy as np
import pytest

from alize.errors import ContextExceeded, RewindTooFar, SessionError, TokenOutOfRange
from alize.nvidia import PACKAGES
from alize.runtimes.generate import GenerationOptions, generate
from alize.runtimes.openvino_paged import PagedEngine
from alize.runtimes.registry import BACKENDS
from alize.runtimes.runner import SharingRunner
from alize.runtimes.session import Session, session_limits
from tests.runtimes.appending import CHUNK, SLACK, Watched, alone, assert_same, pad, session, tokens
from tests.runtimes.backends import MAX_POSITIONS, SUBJECTS, UNIFORM, VOCABULARY, Subject
from tests.runtimes.drafters import Oracle


def test_every_backend_is_here() -> None:
    """A back-end of the registry without an entry in backends.py would be a back-end without a test.

    TensorRT's need a GPU: tests/builds/test_tensorrt.py appends and generates on one that is played, over the same bookkeeping
    (linear_rows.py) that ONNX Runtime's runner is tested with here.
    """
    assert set(SUBJECTS) == {*BACKENDS, "torch", "openvino-paged"} - {*PACKAGES}


@pytest.mark.parametrize("piece", [1, 3, 17])
def test_appending_in_pieces_is_appending_at_once(subject: Subject, piece: int) -> None:
    row = tokens(40)
    with session(subject) as pieces:
        logits = [pieces.append(row[None, start : start + piece], keep=0)[0] for start in range(0, len(row), piece)]
    assert_same(subject, np.concatenate(logits), alone(subject, row))


@pytest.mark.parametrize("keep", [0, 1, 2, 5, 9, 17])
def test_keep_spans_chunks(subject: Subject, keep: int) -> None:
    row = tokens(17)
    with session(subject) as short:
        assert_same(subject, short.append(row[None], keep=keep)[0], alone(subject, row)[-keep:])


def test_ragged_rows_are_rows_alone(subject: Subject) -> None:
    """Unequal prompts, then unequal appends, then a token at a time, past the window in each row at another moment."""
    first = [tokens(size, seed=size) for size in (1, 9, 14, 5)]
    second = [tokens(size, seed=size) for size in (7, 2, 1, 11)]
    third = [tokens(6, seed=seed) for seed in range(20, 24)]
    expected = [alone(subject, np.concatenate(parts)) for parts in zip(first, second, third, strict=True)]
    ends = np.zeros(4, np.int64)
    with session(subject, batch=4) as batch:
        for rows in (first, second, *([row[at : at + 1] for row in third] for at in range(6))):
            padded, lengths = pad(rows)
            logits = batch.append(padded, lengths=lengths)
            ends += lengths
            assert batch.positions.tolist() == ends.tolist()
            for row, end in enumerate(ends):
                assert_same(subject, logits[row, 0], expected[row][end - 1])


def test_ragged_keep_counts_from_each_rows_end(subject: Subject) -> None:
    rows = [tokens(size, seed=size) for size in (3, 13, 8)]
    padded, lengths = pad(rows)
    with session(subject, batch=3) as batch:
        logits = batch.append(padded, lengths=lengths, keep=3)
    for row, found in zip(rows, logits, strict=True):
        assert_same(subject, found, alone(subject, row)[-3:])


def test_a_runner_keeps_all_aligned_on_the_left(subject: Subject) -> None:
    """keep = 0 of Runner.step, which Session spells out and others may use."""
    rows = [tokens(2, seed=30), tokens(4, seed=31)]
    padded = np.stack([np.pad(row, (0, 4 - len(row))) for row in rows])
    runner = subject.runner(2)
    logits = runner.step(padded, np.array([2, 4]), np.zeros(2, np.int64), 0)
    runner.close()
    assert logits.shape == (2, 4, VOCABULARY)
    assert not logits[0, 2:].any()
    for row, found in zip(rows, logits, strict=True):
        assert_same(subject, found[: len(row)], alone(subject, row))


def test_ragged_keep_all_is_zero_behind_a_row(subject: Subject) -> None:
    rows = [tokens(size, seed=size) for size in (3, 13)]
    padded, lengths = pad(rows)
    with session(subject, batch=2) as batch:
        logits = batch.append(padded, lengths=lengths, keep=0)
    assert logits.shape == (2, 13, VOCABULARY)
    assert not logits[0, 3:].any()
    for row, found in zip(rows, logits, strict=True):
        assert_same(subject, found[: len(row)], alone(subject, row))


def test_decode_far_beyond_the_window_in_constant_memory(subject: Subject) -> None:
    row = tokens(MAX_POSITIONS, seed=3)  # 12 windows of 5
    runner = Watched(subject.runner(1))
    capacity = session_limits(subject.info, {"chunk": CHUNK, "slack": SLACK}).capacity
    expected = alone(subject, row)
    with Session(runner, subject.info, batch=1, chunk=CHUNK, slack=SLACK) as long:
        long.append(row[None, :10])
        for at in range(10, len(row)):
            assert_same(subject, long.append(row[None, at : at + 1])[0, 0], expected[at])
    assert capacity is None or runner.most < capacity + subject.block
    assert capacity is not None or runner.most == len(row)


def test_only_layers_that_see_everything_hold_more_and_more(subject: Subject) -> None:
    """Layer by layer, in the engine's own memory: one whose size grows in steps has taken its first step by then."""
    info = dataclasses.replace(subject.info, max_positions=1000)
    runner = subject.runner(1)
    sizes = []
    with Session(runner, info, batch=1, chunk=CHUNK, slack=SLACK) as long:
        for part in np.split(tokens(900), 3):
            long.append(part[None])
            sizes.append(subject.held(runner))
    for layer, window in enumerate(info.windows):
        first, *_, last = (held[layer] for held in sizes)
        if window:
            assert first <= 256 and last <= max(first, (long.limits.capacity or 0) + subject.block)
        else:
            assert first >= 300 and last >= 900


def test_a_token_sees_its_windows_and_no_more(subject: Subject) -> None:
    """Through L layers the last token depends on the sum of (W-1) tokens before it, and on nothing before those."""
    row = tokens(30, seed=4)
    reach = sum(window - 1 for window in subject.info.windows) if 0 not in subject.info.windows else len(row) - 1
    before = alone(subject, row)[-1]
    for distance in range(reach - 1, min(reach + 3, len(row))):
        if distance < 1:
            continue
        other = row.copy()
        other[len(row) - 1 - distance] = (other[len(row) - 1 - distance] + 1) % VOCABULARY
        changed = bool(np.abs(alone(subject, other)[-1] - before).max() > subject.tolerance)
        assert changed == (distance <= reach), f"{distance} tokens back, the windows reach {reach}"


@pytest.mark.parametrize("n", [1, 2, 5, 11])
def test_rewind_then_append_is_never_having_appended(subject: Subject, n: int) -> None:
    stay, gone, instead = tokens(9, seed=5), tokens(n, seed=6), tokens(12, seed=7)
    with session(subject, chunk=16, slack=24) as rewound:
        rewound.append(stay[None])
        rewound.append(gone[None])
        assert rewound.rewindable >= n
        rewound.rewind(n)
        assert rewound.position == len(stay)
        logits = rewound.append(instead[None], keep=0)[0]
    assert_same(subject, logits, alone(subject, np.concatenate([stay, instead]))[-len(instead) :])


def test_rewind_as_far_as_it_goes_at_every_moment(subject: Subject) -> None:
    """Through many evictions: what rewindable promises is exact, and one more is refused without a trace."""
    row, other = tokens(40, seed=8), tokens(3, seed=9)
    for size in range(1, len(row), 3):
        with session(subject) as rewound:
            for start in range(0, size, 5):
                rewound.append(row[None, start : min(start + 5, size)])
            n = rewound.rewindable
            with pytest.raises(RewindTooFar, match=str(n)):
                rewound.rewind(n + 1)
            rewound.rewind(n)
            assert rewound.rewindable >= 0
            logits = rewound.append(other[None], keep=0)[0]
        assert_same(subject, logits, alone(subject, np.concatenate([row[: size - n], other]))[-len(other) :])


def test_ragged_rows_rewind_together(subject: Subject) -> None:
    rows, other = [tokens(size, seed=size) for size in (4, 12, 8)], tokens(4, seed=10)
    padded, lengths = pad(rows)
    with session(subject, batch=3, chunk=16, slack=24) as batch:
        batch.append(padded, lengths=lengths)
        assert batch.rewindable == 4
        batch.rewind(3)
        logits = batch.append(np.tile(other, (3, 1)), keep=0)
    for row, found in zip(rows, logits, strict=True):
        assert_same(subject, found, alone(subject, np.concatenate([row[:-3], other]))[-len(other) :])


def test_reset_is_as_good_as_new(subject: Subject) -> None:
    row = tokens(11, seed=11)
    with session(subject) as used:
        used.append(tokens(20, seed=12)[None])
        used.reset()
        assert used.position == used.rewindable == 0
        assert_same(subject, used.append(row[None], keep=0)[0], alone(subject, row))


def test_sessions_of_one_engine_do_not_meet(subject: Subject) -> None:
    one, other = tokens(12, seed=13), tokens(12, seed=14)
    with session(subject) as left, session(subject) as right:
        for start in range(0, 12, 4):
            a = left.append(one[None, start : start + 4], keep=0)[0]
            b = right.append(other[None, start : start + 4], keep=0)[0]
    assert_same(subject, a, alone(subject, one)[-4:])
    assert_same(subject, b, alone(subject, other)[-4:])


def test_steps_together_are_steps_alone(subject: Subject) -> None:
    """Of sessions at different positions and with steps of different lengths, past the window in each at another moment."""
    rows = [tokens(30, seed=seed) for seed in (50, 51, 52)]
    expected = [alone(subject, row) for row in rows]
    ends = [0, 0, 0]
    sessions = [session(subject) for _ in rows]
    for sizes in ((4, 1, 2), (4, 4, 1), *([(1, 3, 2)] * 5), *([(1, 1, 1)] * 3)):
        parts = [row[None, end : end + size] for row, end, size in zip(rows, ends, sizes, strict=True)]
        ends = [end + size for end, size in zip(ends, sizes, strict=True)]
        for one, logits, end in zip(expected, Session.append_together(sessions, parts), ends, strict=True):
            assert_same(subject, logits[0], one[end - 1])
    for one in sessions:
        one.close()


def test_what_cannot_be_appended_together_changes_nothing(subject: Subject) -> None:
    with session(subject) as left, session(subject) as right:
        with pytest.raises(SessionError, match=f"a step of 5 tokens is more than the chunk of {CHUNK}: append it in parts"):
            Session.append_together([left, right], [[[1]], [[1, 2, 3, 4, 5]]])
        with pytest.raises(TokenOutOfRange):
            Session.append_together([left, right], [[[1]], [[VOCABULARY]]])
        assert left.position == right.position == 0
        Session.append_together([left, right], [[[1]], [[2]]])
        assert left.position == right.position == 1


@pytest.mark.parametrize("size", [3, 32, 40])
def test_a_fork_goes_on_by_itself(subject: Subject, size: int) -> None:
    """What both hold lies in the same memory until one of them changes it: in the middle of a block and at its end."""
    start, left, right = tokens(size, seed=60), tokens(3, seed=61), tokens(3, seed=62)
    with session(subject) as first:
        first.append(start[None])
        if not isinstance(subject.runner(1), SharingRunner):
            with pytest.raises(SessionError, match="cannot share or save what it has cached: one with attention=paged can"):
                first.fork()
            return
        with first.fork() as second, second.fork() as third:
            a, b = first.append(left[None], keep=0)[0], second.append(right[None], keep=0)[0]
            third.rewind(2)
            c = third.append(left[None], keep=0)[0]
        a = np.concatenate([a, first.append(right[None], keep=0)[0]])  # what the others wrote is not where it reads
    assert_same(subject, a, alone(subject, np.concatenate([start, left, right]))[size:])
    assert_same(subject, b, alone(subject, np.concatenate([start, right]))[size:])
    assert_same(subject, c, alone(subject, np.concatenate([start[:-2], left]))[size - 2 :])


def test_a_saved_session_goes_on(subject: Subject, tmp_path: Path) -> None:
    """Two rows of unequal lengths, past the window, saved, gone on with, and resumed beside."""
    rows, more = [tokens(40, seed=70), tokens(37, seed=71)], tokens(5, seed=72)
    padded, lengths = pad(rows)
    with session(subject, batch=2) as first:
        first.append(padded, lengths=lengths)
        if not isinstance(subject.runner(1), SharingRunner):
            with pytest.raises(SessionError, match="cannot share or save"):
                first.save(tmp_path / "saved")
            return
        first.save(tmp_path / "saved")
        first.append(np.tile(more, (2, 1)))
        with session(subject, batch=2) as second:
            second.restore(tmp_path / "saved")
            assert second.positions.tolist() == lengths.tolist()
            found = second.append(np.tile(more, (2, 1)), keep=0)
        with (
            session(subject) as single,
            pytest.raises(SessionError, match="has 2 rows, for a fresh session of so many: not one of 1"),
        ):
            single.restore(tmp_path / "saved")
    for row, logits in zip(rows, found, strict=True):
        assert_same(subject, logits, alone(subject, np.concatenate([row, more]))[-len(more) :])
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_closed_engine_lets_go_of_what_was_compiled() -> None:
    """Though rows of it were abandoned, before or after: their tables lead to the request, and it to all that was compiled."""
    compiled = SUBJECTS["openvino-paged"].make(UNIFORM).runner(1)._engine  # type: ignore[attr-defined]
    engine = PagedEngine(compiled.compiled, compiled.info)
    rows = [engine.runner(1) for _ in range(2)]
    for number in range(len(rows)):
        rows[number].step(tokens(1)[None], np.ones(1, np.int64), np.zeros(1, np.int64), 1)
    request = weakref.ref(engine._request)
    del rows[0]
    engine.close()
    rows.clear()
    gc.collect()
    assert request() is None


def test_what_was_returned_stays(subject: Subject) -> None:
    """An engine that hands out its own buffer would write the next logits over it."""
    row = tokens(2, seed=15)
    with session(subject) as short:
        first = short.append(row[None, :1])
        copy = first.copy()
        short.append(row[None, 1:])
    np.testing.assert_array_equal(first, copy)


def test_positions_end_only_where_some_layer_sees_all(subject: Subject) -> None:
    row = tokens(MAX_POSITIONS + 8)
    with session(subject) as long:
        long.append(row[None, :MAX_POSITIONS])
        if 0 in subject.info.windows:
            assert long.room == 0
            with pytest.raises(ContextExceeded, match=f"{MAX_POSITIONS + 1} positions.*has {MAX_POSITIONS}"):
                long.append([[1]])
        else:
            assert long.room is None
            assert_same(subject, long.append(row[None, MAX_POSITIONS:], keep=0)[0], alone(subject, row)[MAX_POSITIONS:])


@pytest.mark.parametrize(("temperature", "chunk"), [(0.0, 16), (0.5, CHUNK)])
def test_drafts_change_no_token(subject: Subject, temperature: float, chunk: int) -> None:
    """Checked several at a time, accepted and dropped, past the window and up to the last position.

    Logits of several tokens at once may differ in the last bits: no token here is drawn so narrowly that it would show.
    """
    prompt = tokens(6, seed=40).tolist()
    options = GenerationOptions(max_new_tokens=MAX_POSITIONS, temperature=temperature, seed=7)
    with session(subject) as plain:
        expected = [int(step[0]) for step in generate(plain, [prompt], options)]
    drafter = Oracle([*prompt, *expected], [2, 0, 3, 1, 9], vocabulary=VOCABULARY, beyond=2)
    with session(subject, chunk=chunk, slack=16) as drafted:
        running = generate(drafted, [prompt], options, drafter=drafter)
        assert [int(step[0]) for step in running] == expected
    assert 0 < running.accepted < running.drafted
