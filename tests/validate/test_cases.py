"""What the cases are for every window: they cross its edge in each way that a runtime can, and a budget never cuts that."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alize.artifact.manifest import ModelInfo
from alize.models.checkpoint import Weight
from alize.validate.cases import UNWINDOWED_SPAN, Case, Plan, active_parameters, make_plan

INFO = ModelInfo(
    layers=2,
    query_heads=4,
    key_value_heads=2,
    head_size=8,
    hidden_size=32,
    vocab_size=100,
    windows=(12, 12),
    max_positions=4096,
    bos_token_id=1,
    eos_token_ids=(2,),
    experts=0,
    experts_per_token=0,
)
SPANS = st.integers(1, 9000)
FULL, LEAST = 1e9, None  # seconds


def plan(window: int, *, budget: float | None = FULL, max_positions: int = 4096) -> Plan:
    """LEAST: on a machine where one token takes longer than a validation usually may."""
    info = dataclasses.replace(INFO, windows=(window, window), max_positions=max_positions)
    return make_plan(info, seconds_a_token=1e3 if budget is LEAST else 1.0, budget_seconds=budget)


def lengths(case: Case) -> set[int]:
    """Cached lengths at which some row of the case gets logits."""
    return {size for first in case.first for size in range(1, first + sum(case.steps) + 1)}


def test_the_full_plan_of_a_window_of_12() -> None:
    found = plan(12)
    assert found.length == 2 * 12 + 3
    assert [(case.name, case.first, case.steps, case.chunk) for case in found.cases] == [
        ("one append", (27,), (), 27),
        ("chunks of 10, then decode past two windows", (10,), (10, 1, 1, 1, 1, 1, 1, 1), 10),
        ("decode across the edge", (10,), (1, 1, 1, 1, 1, 1), 27),
        ("unequal batch", (13, 10, 7), (1, 1), 15),
    ]
    assert found.edges == (11, 12, 24)
    assert found.continuation == 32
    assert found.bf16_floor
    assert found.left_out == ()


def test_the_least_plan_of_a_window_of_12() -> None:
    found = plan(12, budget=LEAST)
    assert found.length == 12 + 3
    assert [(case.name, case.first, case.steps) for case in found.cases] == [
        ("decode across the edge", (10,), (1,) * 5),
        ("chunks of 7", (7,), (7, 1)),
        ("unequal batch", (13, 10, 7), (1, 1)),
    ]
    assert found.left_out[0].startswith("lengths beyond W+3 = 15 (")
    assert found.left_out[0].endswith(" s expected, 300 s allowed)")
    assert set(found.left_out[1:]) == {"decode past two windows", "greedy continuation", "the bfloat16 floor"}
    assert (found.continuation, found.bf16_floor) == (0, False)


def test_a_budget_below_the_least_plan_buys_the_tokens_that_fit() -> None:
    found = plan(12, budget=150.0)
    assert found.partial
    assert found.length == 6 + 3
    assert [(case.name, case.rows) for case in found.cases] == [
        ("decode", (9,)),
        ("chunks of 4", (9,)),
        ("unequal batch", (9, 6, 8)),
    ]
    assert (found.edges, found.continuation, found.bf16_floor) == ((), 0, False)
    assert found.left_out[0].startswith("all but 9 tokens (")
    assert found.left_out[0].endswith(" s expected, 150 s allowed)")


def test_a_budget_that_buys_no_token_leaves_everything_out() -> None:
    found = plan(12, budget=2.5)
    assert (found.length, found.cases, found.left_out) == (0, (), ("everything: the validation budget is 2.5 s",))
    assert found.partial


@given(st.integers(1, 4096), st.floats(0, 1e5))
def test_what_is_planned_by_a_budget_costs_no_more(window: int, budget: float) -> None:
    found = plan(window, budget=budget)
    assert 4 * found.length + 2 * sum(case.tokens for case in found.cases) + 3 * found.continuation <= budget
    assert found.partial == (found.length < plan(window, budget=LEAST).length)


def test_without_a_window_a_span_stands_for_it() -> None:
    assert plan(0).length == 2 * UNWINDOWED_SPAN + 3
    assert plan(0).edges == (UNWINDOWED_SPAN - 1, UNWINDOWED_SPAN, 2 * UNWINDOWED_SPAN)


@given(st.integers(9, 200))
def test_a_model_is_not_asked_beyond_its_last_position(max_positions: int) -> None:
    found = plan(0, max_positions=max_positions)
    assert found.length <= max_positions
    assert found.continuation >= 1
    assert min(64, found.length // 2) + found.continuation <= max_positions


def test_a_window_of_1_is_crossed_too() -> None:
    found = plan(1)
    assert found.edges == (0, 1, 2)
    assert found.continuation == 32


@given(SPANS, st.sampled_from([FULL, LEAST]))
def test_every_case_reads_no_more_than_the_reference_did(window: int, budget: float) -> None:
    found = plan(window, budget=budget)
    for case in found.cases:
        assert min(case.first) >= 1
        assert max(case.rows) <= found.length
        assert max(case.steps, default=1) <= case.chunk


@given(SPANS, st.sampled_from([FULL, LEAST]))
def test_no_budget_cuts_the_minimum_set(window: int, budget: float) -> None:
    found = plan(window, budget=budget)
    single = [case for case in found.cases if len(case.first) == 1]
    decoded = [case for case in single if set(case.steps) == {1}]
    assert any(case.first[0] < max(window, 2) and case.rows[0] > window for case in decoded)  # the edge, one token at a time
    assert any(case.name.startswith("chunks of") and case.steps for case in single)
    unequal = [case for case in found.cases if len(case.first) == 3]
    assert any(max(case.rows) > window for case in unequal)
    assert any(len(set(case.first)) > 1 for case in unequal) or window == 1


@given(SPANS)
def test_the_full_plan_asks_at_the_lengths_around_the_edge(window: int) -> None:
    whole = {size for case in plan(window).cases for size in lengths(case)}
    assert {window - 1, window, window + 1, 2 * window + 3} - {0} <= whole


@given(st.integers(4, 9000))
def test_small_chunks_make_the_cache_shift(window: int) -> None:
    chunked = next(case for case in plan(window).cases if case.name.startswith("chunks of"))
    capacity = window - 1 + chunked.chunk  # slack is the chunk
    assert chunked.rows[0] > capacity
    assert len(chunked.steps) <= 31 + 6


@given(SPANS, st.floats(1e-3, 1e6))
def test_what_is_left_out_is_written_down(window: int, budget: float) -> None:
    found, full = plan(window, budget=budget), plan(window)
    assert (found == full) == (found.left_out == ())


@pytest.mark.parametrize("windows", [(0, 12), (12, 0), (3, 12)])
def test_the_widest_window_decides(windows: tuple[int, int]) -> None:
    info = dataclasses.replace(INFO, windows=windows)
    assert make_plan(info, seconds_a_token=1.0, budget_seconds=FULL) == plan(12)


def test_a_token_meets_the_experts_that_it_chooses() -> None:
    """Of a stack of E experts top_k count, of everything else all."""
    weights = {"router": Weight(("router",), (8, 32)), "stack": Weight(("a", "b"), (8, 56, 32))}
    sparse = dataclasses.replace(INFO, experts=8, experts_per_token=2)
    assert active_parameters(weights, sparse) == 8 * 32 + 2 * 56 * 32
    assert active_parameters({"dense": Weight(("dense",), (56, 32))}, INFO) == 56 * 32
