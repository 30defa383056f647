"""Verdicts are pure functions of figures and budgets: exact at the limit, and nothing that is no number passes."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alize.validate.judge import Budget, fidelity_limit, judge_fidelity, judge_loss
from alize.validate.measure import Figures


def figures(
    error: Sequence[float] = (0.0,),
    *,
    kl: Sequence[float] | None = None,
    first: int = 0,
    top1: Sequence[bool] | None = None,
    near_tie: Sequence[bool] | None = None,
) -> Figures:
    count = len(kl or error)
    return Figures(
        positions=np.arange(first, first + count),
        kl=np.array(kl or [0.0] * count),
        error=np.array(error if len(error) == count else [0.0] * count),
        top1=np.array(top1 or [True] * count),
        near_tie=np.array(near_tie or [False] * count),
    )


def test_the_limit_is_a_multiple_of_the_floors_largest_error() -> None:
    assert fidelity_limit(figures([1e-6, 4e-6, 2e-6]), Budget(fidelity_factor=5.0)) == pytest.approx(2e-5)


def test_fidelity_at_the_limit_passes_and_above_it_fails() -> None:
    assert judge_fidelity(figures([0.5, 1.0]), 1.0) == []
    assert judge_fidelity(figures([0.5, math.nextafter(1.0, 2)]), 1.0) != []


def test_fidelity_counts_and_names_the_positions() -> None:
    reasons = judge_fidelity(figures([0.0, 2.0, 3.0, 0.5], first=10), 1.0)
    assert reasons == ["2 of 4 positions are off by more than 1, first at position 11, worst 3 at 12"]


def test_one_wrong_position_among_thousands_is_not_averaged_away() -> None:
    assert len(judge_fidelity(figures([1e-6] * 5000 + [1.1] + [1e-6] * 5000), 1.0)) == 1


def test_another_token_fails_where_it_is_no_near_tie() -> None:
    changed = figures([0.0] * 3, top1=[True, False, False], near_tie=[False, True, False])
    assert judge_fidelity(changed, 1.0) == ["another most probable token at 1 positions, first at 2"]
    assert judge_fidelity(dataclasses.replace(changed, near_tie=np.array([False, True, True])), 1.0) == []


@pytest.mark.parametrize("error", [math.inf, math.nan])
def test_fidelity_never_passes_what_is_no_number(error: float) -> None:
    assert judge_fidelity(figures([0.0, error]), 1.0)
    assert judge_fidelity(figures([0.0, error]), math.inf) or error == math.inf


def test_a_floor_that_is_no_number_passes_nothing() -> None:
    assert judge_fidelity(figures([0.0, 0.1]), fidelity_limit(figures([math.nan]), Budget()))


def test_losses_are_judged_by_their_mean_and_their_worst() -> None:
    found = figures(kl=[0.0, 0.0, 0.3])
    assert judge_loss(found, mean=0.1, worst=0.3) == []
    assert judge_loss(found, mean=0.09, worst=0.3) == ["mean KL 0.1 nats is above the budget of 0.09"]
    assert judge_loss(found, mean=0.1, worst=0.2) == ["worst KL 0.3 nats is above the budget of 0.2"]
    assert len(judge_loss(found, mean=0.0, worst=0.0)) == 2


@pytest.mark.parametrize("kl", [math.inf, math.nan])
def test_losses_never_pass_what_is_no_number(kl: float) -> None:
    assert len(judge_loss(figures(kl=[0.0, kl]), mean=1e9, worst=1e9)) == 2


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20), st.floats(0, 10))
def test_fidelity_passes_exactly_when_every_position_is_within(errors: list[float], limit: float) -> None:
    assert (judge_fidelity(figures(errors), limit) == []) == all(error <= limit for error in errors)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20), st.floats(0, 10), st.floats(0, 10), st.floats(0, 10))
def test_a_larger_budget_never_fails_what_a_smaller_passes(kl: list[float], mean: float, worst: float, more: float) -> None:
    if not judge_loss(figures(kl=kl), mean=mean, worst=worst):
        assert not judge_loss(figures(kl=kl), mean=mean + more, worst=worst + more)


def test_a_budget_survives_the_manifest() -> None:
    budget = Budget(fidelity_factor=12.0, runtime_kl=0.25)
    assert Budget(**budget.as_dict()) == budget
    assert all(isinstance(value, float) for value in budget.as_dict().values())
