"""Figures are exact on small examples, and mean what they say on any."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from alize.validate.measure import NEAR_TIE, Figures, measure

LOG_3 = math.log(3)
LOGITS = arrays(np.float32, (5, 7), elements=st.floats(-30, 30, width=32))


def rows(*values: list[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def measured(reference: NDArray[np.float32], artifact: NDArray[np.float32]) -> Figures:
    return measure(reference, artifact, np.arange(len(reference)))


def test_kl_error_and_top1_of_a_small_example() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2)
    figures = measured(rows([LOG_3, 0.0]), rows([0.0, 0.0]))
    assert figures.kl[0] == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)
    assert figures.error[0] == pytest.approx(LOG_3, rel=1e-6)
    assert figures.top1.tolist() == [True]


def test_kl_is_of_the_artifact_from_the_reference_not_the_other_way() -> None:
    certain, even = rows([20.0, 0.0, 0.0]), rows([0.0, 0.0, 0.0])
    assert measured(certain, even).kl[0] == pytest.approx(math.log(3), rel=1e-6)
    assert measured(even, certain).kl[0] > 10


def test_a_near_tie_is_told_from_another_token() -> None:
    reference = rows([1.0, 1.0 - NEAR_TIE / 2, -9.0], [1.0, 1.0 - NEAR_TIE * 2, -9.0], [1.0, 0.0, -9.0])
    artifact = rows([0.0, 1.0, -9.0], [0.0, 1.0, -9.0], [1.0, 0.5, -9.0])
    figures = measured(reference, artifact)
    assert figures.top1.tolist() == [False, False, True]
    assert figures.near_tie.tolist() == [True, False, False]


def test_an_equal_tie_takes_the_first_token_on_both_sides() -> None:
    assert measured(rows([2.0, 2.0]), rows([2.0, 2.0])).top1.tolist() == [True]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_infinitely_wrong(bad: float) -> None:
    figures = measured(rows([1.0, 0.0], [1.0, 0.0]), rows([1.0, 0.0], [1.0, bad]))
    assert figures.kl.tolist() == [0.0, math.inf]
    assert figures.error.tolist() == [0.0, math.inf]
    assert figures.top1.tolist() == [True, False]
    assert not figures.near_tie.any()
    assert figures.summary()["kl_max"] == math.inf
    assert {"kl_mean", "kl_max", "logit_error_max"}.isdisjoint(figures.finite_summary())


def test_more_positions_than_are_taken_together() -> None:
    rng = np.random.default_rng(0)
    reference, artifact = (rng.normal(size=(150, 9)).astype(np.float32) for _ in range(2))
    whole = measure(reference, artifact, np.arange(100, 250))
    for index in (0, 63, 64, 149):
        alone = measure(reference[index : index + 1], artifact[index : index + 1], np.array([100 + index]))
        assert (whole.kl[index], whole.error[index]) == (pytest.approx(alone.kl[0]), alone.error[0])
    assert whole.positions.tolist() == list(range(100, 250))


def test_the_arguments_are_left_alone() -> None:
    artifact = rows([math.nan, 1.0])
    measured(rows([0.0, 1.0]), artifact)
    assert math.isnan(artifact[0, 0])


def test_the_summary() -> None:
    figures = Figures(
        positions=np.array([4, 5, 6, 7]),
        kl=np.array([0.0, 0.1, 0.2, 0.5]),
        error=np.array([1.0, 2.0, 3.0, 10.0]),
        top1=np.array([True, True, False, False]),
        near_tie=np.array([False, False, True, False]),
    )
    assert figures.summary() == {
        "positions": 4.0,
        "kl_mean": pytest.approx(0.2),
        "kl_max": 0.5,
        "logit_error_max": 10.0,
        "logit_error_median": 2.5,
        "top1_agreement": 0.5,
        "near_ties": 1.0,
    }


@given(LOGITS)
def test_logits_are_no_distance_from_themselves(logits: NDArray[np.float32]) -> None:
    figures = measured(logits, logits)
    assert not figures.kl.any()
    assert not figures.error.any()
    assert figures.top1.all()


@given(LOGITS, LOGITS)
def test_figures_of_any_logits(reference: NDArray[np.float32], artifact: NDArray[np.float32]) -> None:
    figures = measured(reference, artifact)
    assert (figures.kl >= 0).all()
    assert not (figures.top1 & figures.near_tie).any()
    difference = np.abs(reference.astype(np.float64) - artifact.astype(np.float64)).max(axis=1)
    assert figures.error.tolist() == difference.tolist()
    # a logit is nowhere further off than `error`, so a log-probability is nowhere further off than twice that
    assert (figures.kl <= 2 * figures.error + 1e-9).all()


@given(LOGITS, st.floats(-5, 5, width=32))
def test_a_shift_of_all_logits_changes_no_probability(logits: NDArray[np.float32], shift: float) -> None:
    figures = measured(
        logits.astype(np.float16).astype(np.float32), logits.astype(np.float16).astype(np.float32) + np.float32(shift)
    )
    assert figures.kl.max() < 1e-9
