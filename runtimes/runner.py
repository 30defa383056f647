"""Runner: what a back-end must implement for Session, its only caller, which has checked all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Runner", "RunnerStep", "SharingRunner", "run_together"]


class Runner(Protocol):
    """One state (the cached keys and values of B rows) on one engine. Session is its only caller and has checked all."""

    def step(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        """Append lengths[b] tokens of tokens[B,S] to row b, the first at absolute position positions[b].

        Rows are padded on the right with token 0. A row's length may be 0 (its chunks are used up while a longer row
        goes on): nothing is appended to it. lengths.max() is S.

        keep > 0, at most S: logits[B,keep,V], aligned on the right: [b,keep-1] belongs to the last new token of row b,
            [b,keep-2] to the one before, and so on. What precedes a shorter row's first token is never read.
        keep = 0: logits[B,S,V], aligned on the left like `tokens` and 0 behind a row's last token.
        The array is the caller's: the runner doesn't write to it later.
        """
        ...

    def drop_last(self, n: int) -> None:
        """Every row forgets its last n tokens (n >= 1, and every row has that many cached), in every layer."""
        ...

    def evict(self, keep: int) -> None:
        """Every sliding-window layer forgets all but the last `keep` cached positions of each row.

        A row with fewer keeps what it has. keep may be 0 (a window of 1). Full-attention layers forget nothing.
        """
        ...

    def cached(self) -> int:
        """Cached positions of the longest row in the sliding-window layers (without any: in the full-attention ones)."""
        ...

    def reset(self) -> None:
        """Forget everything; positions start at 0 again."""
        ...

    def close(self) -> None:
        """Release the state. Called once, and nothing after it."""
        ...


@dataclass(frozen=True)
class RunnerStep:
    """A `step` that a runner is asked for, together with others'."""

    runner: Runner
    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]
    positions: NDArray[np.int64]
    keep: int


@runtime_checkable
class SharingRunner(Runner, Protocol):
    """A runner whose engine holds the caches of all its runners in one memory."""

    def step_together(self, steps: Sequence[RunnerStep]) -> list[NDArray[np.float32]]:
        """Steps of this and other runners of its engine, in one run. Returns what each `step` returns."""
        ...

    def fork(self) -> "SharingRunner":
        """Another runner that holds what this one holds."""
        ...

    def save(self) -> dict[str, NDArray[Any]]:
        """What it holds, as the engine lays it out."""
        ...

    def restore(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """Makes a fresh runner of the same configuration hold it. Raises ValueError for what such a one never saved."""
        ...


def run_together(steps: Sequence[RunnerStep]) -> list[NDArray[np.float32]]:
    """Steps of runners of one engine: in one run where it can do that, else one after the other."""
    if steps and isinstance(steps[0].runner, SharingRunner):
        return steps[0].runner.step_together(steps)
    return [step.runner.step(step.tokens, step.lengths, step.positions, step.keep) for step in steps]
