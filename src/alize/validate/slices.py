"""An artifact whose unpacked weights do not fit in memory, run a few layers at a time.

Every token of every case is known before it is fed, so a slice of layers can read a whole case, step by step and with its own
cache, before the next slice is opened: what goes from one to the next is the residual stream of each step. The last slice
gives the logits. In between the session decides what is appended and forgotten, as it does for an engine that holds all layers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo
from alize.memory import give_back
from alize.optimize.openvino_slices import Slices
from alize.runtimes.session import Session
from alize.runtimes.taps import Taps
from alize.validate.cases import Case
from alize.validate.drive import expert_taps, feed, run_case

__all__ = ["OpenSlice", "SliceEngine", "SliceRunner", "chosen_in_slices", "even_slices", "run_cases", "spelt"]


class SliceRunner(Protocol):
    """One state on some consecutive layers."""

    taps: Taps

    def advance(
        self,
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int64],
        positions: NDArray[np.int64],
        hidden: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """Appends lengths[b] tokens of tokens[B,S] to row b; hidden is what the slice before gave for them, None of the first.

        Returns the residual stream [B,S,M], of the last slice the logits [B,S,V], rows aligned on the left like `tokens`.
        """
        ...

    def drop_last(self, n: int) -> None: ...
    def evict(self, keep: int) -> None: ...
    def close(self) -> None: ...


class SliceEngine(Protocol):
    """The weights of some consecutive layers."""

    def runner(self, batch: int) -> SliceRunner: ...
    def close(self) -> None: ...


OpenSlice = Callable[[int, int, Sequence[str]], SliceEngine]
"""open(first, stop, taps): the layers first..stop-1, whose tensors `taps` are kept token by token."""


def even_slices(layers: int, most: int) -> Slices:
    """As few slices as hold at most `most` layers each, as even as can be."""
    count = -(-layers // most)
    edges = [layers * number // count for number in range(count + 1)]
    return tuple(pairwise(edges))


def spelt(slices: Slices) -> str:
    """For people: 12 slices of 4 to 5 layers."""
    sizes = sorted({stop - first for first, stop in slices})
    layers = " to ".join(map(str, sizes[:: max(1, len(sizes) - 1)]))
    return f"{len(slices)} slices of {layers} {'layer' if sizes == [1] else 'layers'}"


def run_cases(
    open_slice: OpenSlice,
    slices: Slices,
    info: ModelInfo,
    cases: Sequence[Case],
    tokens: NDArray[np.int64],
    kept: NDArray[np.int64],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """What `run_case` gives for each case. One slice is in memory at a time, and the residual stream of all cases."""
    traces = [_trace(info, case, tokens) for case in cases]
    streams: list[_Stream] = [[None] * len(trace) for trace in traces]
    for first, stop in slices[:-1]:
        engine = open_slice(first, stop, ())
        for number, (case, trace) in enumerate(zip(cases, traces, strict=True)):
            streams[number] = _replay(engine.runner(len(case.first)), trace, streams[number])
        engine.close()
        give_back()  # or the next slice's weights come on top of what the allocator keeps
    engine = open_slice(*slices[-1], ())
    for number, case in enumerate(cases):
        yield run_case(_Last(engine, streams[number]), info, case, tokens, kept)
        streams[number] = []
    engine.close()
    give_back()


def chosen_in_slices(
    open_slice: OpenSlice, slices: Slices, info: ModelInfo, case: Case, tokens: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """What `chosen_experts` gives: the experts [L,S,top_k] of each row of the case."""
    trace = _trace(info, case, tokens)
    stream: _Stream = [None] * len(trace)
    found: list[list[NDArray[np.int64]]] = [[] for _ in case.first]
    for first, stop in slices:
        names = expert_taps(info)[first:stop]
        engine = open_slice(first, stop, names)
        runner = engine.runner(len(case.first))
        stream = _replay(runner, trace, stream)
        for b, layers in enumerate(found):
            layers += [runner.taps.row(b, name).astype(np.int64) for name in names]
        engine.close()
        give_back()
    return [np.stack(layers) for layers in found]


@dataclass(frozen=True)
class _Step:
    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class _Forget:
    what: Literal["drop_last", "evict"]
    count: int


_Trace = list[_Step | _Forget]
_Stream = list[NDArray[np.float32] | None]  # one a call of the trace; None where nothing is appended


def _trace(info: ModelInfo, case: Case, tokens: NDArray[np.int64]) -> _Trace:
    """What a session asks of its engine while it reads the case."""
    rows = len(case.first)
    recorder = _Recorder(info.vocab_size)
    with Session(recorder, info, batch=rows, chunk=case.chunk, slack=case.chunk) as session:
        for _ in feed(session, case, tokens):
            pass
    return recorder.trace


def _replay(runner: SliceRunner, trace: _Trace, stream: _Stream) -> _Stream:
    """Takes the stream through one slice; the runner is closed."""
    given: _Stream = []
    for call, hidden in zip(trace, stream, strict=True):
        if isinstance(call, _Step):
            given.append(runner.advance(call.tokens, call.lengths, call.positions, hidden))
        else:
            getattr(runner, call.what)(call.count)
            given.append(None)
    runner.close()
    return given


class _Recorder:
    """A Runner that notes its calls. Its logits are 0, and take no memory."""

    def __init__(self, vocab_size: int) -> None:
        self.trace: _Trace = []
        self._vocab_size = vocab_size

    def step(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        self.trace.append(_Step(tokens.copy(), lengths.copy(), positions.copy()))
        return np.broadcast_to(np.float32(0), (len(tokens), keep, self._vocab_size))

    def drop_last(self, n: int) -> None:
        self.trace.append(_Forget("drop_last", n))

    def evict(self, keep: int) -> None:
        self.trace.append(_Forget("evict", keep))

    def cached(self) -> int:
        raise NotImplementedError("a recorder caches nothing")

    def reset(self) -> None:
        raise NotImplementedError("no case starts over")

    def close(self) -> None:
        """Nothing to release."""


class _Last:
    """The last slice as an Engine: what is appended has gone through the others before."""

    def __init__(self, engine: SliceEngine, stream: _Stream) -> None:
        self._engine = engine
        self._stream = stream

    def runner(self, batch: int) -> "_LastRunner":
        return _LastRunner(self._engine.runner(batch), iter(self._stream))

    def close(self) -> None:
        self._engine.close()


class _LastRunner:
    """A Runner that gives the session its logits."""

    def __init__(self, runner: SliceRunner, stream: Iterator[NDArray[np.float32] | None]) -> None:
        self._runner = runner
        self._stream = stream

    def step(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        logits = self._runner.advance(tokens, lengths, positions, next(self._stream))
        if lengths.min() == tokens.shape[1]:
            return logits[:, tokens.shape[1] - keep :]
        aligned = np.maximum(lengths[:, None] - keep + np.arange(keep), 0)  # what a short row lacks is never read
        return np.take_along_axis(logits, aligned[:, :, None], axis=1)

    def drop_last(self, n: int) -> None:
        next(self._stream)
        self._runner.drop_last(n)

    def evict(self, keep: int) -> None:
        next(self._stream)
        self._runner.evict(keep)

    def cached(self) -> int:
        raise NotImplementedError("nothing asks a slice")

    def reset(self) -> None:
        raise NotImplementedError("no case starts over")

    def close(self) -> None:
        self._runner.close()
