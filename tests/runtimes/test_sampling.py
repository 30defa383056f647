"""Sampling against its vectors, which another program wrote, and against what the words of docs/sampling.md promise."""

import json
import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from alize.errors import SessionError, UsageError
from alize.runtimes.philox import philox4x32, uniform
from alize.runtimes.sampling import SamplingOptions, exp, sample

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "sampling.json").read_text())
LOGITS = {name: np.array([float(x) for x in values], np.float32) for name, values in VECTORS["logits"].items()}


def options(fields: dict[str, Any]) -> SamplingOptions:
    return SamplingOptions(**(fields | {"seed": int(fields.get("seed", "0x0"), 16)}))


def draw(logits: NDArray[np.float32], chosen: SamplingOptions, *, row: int = 0, position: int = 0) -> int:
    return int(sample(np.tile(logits, (row + 1, 1)), np.full(row + 1, position), chosen)[row])


@pytest.mark.parametrize("answer", VECTORS["philox"], ids=lambda answer: answer["words"][0])
def test_philox_known_answers(answer: dict[str, list[str]]) -> None:
    """The vectors that Random123 publishes."""
    counter, key, words = ([int(word, 16) for word in answer[part]] for part in ("counter", "key", "words"))
    assert philox4x32(np.array(counter, np.uint64), (key[0], key[1])).tolist() == words


@pytest.mark.parametrize("vector", VECTORS["uniform"], ids=str)
def test_uniform_vectors(vector: dict[str, Any]) -> None:
    found = uniform(seed=int(vector["seed"], 16), rows=np.array([vector["row"]]), positions=np.array([vector["position"]]))
    assert found[0] == vector["numerator"] / 2**53


@pytest.mark.parametrize("vector", VECTORS["exp"], ids=lambda vector: vector["x"])
def test_exp_vectors(vector: dict[str, str]) -> None:
    assert exp(np.array([float.fromhex(vector["x"])]))[0].hex() == vector["e"]


@pytest.mark.parametrize("vector", VECTORS["sample"], ids=lambda vector: f"{vector['logits']}-{vector['options']}")
def test_sampling_vectors(vector: dict[str, Any]) -> None:
    logits, chosen = LOGITS[vector["logits"]], options(vector["options"])
    found = [draw(logits, chosen, row=place["row"], position=place["position"]) for place in VECTORS["places"]]
    assert found == vector["tokens"]


def test_vectors_are_what_their_program_writes() -> None:
    path = Path(__file__).parents[1] / "vectors" / "make_sampling.py"
    names: dict[str, Any] = {"__name__": "make_sampling", "__file__": str(path)}
    exec(compile(path.read_text(), path, "exec"), names)
    assert json.loads(json.dumps(names["make"]())) == VECTORS
    assert path.with_name("sampling.json").stat().st_size < 200_000


@given(st.floats(-708, 0))
def test_exp_is_exp(x: float) -> None:
    assert exp(np.array([x]))[0] == pytest.approx(math.exp(x), rel=4.5e-16, abs=0)


def test_exp_at_the_ends() -> None:
    assert exp(np.array([0.0, -708.5, -np.inf])).tolist() == [1.0, 0.0, 0.0]


def test_frequencies_are_the_softmax() -> None:
    """10,000 draws of 5 tokens: each within 5 standard deviations."""
    logits = np.array([0.0, 1.0, -1.0, 2.0, 0.5], np.float32)
    probabilities = np.exp(logits / 0.9) / np.exp(logits / 0.9).sum()
    counts = np.zeros(5)
    for position in range(2500):
        tokens = sample(np.tile(logits, (4, 1)), np.full(4, position), SamplingOptions(temperature=0.9, seed=3))
        np.add.at(counts, tokens, 1)
    assert (np.abs(counts - 10000 * probabilities) < 5 * np.sqrt(10000 * probabilities)).all()


@pytest.mark.parametrize(("draw_of", "token"), [(0.0, 0), (0.5 - 2**-53, 0), (0.5, 1), (1 - 2**-53, 1)])
def test_a_draw_on_the_border_takes_the_next(monkeypatch: pytest.MonkeyPatch, draw_of: float, token: int) -> None:
    monkeypatch.setattr("alize.runtimes.sampling.uniform", lambda **_: np.array([draw_of]))
    assert draw(np.zeros(2, np.float32), SamplingOptions(temperature=1.0)) == token
    assert draw(np.array([0, 0, -np.inf], np.float32), SamplingOptions(temperature=1.0)) == token


@given(st.floats(1, 1e6))
def test_the_greatest_draw_is_below_the_sum(total: float) -> None:
    assert (1 - 2**-53) * total < total


def test_rows_positions_and_seeds_draw_apart() -> None:
    logits = np.zeros((3, 1000), np.float32)
    chosen = SamplingOptions(temperature=1.0)
    first = sample(logits, np.zeros(3, np.int64), chosen)
    assert len(set(first.tolist())) == 3
    assert first[0] != draw(logits[0], chosen, position=1)
    assert first[0] != draw(logits[0], SamplingOptions(temperature=1.0, seed=1))
    assert first[2] == draw(logits[0], chosen, row=2)


_LOGITS = arrays(np.float32, st.integers(1, 20), elements=st.integers(-20, 20).map(lambda x: x / 4))


@settings(deadline=None)
@given(_LOGITS, st.integers(0, 1000), st.floats(0.1, 3), st.integers(0, 25), st.floats(0.01, 1), st.floats(0, 1))
def test_only_what_the_filters_leave_is_drawn(
    logits: NDArray[np.float32], position: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """The filters as the words say it, with library arithmetic: a borderline within 1e-9 may go either way."""
    chosen = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    token = draw(logits, chosen, position=position)
    order = np.lexsort((np.arange(len(logits)), -logits))
    rank = int(np.flatnonzero(order == token)[0])
    assert not top_k or rank < top_k
    weights = np.exp((logits[order] - logits[order[0]]).astype(np.float64) / temperature)[: top_k or None]
    assert top_p == 1 or rank == 0 or weights[:rank].sum() / weights.sum() < top_p + 1e-9
    assert rank == 0 or weights[rank] >= min_p - 1e-9


@pytest.mark.parametrize("temperature", [0.0, 1e-30])
def test_greedy_takes_the_lowest_id_of_equals(temperature: float) -> None:
    logits = np.array([0.0, 2.0, -1.0, 2.0], np.float32)
    greedy = SamplingOptions(temperature=temperature, top_k=1)
    assert draw(logits, greedy) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(bad: float, temperature: float) -> None:
    logits = np.zeros((2, 4), np.float32)
    logits[1, 2] = bad
    with pytest.raises(SessionError, match=r"row 1 is (nan|inf), not finite"):
        sample(logits, np.zeros(2, np.int64), SamplingOptions(temperature=temperature))


def test_all_masked_is_refused() -> None:
    with pytest.raises(SessionError, match="row 0 is -inf"):
        sample(np.full((1, 4), -np.inf, np.float32), np.zeros(1, np.int64), SamplingOptions(temperature=1.0))


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"seed": -1},
        {"seed": 1 << 64},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"{next(iter(fields))} .* must be"):
        SamplingOptions(**fields)
