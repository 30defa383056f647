"""Every case of a plan is fed to an engine so that its logits stand at the positions that they are compared at."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo
from alize.runtimes.fake import FakeEngine
from alize.runtimes.session import Session
from alize.validate.cases import Case, make_plan
from alize.validate.drive import places, run_case
from tests.validate.test_cases import INFO

TOKENS = np.random.default_rng(0).integers(0, INFO.vocab_size, 200)


def info(window: int) -> ModelInfo:
    return dataclasses.replace(INFO, windows=(window, window))


def whole(model: ModelInfo, size: int) -> NDArray[np.float32]:
    """Logits [size,V] of one row read in one step."""
    with Session(FakeEngine(model).runner(1), model, batch=1, chunk=size, slack=size) as session:
        return session.append(TOKENS[None, :size], keep=0)[0]


@pytest.mark.parametrize("window", [0, 1, 2, 5, 12])
@pytest.mark.parametrize("seconds", [0.0, 1e9])  # a token: the full plan, and the least
def test_every_case_says_what_one_pass_says(window: int, seconds: float) -> None:
    model = info(window)
    plan = make_plan(model, seconds_a_token=seconds, budget_seconds=None)
    expected = whole(model, plan.length)
    kept = np.arange(plan.length)
    for case in plan.cases:
        positions, logits = run_case(FakeEngine(model), model, case, TOKENS, kept)
        assert len(positions) == case.tokens
        np.testing.assert_array_equal(logits, expected[positions], err_msg=case.name)


def test_positions_come_row_by_row_and_step_by_step() -> None:
    case = Case("two rows", first=(3, 1), steps=(2, 1), chunk=3)
    positions, _ = run_case(FakeEngine(info(5)), info(5), case, TOKENS, np.arange(10))
    assert positions.tolist() == [0, 1, 2, 0, 3, 4, 1, 2, 5, 3]


def test_only_kept_positions_are_returned() -> None:
    model, kept = info(5), np.array([0, 4, 7])
    case = Case("some", first=(5, 2), steps=(3,), chunk=5)
    positions, logits = run_case(FakeEngine(model), model, case, TOKENS, kept)
    assert positions.tolist() == [0, 4, 0, 7, 4]
    np.testing.assert_array_equal(logits, whole(model, 8)[positions])


def test_a_wrong_engine_shows_where_it_is_wrong() -> None:
    right, wrong = info(5), info(6)
    positions, logits = run_case(FakeEngine(wrong), right, Case("one", (9,), (), chunk=9), TOKENS, np.arange(9))
    different = positions[(logits != whole(right, 9)[positions]).any(axis=1)]
    assert different.tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("kept", [np.arange(200), np.array([0, 3, 4, 9])], ids=["all", "some"])
def test_places_are_those_of_the_logits(window: int, kept: NDArray[np.int64]) -> None:
    """What a case returns can be told apart by its row: each logit is found where its row and position say."""
    model = info(window)
    for case in make_plan(model, seconds_a_token=1.0, budget_seconds=1e9).cases:
        positions, _ = run_case(FakeEngine(model), model, case, TOKENS, kept)
        rows, found = places(case, kept)
        np.testing.assert_array_equal(found, positions)
        for b, size in enumerate(case.rows):
            assert sorted(found[rows == b].tolist()) == kept[kept < size].tolist()
