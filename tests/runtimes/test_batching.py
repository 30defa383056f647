"""Continuous batches: every request says what it says alone, on the fake back-end and on paged attention."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from alize.errors import ContextExceeded, SessionError, TokenOutOfRange, UsageError
from alize.runtimes.batching import ContinuousBatch
from alize.runtimes.generate import GenerationOptions, generate
from alize.runtimes.model import Model
from alize.runtimes.session import Limits, Session
from tests.runtimes.backends import FULL, MAX_POSITIONS, MIXED, SUBJECTS, UNIFORM, VOCABULARY, Subject

LIMITS = Limits(chunk=6, slack=8, capacity=None)


@dataclass
class Opened:
    """What a batch asks of a model, for a subject of the conformance suite."""

    subject: Subject
    limits: Limits = LIMITS
    sessions: list[Session] = field(default_factory=list)

    def session(self) -> Session:
        limits = self.limits
        opened = Session(self.subject.runner(1), self.subject.info, batch=1, chunk=limits.chunk, slack=limits.slack)
        self.sessions.append(opened)
        return opened


@pytest.fixture(
    params=[("fake", UNIFORM), ("openvino-paged", UNIFORM), ("openvino-paged", FULL), ("openvino-paged", MIXED)], ids=str
)
def model(request: pytest.FixtureRequest) -> Model:
    name, layout = request.param
    return cast(Model, Opened(SUBJECTS[name].make(layout)))


def prompt(size: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, size)


def written_alone(model: Model, tokens: NDArray[np.int64], options: GenerationOptions) -> tuple[list[int], str | None]:
    with model.session() as session:
        running = generate(session, tokens[None], options)
        return [int(step[0]) for step in running], running.finish_reasons[0]


def written(batch: ContinuousBatch) -> dict[int, tuple[list[int], str | None]]:
    tokens: dict[int, list[int]] = defaultdict(list)
    reasons: dict[int, str | None] = {}
    for step in batch:
        for new in step:
            assert reasons.get(new.request) is None, "a token behind the last one"
            tokens[new.request].append(new.token)
            reasons[new.request] = new.finish_reason
    return {request: (found, reasons[request]) for request, found in tokens.items()}


def test_every_request_says_what_it_says_alone(model: Model) -> None:
    """More requests than rows, prompts longer than a step, ends at different times and for different reasons."""
    asked = [
        (prompt(size, seed), GenerationOptions(max_new_tokens=count, temperature=temperature, seed=seed, stop_token_ids=stop))
        for seed, (size, count, temperature, stop) in enumerate(
            [(1, 9, 0.0, ()), (20, 4, 0.0, ()), (7, 12, 0.8, (3, 9, 27)), (13, 1, 0.0, ()), (2, 15, 1.1, ()), (9, 9, 0.0, ())]
        )
    ]
    with ContinuousBatch(model, rows=3) as batch:
        assert [batch.submit(tokens, options) for tokens, options in asked] == list(range(6))
        found = written(batch)
    assert found == {request: written_alone(model, *one) for request, one in enumerate(asked)}


def test_a_request_may_join_and_another_leave(model: Model) -> None:
    options = GenerationOptions(max_new_tokens=8)
    with ContinuousBatch(model) as batch:
        first, second = batch.submit(prompt(4, 1), options), batch.submit(prompt(5, 2), options)
        started = [new for _ in range(4) for new in batch.step()]
        batch.cancel(second)
        third = batch.submit(prompt(6, 3), options)
        rest = written(batch)
    assert [new.token for new in started if new.request == first] + rest[first][0] == written_alone(model, prompt(4, 1), options)[
        0
    ]
    assert rest[third] == written_alone(model, prompt(6, 3), options)
    assert second not in rest
    with pytest.raises(UsageError, match="request 1 is not running: 3 were submitted"):
        batch.cancel(second)


def test_a_shared_prefix_is_as_good_as_read_again(model: Model) -> None:
    options, start = GenerationOptions(max_new_tokens=6), prompt(11, 5)
    ends = [prompt(3, 6), prompt(2, 7)]
    with model.session() as prefix, ContinuousBatch(model) as batch:
        prefix.append(start[None])
        if cast(Opened, model).subject is SUBJECTS["fake"].make(UNIFORM):
            with pytest.raises(SessionError, match="cannot share or save"):
                batch.submit(ends[0], options, prefix=prefix)
            return
        for end in ends:
            batch.submit(end, options, prefix=prefix)
        found = written(batch)
        assert prefix.position == len(start)
    for request, end in enumerate(ends):
        assert found[request] == written_alone(model, np.concatenate([start, end]), options)


def test_bad_requests(model: Model) -> None:
    with pytest.raises(UsageError, match="rows 0 must be at least 1"):
        ContinuousBatch(model, rows=0)
    with ContinuousBatch(model) as batch:
        with pytest.raises(TokenOutOfRange):
            batch.submit([VOCABULARY], GenerationOptions())
        with pytest.raises(SessionError, match="empty prompt"):
            batch.submit([], GenerationOptions())
        if 0 in cast(Opened, model).subject.info.windows:
            with pytest.raises(ContextExceeded):
                batch.submit(prompt(MAX_POSITIONS + 1, 1), GenerationOptions())
        assert list(batch) == []
    assert all(session._closed for session in cast(Opened, model).sessions)
