"""The arithmetic of `python -m benchmarks.bench`: floors, rounds, ratios and tables."""

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import measuring
from benchmarks.bench.floor import Floor
from benchmarks.bench.tables import advantage, model_tables
from benchmarks.measuring import rounds_of, summaries

CONFIG: dict[str, Any] = {
    "vocab_size": 10, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
HEAD = 10 * (8 + 2) + (8 + 2) + 4 * 8
NORMS = 2 * 4 * 8


def test_the_floor_counts_each_weight_and_scale_once() -> None:
    attention = 2 * 8 * (8 + 2) + 2 * 4 * (8 + 2)  # q, o, then k, v of one head of 4
    dense = 2 * 12 * (8 + 2) + 8 * (12 + 2)
    assert Floor(CONFIG, 8).weight_bytes == 3 * (attention + dense + NORMS) + HEAD
    four = 2 * 8 * (4 + 2 * 2) + 2 * 4 * (4 + 2 * 2) + 2 * 12 * (4 + 2 * 2) + 8 * (6 + 3 * 2)
    assert Floor(CONFIG, 4, 4).weight_bytes == 3 * (four + NORMS) + HEAD


def test_the_floor_of_a_mixture_counts_the_experts_of_one_token() -> None:
    mixture = CONFIG | {"num_local_experts": 8, "num_experts_per_tok": 2}
    expert = 2 * 12 * (8 + 2) + 8 * (12 + 2)
    assert Floor(mixture, 8).weight_bytes - Floor(CONFIG, 8).weight_bytes == 3 * (expert + 8 * 8 * 4)


def test_the_cache_of_a_windowed_model_ends_at_its_window() -> None:
    assert Floor(CONFIG, 8).cache_bytes(100) == 2 * 3 * 1 * 4 * 100 * 2
    assert Floor(CONFIG | {"sliding_window": 64}, 8).cache_bytes(100) == 2 * 3 * 1 * 4 * 64 * 2
    assert Floor(CONFIG | {"head_dim": 16}, 8).cache_bytes(1) == 2 * 3 * 16 * 2


def test_the_seconds_of_the_floor() -> None:
    floor = Floor(CONFIG, 8)
    assert floor.seconds(5, 1000.0) == pytest.approx((floor.weight_bytes + floor.cache_bytes(5)) / 1000)


def test_rounds_begin_with_another_subject_each_time() -> None:
    order: list[str] = []

    def called(name: str) -> Callable[[], int]:
        return lambda: order.append(name) or len(order)

    found = rounds_of({name: called(name) for name in "abc"}, rounds=3)
    assert "".join(order) == "abcbcacab"
    assert found["a"] == [1, 6, 8]


def test_rounds_end_with_the_one_that_spends_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(measuring.time, "monotonic", lambda: next(clock))
    assert len(rounds_of({"a": lambda: 0}, rounds=9, seconds=25)["a"]) == 3
    assert len(rounds_of({"a": lambda: 0}, rounds=9, seconds=0, least=4)["a"]) == 4
    assert len(rounds_of({"a": lambda: 0}, rounds=2, seconds=1000)["a"]) == 2


def test_an_advantage_is_the_paired_ratio_either_way_round() -> None:
    found = summaries({"ours": [2.0, 4.0, 30.0], "theirs": [1.0, 4.0, 10.0]})
    assert advantage(found, "ours", "theirs") == 2.0
    assert advantage(found, "theirs", "ours") == 0.5


def test_the_table_of_a_model() -> None:
    ours, rival = "alize, OpenVINO", "openvino-genai"
    times = summaries({ours: [1.0, 1.0], rival: [2.0, 2.0]})
    result = {
        "what": "a model",
        "weights": "int8, a scale a row",
        "bandwidth_gb_s": {"median": 20.0, "quartile_1": 19.0, "quartile_3": 21.0, "runs": 2},
        "floor": {"weight_bytes": 135_000_000, "cache_bytes": 800_000},
        "decode_tokens_per_second": summaries({ours: [60.0, 60.0], rival: [40.0, 40.0]}),
        "fraction_of_floor": {ours: {"median": 0.4}, rival: {"median": 0.3}},
        "first_token_seconds": {"256": times},
        "cold_start_seconds": {"first": {ours: 3.0, rival: 2.0}, "later": times},
        "memory_mb": {name: {"rss_mb": 400.0, "anonymous_mb": 200.0, "peak_mb": 500.0} for name in (ours, rival)},
        "prepared": {
            ours: {
                "steps": [{"seconds": 2.0, "peak_mb": 10.0}, {"seconds": 3.0, "peak_mb": 7.0}],
                "size_mb": 140.0,
                "failed": None,
                "validate_seconds": 4.0,
            }
        },
        "failed": {"llama.cpp": "said nothing"},
        "load_before": 0.1,
    }
    lines = list(model_tables("some", result))
    assert "| | alize, OpenVINO | openvino-genai |" in lines
    assert "| decode, tokens/s | 60.0 (60.0 to 60.0) | 40.0 (40.0 to 40.0) |" in lines
    assert "| of the floor | 40% | 30% |" in lines
    assert "| made in, s | 5, 4 of it validating |  |" in lines
    assert "| made with, MB at peak | 10 |  |" in lines
    assert "| alize, OpenVINO / openvino-genai | 1.50 | 2.00 | 2.00 |" in lines
    assert "- llama.cpp: said nothing" in lines
