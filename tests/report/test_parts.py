"""The parts of the page that can be wrong without looking wrong: lines, edges and numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alize.report.canvas import decades
from alize.report.edges import clusters, edge_names
from alize.report.series import series
from alize.report.wording import chain, many, number, percent, share, value, visible


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=300), st.integers(1, 50))
def test_thinning_keeps_every_peak_where_it_is(values: list[float], columns: int) -> None:
    positions = np.arange(len(values)) + 5
    line = series(positions, np.array(values), columns=columns)
    drawn = {x: y for x, y in zip(line.x, line.y, strict=True) if not math.isnan(x)}
    assert max(drawn.values()) == max(values)
    assert all(values[int(x) - 5] == y for x, y in drawn.items())
    assert len(drawn) <= max(columns, 1)


def test_a_thinned_line_does_not_dip_at_its_end() -> None:
    values = np.array([1.0] * 9 + [0.1])  # the last column would hold the last position alone
    line = series(np.arange(10), values, columns=4)
    assert line.y[:-1].tolist() == [1.0, 1.0, 1.0]


def test_a_line_breaks_between_rows_and_at_gaps() -> None:
    positions = np.array([0, 1, 2, 0, 1, 7])
    line = series(positions, np.arange(6.0))
    assert np.array_equal(line.x, [0, 1, 2, np.nan, 0, 1, np.nan, 7, np.nan], equal_nan=True)
    assert line.lone[0].tolist() == [7.0]


def test_a_line_breaks_where_it_is_not_finite() -> None:
    line = series(np.arange(5), np.array([1.0, 2.0, np.inf, 3.0, 4.0]))
    assert np.array_equal(line.y, [1, 2, np.nan, 3, 4, np.nan], equal_nan=True)
    assert line.infinite.tolist() == [2.0]


def test_a_row_does_not_go_on_in_the_next_whose_start_is_not_finite() -> None:
    line = series(np.array([0, 1, 0, 1, 2]), np.array([1.0, 2.0, np.inf, np.inf, 3.0]))
    assert np.array_equal(line.x, [0, 1, np.nan, 2, np.nan], equal_nan=True)


def test_nothing_but_infinity_is_no_line() -> None:
    line = series(np.arange(3), np.full(3, np.inf))
    assert np.isnan(line.x).all()
    assert line.infinite.tolist() == [0.0, 1.0, 2.0]


def test_edges_are_named_by_window() -> None:
    assert edge_names((256, 256)) == {255: "W−1", 256: "W", 257: "W+1", 512: "2W"}
    assert edge_names((0, 0)) == {}
    assert edge_names((8, 0, 4)) == {3: "4−1", 4: "4", 5: "4+1", 8: "2·4", 7: "8−1", 9: "8+1", 16: "2·8"}


def test_near_positions_are_one_cluster() -> None:
    assert clusters([512, 255, 257, 256, 256], 6) == [[255, 256, 257], [512]]


@pytest.mark.parametrize(
    ("values", "limits", "range_"),
    [([], [], (1e-8, 1.0)), ([0.0], [], (1e-8, 1.0)), ([2e-5, np.inf], [3e-3], (1e-5, 1e-2)), ([], [0.05], (1e-2, 0.1))],
)
def test_axes_hold_what_is_finite(values: list[float], limits: list[float], range_: tuple[float, float]) -> None:
    assert decades([np.array(values)], limits) == pytest.approx(range_)


@pytest.mark.parametrize(
    ("figure", "text"),
    [(0, "0"), (1.9312e-5, "1.93e-5"), (2e-10, "2e-10"), (0.05, "0.05"), (1540.4, "1,540"), (3.2e9, "3.2e9"), (math.inf, "∞")],
)
def test_numbers_are_short(figure: float, text: str) -> None:
    assert number(figure) == text


@pytest.mark.parametrize(("part", "text"), [(1.0, "100 %"), (0.99999, "99.99 %"), (0.9, "90 %"), (0.0, "0 %")])
def test_all_is_said_only_of_all(part: float, text: str) -> None:
    assert share(part) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (0.13, "13 %"),
        (0.9999, "99 %"),
        (1.0, "100 %"),
        (1.0001, "101 %"),
        (0.0977, "9 %"),
        (0.00999, "0.9 %"),
        (0.0, "0 %"),
        (1e-6, "< 0.1 %"),
        (31, "31 ×"),
        (math.inf, "∞ ×"),
    ],
)
def test_a_ratio_shows_its_side_of_the_limit(ratio: float, text: str) -> None:
    assert percent(ratio) == text


def test_values_are_said_in_words() -> None:
    assert value([256] * 30 + [0, True]) == "256 (30 times), 0, yes"
    assert value(list(range(20))).endswith("10, 11, …")
    assert value([]) == value(None) == value({}) == "none"
    assert value({"factor": 8.0, "type": "yarn"}) == "factor = 8, type = yarn"
    assert many(1837, "position") == "1,837 positions"
    assert chain(["a", "b", "c"]) == "a, b and c"


def test_only_what_no_page_may_hold_is_replaced() -> None:
    assert visible("Улаанбаатар\t🙂\r\nپاکستان") == "Улаанбаатар\t🙂\nپاکستان"
    assert visible("a\x00b\x1bc\x85d\ud83de\uffff") == "a�b�c�d�e�"
