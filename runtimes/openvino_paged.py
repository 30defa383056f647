"""OpenVINO on a CPU with a paged cache: every session of an engine keeps its keys and values in blocks of one pool.

The engine's own pass turns the stateful graph, as it lies in the artifact, into one whose attention finds a row's keys by a list
of blocks. So a step is the new tokens of many rows end to end, without padding; forgetting, rewinding and beginning as another
row began change lists and copy nothing; and rows that come and go share the memory.

A window's layers forget whole blocks. Where every layer has one, the row's past is then shorter by so many tokens (positions
are given apart, so that nothing else moves). Where only some have, those layers get a pool of their own, and the blocks that they
forgot are named as block 0 of it, which holds zeros and which their window hides.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo
from alize.errors import ArtifactError
from alize.runtimes.block_tables import Table
from alize.runtimes.openvino_integer_attention import AttentionTable
from alize.runtimes.openvino_kernels import ROUNDED_TOKENS
from alize.runtimes.openvino_memory import PagedMemory
from alize.runtimes.openvino_warm_up import biases, no_bias
from alize.runtimes.runner import RunnerStep
from alize.runtimes.taps import Taps

_ONE_BY_ONE = ROUNDED_TOKENS  # each reads the whole cache anew, which for more would cost more than it is worth

__all__ = ["Answer", "PagedEngine", "PagedRunner", "RowStep", "page"]


def page(model: Any, info: ModelInfo) -> None:
    """Turns a stateful graph into its paged form, in place; the head computes `logits_index` int64 [n] of the tokens only.

    Raises ArtifactError where the engine's pass finds other windows than the model's: it drops one that it does not recognise.
    """
    from openvino import Type
    from openvino import opset13 as ops
    from openvino._offline_transformations import paged_attention_transformation

    paged_attention_transformation(model, use_block_indices_inputs=_mixed(info))
    windows = [_window(node) for node in model.get_ordered_ops() if node.get_type_name() == "PagedAttentionExtension"]
    if windows != list(info.windows):
        raise ArtifactError(
            f"paged attention would run with the windows {windows}, the model's are {list(info.windows)}: build it again"
        )
    head = model.output("logits").get_node().input_value(0).get_node()
    index = ops.parameter([-1], Type.i64, "logits_index")
    index.output(0).get_tensor().add_names({"logits_index"})
    head.input(0).replace_source_output(ops.gather(head.input_value(0), index, ops.constant(np.int64(0))).output(0))
    model.add_parameters([index])
    model.validate_nodes_and_infer_types()


def _mixed(info: ModelInfo) -> bool:
    return any(info.windows) and 0 in info.windows


def _window(attention: Any) -> int:
    """Of a PagedAttentionExtension: its input 10, a constant or a product of constants."""
    waiting, product = [attention.input_value(10).get_node()], 1
    while waiting:
        node = waiting.pop()
        if node.get_type_name() == "Constant":
            product *= int(np.asarray(node.get_data()).item())
        else:
            waiting += [value.get_node() for value in node.input_values()]
    return product


@dataclass(frozen=True)
class Answer:
    """Of one row: logits float32 [wanted,V], and of every tap what it held for the row's tokens."""

    logits: NDArray[np.float32]
    taps: tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class RowStep:
    """What one row is given: tables, its own in each pool; tokens int64 [n]; the position of the first; and of how many of the
    last tokens logits are wanted."""

    tables: tuple[Table, ...]
    tokens: NDArray[np.int64]
    position: int
    wanted: int

    def spans(self) -> list[tuple[int, int]]:
        """Cached positions before, and new tokens, of each row that the engine is shown for this one: usually one.

        Where logits of all of a few tokens are wanted (a draft is being checked), each token is a row of its own over the same
        blocks. All keys are written before any is read, so that it sees what it should; and attention is then summed as it is
        when a token is generated alone. Else it would differ in the last bits, and where activations are rounded to 8 bits that
        becomes a difference of a logit and more.
        """
        new = len(self.tokens)
        past = self.tables[0].end - self.tables[0].first - new
        return [(past + i, 1) for i in range(new)] if self.wanted == new <= _ONE_BY_ONE else [(past, new)]


