"""The fake back-end against its definition in Python's integers, and Session over it in any order of calls."""

import functools

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from alize.runtimes.fake import FakeRunner
from alize.runtimes.session import Session
from tests.runtimes.backends import FULL, MIXED, NARROW, UNEQUAL, UNIFORM, VOCABULARY, model_info

_WRAP = (1 << 64) - 1


def mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _WRAP
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _WRAP
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _WRAP
    return value ^ (value >> 31)


@functools.cache
def state(tokens: tuple[int, ...], windows: tuple[int, ...], layer: int) -> int:
    """state[layer, i] for i = the last of `tokens`, by the recursion of fake.py's docstring."""
    i = len(tokens) - 1
    if layer == 0:
        return mix((mix(tokens[i]) + i) & _WRAP)
    window = windows[layer - 1] or len(tokens)
    seen = [mix(state(tokens[: j + 1], windows, layer - 1)) for j in range(max(0, i - window + 1), i + 1)]
    return mix((state(tokens, windows, layer - 1) + sum(seen)) & _WRAP)


def oracle(tokens: list[int], windows: tuple[int, ...]) -> NDArray[np.float32]:
    """Logits[V] behind the last token."""
    last = state(tuple(tokens), windows, len(windows))
    bits = [mix((last + mix(v)) & _WRAP) >> 44 for v in range(VOCABULARY)]
    return ((np.array(bits) - 2**19) / 2**16).astype(np.float32)


class AnyOrderOfCalls(RuleBasedStateMachine):
    """Append (ragged, in any chunk), rewind and reset in any order, against the oracle over the tokens that remain."""

    @initialize(
        windows=st.sampled_from((UNIFORM, NARROW, UNEQUAL, MIXED, FULL)),
        batch=st.integers(1, 3),
        chunk=st.integers(1, 7),
        more=st.integers(0, 9),
    )
    def begin(self, windows: tuple[int, ...], batch: int, chunk: int, more: int) -> None:
        self.windows = windows
        self.runner = FakeRunner(windows, VOCABULARY, batch=batch)
        self.session = Session(self.runner, model_info(windows), batch=batch, chunk=chunk, slack=chunk + more)
        self.rows: list[list[int]] = [[] for _ in range(batch)]

    @precondition(lambda self: self.session.room is None or self.session.room >= 12)
    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        fresh = [data.draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12)) for _ in self.rows]
        keep = data.draw(st.integers(0, min(len(part) for part in fresh)))
        width = max(len(part) for part in fresh)
        padded = [part + [-1] * (width - len(part)) for part in fresh]
        logits = self.session.append(padded, lengths=[len(part) for part in fresh], keep=keep)
        self.rows = [row + part for row, part in zip(self.rows, fresh, strict=True)]
        for row, part, found in zip(self.rows, fresh, logits, strict=True):
            count = keep or len(part)
            for back in range(count):
                expected = oracle(row[: len(row) - back], self.windows)
                np.testing.assert_array_equal(found[count - 1 - back], expected)

    @rule(share=st.floats(0, 1))
    def rewind(self, share: float) -> None:
        n = round(share * self.session.rewindable)
        self.session.rewind(n)
        self.rows = [row[: len(row) - n] for row in self.rows]

    @rule()
    def reset(self) -> None:
        self.session.reset()
        self.rows = [[] for _ in self.rows]

    @invariant()
    def counts(self) -> None:
        assert self.session.positions.tolist() == [len(row) for row in self.rows]
        capacity = self.session.limits.capacity
        assert capacity is None or self.runner.cached() <= capacity
        assert 0 <= self.session.rewindable <= min(len(row) for row in self.rows)


TestAnyOrderOfCalls = AnyOrderOfCalls.TestCase
TestAnyOrderOfCalls.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


def test_logits_are_moderate_and_differ() -> None:
    logits = oracle([1, 2, 3], UNIFORM)
    assert np.abs(logits).max() <= 8
    assert len(set(logits.tolist())) == VOCABULARY
