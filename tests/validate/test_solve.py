"""Hidden states that choose an expert by name, for every router: what cannot be chosen is found out, never passed over."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from alize.validate.solve import ROWS, forcing_states, least_norm_point

Floats = NDArray[np.float32]


def router(experts: int, hidden: int, *, seed: int = 0, size: float = 0.2) -> Floats:
    return (np.random.default_rng(seed).normal(size=(experts, hidden)) * size).astype(np.float32)


def chosen(rows: Floats, states: Floats, top_k: int) -> NDArray[np.int64]:
    """In float64, equal logits by their index."""
    logits = states.astype(np.float64) @ rows.T.astype(np.float64)
    return np.argsort(-logits, axis=1, kind="stable")[:, :top_k]


def reachable(rows: Floats, top_k: int) -> list[bool]:
    found = []
    for expert in range(len(rows)):
        states = forcing_states(rows, expert, top_k, seed=expert)
        found.append(states is not None)
        if states is not None:
            assert (states.shape, states.dtype) == ((ROWS, rows.shape[1]), np.float32)
    return found


@pytest.mark.parametrize(("experts", "hidden", "top_k"), [(4, 32, 1), (4, 32, 2), (4, 32, 3), (8, 576, 2), (16, 40, 3)])
@pytest.mark.parametrize("size", [1e-3, 0.2, 30.0])
def test_independent_rows_give_the_asked_order(experts: int, hidden: int, top_k: int, size: float) -> None:
    rows = router(experts, hidden, size=size)
    for expert in range(experts):
        states = forcing_states(rows, expert, top_k, seed=7)
        assert states is not None
        expected = [(expert + step) % experts for step in range(top_k)]
        assert chosen(rows, states, top_k).tolist() == [expected] * ROWS
        assert 0.3 < np.sqrt((states**2).mean()) < 5  # what a norm hands on has about 1


def test_shares_are_clearly_different_and_states_too() -> None:
    rows = router(8, 64)
    states = forcing_states(rows, 5, 2, seed=0)
    assert states is not None
    logits = np.sort(states @ rows.T, axis=1)[:, ::-1]
    np.testing.assert_allclose(logits[:, 0] - logits[:, 1], 1.0, atol=1e-4)
    np.testing.assert_allclose(logits[:, 1] - logits[:, 2], 1.0, atol=1e-4)
    assert np.linalg.matrix_rank(states) == ROWS


@given(st.integers(2, 8), st.integers(1, 6), st.integers(1, 3), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_more_experts_than_the_hidden_size(experts: int, hidden: int, top_k: int, seed: int) -> None:
    """Rows depend on each other; what is said to be reachable is reached, and what random states reach is said to be."""
    top_k = min(top_k, experts)
    rows = router(experts, hidden, seed=seed)
    found = {expert: forcing_states(rows, expert, top_k, seed=0) for expert in range(experts)}
    for expert, states in found.items():
        if states is not None:
            assert (chosen(rows, states, top_k) == expert).any(axis=1).all()
    random = np.random.default_rng(seed).normal(size=(200, hidden)).astype(np.float32)
    clear = np.sort(random.astype(np.float64) @ rows.T.astype(np.float64), axis=1)[:, ::-1]
    apart = clear[:, top_k - 1] - (clear[:, top_k] if top_k < experts else -np.inf) > 1e-3 * np.abs(clear).max()
    for expert in np.unique(chosen(rows, random[apart], top_k)).tolist():
        assert found[expert] is not None


def test_equal_rows_are_the_lower_experts() -> None:
    rows = router(4, 16)
    rows[3] = rows[1]
    assert reachable(rows, 1) == [True, True, True, False]
    assert reachable(rows, 2) == [True] * 4  # first and second
    rows[2] = rows[1]
    assert reachable(rows, 2) == [True, True, True, False]
    assert reachable(np.zeros((4, 16), np.float32), 2) == [True, True, False, False]


def test_an_expert_between_the_others_is_never_first() -> None:
    rows = router(5, 16)
    rows[4] = rows[:4].mean(axis=0)
    assert reachable(rows, 1) == [True, True, True, True, False]
    assert reachable(rows, 2) == [True] * 5


def test_all_are_chosen_where_all_have_to_be() -> None:
    assert reachable(router(3, 2), 3) == [True] * 3


@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 10_000), st.floats(-1, 1))
@settings(deadline=None)
def test_the_point_of_least_norm(count: int, size: int, seed: int, offset: float) -> None:
    """It is in the hull, and no point of the hull lies on its near side: that makes it the nearest one."""
    points = np.random.default_rng(seed).normal(size=(count, size)) + offset
    nearest = least_norm_point(points)
    assert (points @ nearest).min() >= nearest @ nearest - 1e-9
    system = np.vstack([points.T, np.ones(count)])
    shares, *_ = np.linalg.lstsq(system, np.append(nearest, 1.0), rcond=None)
    np.testing.assert_allclose(system @ shares, np.append(nearest, 1.0), atol=1e-6)