class PagedEngine:
    """One compiled model, one request, one memory of blocks: its sessions take turns."""

    def __init__(
        self,
        compiled: Any,
        info: ModelInfo,
        taps: Sequence[str] = (),
        read_in_place: Sequence[Any] = (),
        attention: AttentionTable | None = None,
    ) -> None:
        """read_in_place: constants of the graph that kernels read by their address.   attention: what they read besides, where
        they compute attention as well."""
        self.compiled, self.info, self.taps = compiled, info, tuple(taps)
        self._read_in_place = read_in_place
        self.lock = threading.Lock()
        self.abandoned: deque[Table] = deque()  # of runners that nobody closed
        self._request = compiled.create_infer_request()
        self._threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        self._attention = attention
        kinds: dict[bool, list[int]] = {}
        for layer, window in enumerate(info.windows):
            kinds.setdefault(_mixed(info) and window > 0, []).append(layer)
        self.memory = tuple(self._memory(kinds[hidden], hidden=hidden) for hidden in sorted(kinds))
        self._fixed = no_bias(info)
        self.keep: Callable[[], None] = lambda: None
        """Called once what it says is known to be right: lets later processes open it faster."""

    def runner(self, batch: int) -> "PagedRunner":
        return PagedRunner(self, [tuple(Table(memory.pool, memory.size) for memory in self.memory) for _ in range(batch)])

    def run(self, steps: Sequence[RowStep]) -> list[Answer]:
        """One inference over rows of this engine's runners, all at once."""
        with self.lock:
            while self.abandoned:
                self.abandoned.popleft().clear()
            for number, memory in enumerate(self.memory):
                memory.pool.reserve(sum(step.tables[number].missing(len(step.tokens)) for step in steps))
                for step in steps:
                    step.tables[number].append(len(step.tokens))
            result = self._request.infer(self._feeds(steps), share_inputs=True, share_outputs=True)
            return self._answers(steps, result)

    def warm_up(self) -> int:
        """Runs a token, so that the engine packs its weights; every expert once, see openvino_warm_up. Returns the runs."""
        token = np.array([self.info.bos_token_id or 0], np.int64)
        turns = biases(self.info) or [{}]
        for bias in turns:
            runner = self.runner(1)
            self._fixed = bias
            runner.step(token[None], np.ones(1, np.int64), np.zeros(1, np.int64), 1)
            runner.close()
        self._fixed = no_bias(self.info)
        return len(turns)

    def close(self) -> None:
        self.compiled = self._request = self._attention = None
        self.keep = lambda: None
        self.memory = ()
        # Tables lead to the request, and it to all that was compiled. Rows still alive add theirs to the old queue.
        self.abandoned = deque()

    def _memory(self, layers: Sequence[int], *, hidden: bool) -> PagedMemory:
        if self._attention is not None:
            return PagedMemory(layers, self._attention.blocks(layers), self._attention.set_tensor, hidden=hidden)
        inputs = {value.get_any_name(): value for value in self.compiled.inputs}
        caches = {name: inputs[name] for layer in layers for name in (f"key_cache.{layer}", f"value_cache.{layer}")}
        blocks = {
            name: (value.get_element_type(), [size.get_length() for size in list(value.get_partial_shape())[1:]])
            for name, value in caches.items()
        }
        return PagedMemory(layers, blocks, self._request.set_tensor, hidden=hidden)

    def _feeds(self, steps: Sequence[RowStep]) -> dict[str, NDArray[Any]]:
        spans = [(step, past, new) for step in steps for past, new in step.spans()]
        past, new = (np.array([span[index] for span in spans]) for index in (1, 2))
        blocks = -(-(past + new) // self.memory[0].size)
        idle = self._idle(new)
        ends = np.array([len(step.tokens) for step in steps]).cumsum()
        feeds = {
            "input_ids": np.concatenate([step.tokens for step in steps]),
            "position_ids": np.concatenate([np.arange(step.position, step.position + len(step.tokens)) for step in steps]),
            "past_lens": np.array([*past, *[0] * idle], np.int32),
            "subsequence_begins": np.array([0, *new.cumsum(), *[ends[-1]] * idle], np.int32),
            "block_indices_begins": np.array([0, *blocks.cumsum(), *[blocks.sum()] * idle], np.int32),
            "max_context_len": np.array((past + new).max(), np.int32),
            "logits_index": np.concatenate([np.arange(end - step.wanted, end) for step, end in zip(steps, ends, strict=True)]),
        }
        for number, memory in enumerate(self.memory):
            indices = memory.indices([step.tables[number] for step, _, _ in spans], blocks.tolist())
            names = [f"block_indices.{layer}" for layer in memory.layers] if len(self.memory) > 1 else ["block_indices"]
            feeds |= dict.fromkeys(names, indices)
        return (feeds if self._attention is None else self._attention.set_step(feeds)) | self._fixed

    def _idle(self, new: NDArray[np.int64]) -> int:
        """How many rows without a token are shown besides, so that one token is summed as it is among others.

        The engine has a third way to sum, for single tokens of fewer rows than threads, which splits a row's keys among the
        threads. With a key/value head for every thread nothing is gained by that.
        """
        if self._attention is not None:
            return 0
        rows = self._threads - len(new)
        return max(rows, 0) if new.max() == 1 and self._threads <= self.info.key_value_heads else 0

    def _answers(self, steps: Sequence[RowStep], result: Any) -> list[Answer]:
        logits = np.array(result["logits"]).reshape(-1, self.info.vocab_size)  # a copy: the next step writes to the same place
        rows = np.cumsum([step.wanted for step in steps])[:-1]
        ends = np.cumsum([len(step.tokens) for step in steps])[:-1]
        taps = [np.split(np.array(result[name]), ends) for name in self.taps]
        return [Answer(part, tuple(values[number] for values in taps)) for number, part in enumerate(np.split(logits, rows))]


class PagedRunner:
    """The tables of B rows, one in each of the engine's memories."""

    def __init__(self, engine: PagedEngine, rows: Sequence[tuple[Table, ...]]) -> None:
        self.taps = Taps(engine.taps, len(rows))
        self._engine, self._rows = engine, rows
        weakref.finalize(self, engine.abandoned.extend, [table for row in rows for table in row]).atexit = False

    def step(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        """See Runner."""
        steps = self.prepare(tokens, lengths, positions, keep)
        return self.collect(self._engine.run(steps), lengths, keep)

    def prepare(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> list[RowStep]:
        """What `step` asks of the engine; with other runners' it can be asked at once."""
        return [
            RowStep(self._rows[b], tokens[b, :count], int(positions[b]), min(keep, count) if keep else count)
            for b, count in enumerate(lengths.tolist())
            if count
        ]

    def collect(self, answers: Sequence[Answer], lengths: NDArray[np.int64], keep: int) -> NDArray[np.float32]:
        """What `step` returns."""
        rows = np.flatnonzero(lengths).tolist()
        if self.taps.names:
            for b, answer in zip(rows, answers, strict=True):
                self.taps.add(answer.taps, lengths[b : b + 1], first=b)
        logits = np.zeros((len(lengths), keep or int(lengths.max()), self._engine.info.vocab_size), np.float32)
        for b, answer in zip(rows, answers, strict=True):
            first = keep - len(answer.logits) if keep else 0
            logits[b, first : first + len(answer.logits)] = answer.logits
        return logits

    def step_together(self, steps: Sequence[RunnerStep]) -> list[NDArray[np.float32]]:
        """See SharingRunner."""
        runners = [cast(PagedRunner, step.runner) for step in steps]
        asked = [
            runner.prepare(step.tokens, step.lengths, step.positions, step.keep)
            for runner, step in zip(runners, steps, strict=True)
        ]
        answers = iter(self._engine.run([row for rows in asked for row in rows]))
        return [
            runner.collect(list(islice(answers, len(rows))), step.lengths, step.keep)
            for runner, step, rows in zip(runners, steps, asked, strict=True)
        ]

    def fork(self) -> "PagedRunner":
        """See SharingRunner."""
        with self._engine.lock:
            return PagedRunner(self._engine, [tuple(table.shared() for table in row) for row in self._rows])

    def save(self) -> dict[str, NDArray[Any]]:
        """See SharingRunner. `{row}.{memory}.bounds` int64 [2], and `{row}.{memory}.{tensor}` uint8 [blocks,bytes]."""
        saved: dict[str, NDArray[Any]] = {}
        with self._engine.lock:
            for b, row in enumerate(self._rows):
                for number, (table, memory) in enumerate(zip(row, self._engine.memory, strict=True)):
                    saved[f"{b}.{number}.bounds"] = np.array([table.first, table.end])
                    saved |= {f"{b}.{number}.{name}": part for name, part in memory.read(table.blocks).items()}
        return saved

    def restore(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """See SharingRunner."""
        with self._engine.lock:
            for b, row in enumerate(self._rows):
                for number, (table, memory) in enumerate(zip(row, self._engine.memory, strict=True)):
                    prefix = f"{b}.{number}."
                    parts = {name[len(prefix) :]: part for name, part in saved.items() if name.startswith(prefix)}
                    table.first, table.end = parts.pop("bounds").tolist()
                    count = -(-(table.end - table.first) // table.size)
                    memory.pool.reserve(count)
                    table.blocks += [memory.pool.take() for _ in range(count)]
                    memory.write(table.blocks, parts)

    def drop_last(self, n: int) -> None:
        """See Runner."""
        with self._engine.lock:
            for row in self._rows:
                for table in row:
                    table.drop_last(n)

    def evict(self, keep: int) -> None:
        """See Runner. Whole blocks are forgotten, so a few more positions than asked for are kept."""
        if not any(self._engine.info.windows):
            return
        with self._engine.lock:
            for row in self._rows:
                row[-1].keep_last(keep)

    def cached(self) -> int:
        """See Runner."""
        return max(row[-1].end - row[-1].first for row in self._rows)

    def reset(self) -> None:
        """See Runner."""
        with self._engine.lock:
            for row in self._rows:
                for table in row:
                    table.clear()

    def close(self) -> None:
        """See Runner. The last one that is closed gives the memory back."""
        self.reset()
        with self._engine.lock:
            for memory in self._engine.memory:
                memory.shrink_unused()
