"""Drafts change the time and never a token: on the fake back-end, whose logits have the same bits however they are asked for."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from alize.errors import UsageError
from alize.runtimes.fake import FakeRunner
from alize.runtimes.generate import Generation, GenerationOptions, generate
from alize.runtimes.prompt_lookup import PromptLookup
from alize.runtimes.sampling import SamplingOptions
from alize.runtimes.session import Session
from alize.runtimes.speculation import Drafter
from tests.runtimes.backends import EVERY, FULL, MAX_POSITIONS, UNIFORM, VOCABULARY, model_info
from tests.runtimes.drafters import Oracle

PROMPT = [3, 1, 4, 1, 5]
SAMPLED: dict[str, Any] = {"temperature": 1.5, "top_k": 20, "top_p": 0.95, "seed": 3}


class Counted(FakeRunner):
    """Counts what it is asked for."""

    steps = 0

    def step(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        self.steps += 1
        return super().step(tokens, lengths, positions, keep)


def session(
    windows: tuple[int, ...] = UNIFORM, *, runner: FakeRunner | None = None, batch: int = 1, chunk: int = 8, slack: int = 9
) -> Session:
    runner = runner or FakeRunner(windows, VOCABULARY, batch=batch)
    return Session(runner, model_info(windows), batch=batch, chunk=chunk, slack=slack)


def said(generation: Generation) -> list[int]:
    return [int(step[0]) for step in generation]


def without(options: GenerationOptions, windows: tuple[int, ...] = UNIFORM) -> tuple[list[int], Any, int]:
    """Tokens, reason and position of generating without drafts."""
    with session(windows) as one:
        running = generate(one, [PROMPT], options)
        return said(running), running.finish_reasons, one.position


def oracle(tokens: list[int], *right: int, beyond: int = 0) -> Oracle:
    return Oracle([*PROMPT, *tokens], list(right), vocabulary=VOCABULARY, beyond=beyond)


@pytest.mark.parametrize("windows", EVERY)
@pytest.mark.parametrize("fields", [{}, SAMPLED], ids=["greedy", "sampled"])
@settings(max_examples=10)
@given(right=st.lists(st.integers(0, 9), min_size=1, max_size=5), beyond=st.integers(0, 4), chunk=st.integers(1, 9))
def test_the_tokens_and_the_end_are_the_same(
    windows: tuple[int, ...], fields: dict[str, Any], right: list[int], beyond: int, chunk: int
) -> None:
    """Through evictions, to the last position of a model that has one."""
    options = GenerationOptions(max_new_tokens=MAX_POSITIONS, **fields)
    tokens, reasons, position = without(options, windows)
    drafter = oracle(tokens, *right, beyond=beyond)
    with session(windows, chunk=chunk) as one:
        running = generate(one, [PROMPT], options, drafter=drafter)
        assert (said(running), running.finish_reasons, one.position) == (tokens, reasons, position)
        assert drafter.told == position
        again = one.append([[tokens[-1]]]) if one.room != 0 else None
    if again is not None:
        with session(windows) as fresh:
            np.testing.assert_array_equal(again, fresh.append([[*PROMPT, *tokens]]))


def test_right_drafts_save_steps() -> None:
    """Three guessed and one drawn behind them: four tokens a step, behind the prompt's."""
    options = GenerationOptions(max_new_tokens=41)
    tokens, _, _ = without(options)
    runner = Counted(UNIFORM, VOCABULARY, batch=1)
    with session(runner=runner) as one:
        running = generate(one, [PROMPT], options, drafter=oracle(tokens, 3))
        assert said(running) == tokens
    assert runner.steps == 1 + 10
    assert (running.drafted, running.accepted) == (10 * 4 - 1, 30)  # no room for a wrong one in the last


def test_wrong_drafts_save_none_and_cost_no_token() -> None:
    options = GenerationOptions(max_new_tokens=12)
    tokens, _, _ = without(options)
    runner = Counted(UNIFORM, VOCABULARY, batch=1)
    with session(runner=runner) as one:
        running = generate(one, [PROMPT], options, drafter=oracle(tokens, 0, beyond=3))
        assert said(running) == tokens
    assert (runner.steps, running.accepted) == (12, 0)


@pytest.mark.parametrize("at", range(1, 9))
def test_a_stop_token_inside_a_draft_ends_there(at: int) -> None:
    tokens, _, _ = without(GenerationOptions(max_new_tokens=9))
    stop = tokens[at]
    options = GenerationOptions(max_new_tokens=30, stop_token_ids=(stop,))
    expected, reasons, position = without(options)
    assert expected[-1] == stop
    with session() as one:
        running = generate(one, [PROMPT], options, drafter=oracle(tokens, 7))
        assert (said(running), running.finish_reasons, one.position) == (expected, reasons, position)


def test_no_more_tokens_than_asked_for() -> None:
    tokens, _, _ = without(GenerationOptions(max_new_tokens=20))
    for most in range(1, 20):
        options = GenerationOptions(max_new_tokens=most)
        with session() as one:
            running = generate(one, [PROMPT], options, drafter=oracle(tokens, 6))
            assert said(running) == tokens[:most]
            assert (one.position, running.finish_reasons) == (len(PROMPT) + most - 1, ["length"])


def test_the_end_of_the_context_inside_a_draft() -> None:
    options = GenerationOptions(max_new_tokens=1000)
    tokens, reasons, _ = without(options, FULL)
    assert reasons == ["context"]
    with session(FULL) as full:
        running = generate(full, [PROMPT], options, drafter=oracle(tokens, 7))
        steps = []
        for step in running:
            steps.append(int(step[0]))
            assert (running.finish_reasons == ["context"]) == (len(steps) == len(tokens))
    assert steps == tokens


@pytest.mark.parametrize("leave", range(1, 12))
def test_who_leaves_early_closes_and_goes_on(leave: int) -> None:
    """The session holds the prompt and every token but the last one that was yielded, and so does the drafter."""
    tokens, _, _ = without(GenerationOptions(max_new_tokens=20))
    drafter = oracle(tokens, 5, 2)
    with session() as one:
        running = generate(one, [PROMPT], GenerationOptions(max_new_tokens=20), drafter=drafter)
        assert [int(next(running)[0]) for _ in range(leave)] == tokens[:leave]
        running.close()
        running.close()
        with pytest.raises(StopIteration):
            next(running)
        assert one.position == drafter.told == len(PROMPT) + leave - 1
        more = generate(one, [tokens[leave - 1 : leave]], GenerationOptions(max_new_tokens=20 - leave), drafter=drafter)
        assert said(more) == tokens[leave:]


def test_closing_without_a_drafter_ends_the_loop() -> None:
    with session() as one:
        running = generate(one, [PROMPT], GenerationOptions())
        next(running)
        running.close()
        assert list(running) == []
        assert one.position == len(PROMPT)


def test_a_padded_prompt_is_told_without_its_padding() -> None:
    options = GenerationOptions(max_new_tokens=9)
    tokens, _, _ = without(options)
    with session() as one:
        padded = generate(one, [[*PROMPT, 0, 0]], options, lengths=[len(PROMPT)], drafter=oracle(tokens, 3))
        assert said(padded) == tokens


def test_a_batch_is_refused() -> None:
    with session(batch=2) as two, pytest.raises(UsageError, match="one row and this session has 2"):
        generate(two, [PROMPT, PROMPT], GenerationOptions(), drafter=PromptLookup())


class Stubborn(PromptLookup):
    """Always guesses the same."""

    guess: tuple[int, ...] = ()

    def draft(self, token: int, *, limit: int, position: int, options: SamplingOptions) -> NDArray[np.int64]:
        return np.array(self.guess[:limit], np.int64)


@pytest.mark.parametrize("guess", [(VOCABULARY,), (1, VOCABULARY + 7, 2), (-1, 1)])
def test_a_token_that_the_model_has_not_ends_the_draft(guess: tuple[int, ...]) -> None:
    options = GenerationOptions(max_new_tokens=9)
    drafter = Stubborn()
    drafter.guess = guess
    with session() as one:
        assert said(generate(one, [PROMPT], options, drafter=drafter)) == without(options)[0]


class Chain(FakeRunner):
    """A Markov chain of three tokens: logits are the logarithms of LIKELY's row of the last token."""

    def step(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        super().step(tokens, lengths, positions, keep)
        return np.log(LIKELY[tokens[:, tokens.shape[1] - keep :]]).astype(np.float32)


LIKELY = np.array([[0.6, 0.25, 0.15], [0.3, 0.3, 0.4], [0.15, 0.7, 0.15]])


@pytest.mark.parametrize("guess", [(0, 0, 0), (1, 2, 1)], ids=["likely", "unlikely"])
def test_sampling_with_drafts_has_the_models_distribution(guess: tuple[int, ...]) -> None:
    """Of three tokens drawn with 1,500 seeds, all 27 sequences as often as the chain says.

    Pearson's chi-square with 26 degrees of freedom: beyond 54 once in a thousand times. Accepting what is merely likely, or
    drawing anew after a refusal, is in the hundreds.
    """
    seeds, first = 1500, 0
    counts = np.zeros((3, 3, 3))
    info = model_info(UNIFORM)
    drafter = Stubborn()
    drafter.guess = guess
    for seed in range(seeds):
        with Session(Chain(UNIFORM, 3, batch=1), dataclasses.replace(info, vocab_size=3), batch=1, chunk=8, slack=8) as one:
            options = GenerationOptions(max_new_tokens=3, temperature=1.0, seed=seed)
            counts[tuple(said(generate(one, [[first]], options, drafter=drafter)))] += 1
    expected = seeds * LIKELY[first][:, None, None] * LIKELY[:, :, None] * LIKELY[None]
    assert ((counts - expected) ** 2 / expected).sum() < 54


def lookup(text: list[int], **options: int) -> list[int]:
    """The draft behind the last token of a text."""
    drafter = PromptLookup(**options)
    drafter.append(np.array(text[:-1], np.int64))
    return drafter.draft(text[-1], limit=100, position=len(text), options=SamplingOptions()).tolist()


def test_lookup_copies_what_followed_before() -> None:
    assert lookup([1, 2, 3, 4, 5, 6, 9, 2, 3]) == [4, 5, 6, 9]  # two shared, four copied
    assert lookup([1, 2, 3, 4, 5, 6, 9, 2, 3], num_tokens=3) == [4, 5, 6]
    assert lookup([1, 2, 3]) == []
    assert lookup([5]) == []


def test_lookup_prefers_the_place_that_shares_most_then_the_latest() -> None:
    text = [7, 1, 2, 30, 1, 2, 40, 8, 1, 2, 50, 1, 2]
    assert lookup([*text[:-2], 7, 1, 2])[:1] == [30]
    assert lookup(text)[:1] == [50]
    assert lookup([*text[:-2], 7, 1, 2], max_ngram=2)[:1] == [50]


def test_lookup_needs_as_many_as_min_ngram() -> None:
    text = [1, 2, 3, 4, 9, 3]
    assert lookup(text, min_ngram=1) == [4, 9]
    assert lookup(text, min_ngram=2) == []


def test_lookup_continues_a_loop_as_a_loop() -> None:
    assert lookup([9, 1, 2, 1, 2, 1, 2], num_tokens=7) == [1, 2, 1, 2, 1, 2, 1]


def test_lookup_forgets_what_the_session_forgets() -> None:
    drafter = PromptLookup()
    drafter.append(np.array([1, 2, 3, 1, 2]))
    drafter.rewind(3)
    drafter.append(np.array([7]))
    assert drafter.draft(2, limit=9, position=4, options=SamplingOptions()).tolist() == [7, 2]
    drafter.reset()
    assert drafter.draft(2, limit=9, position=1, options=SamplingOptions()).tolist() == []


def test_lookup_holds_a_bounded_text() -> None:
    """Of an endless session the last 65,536 tokens at least are looked through, twice as many are ever held."""
    drafter = PromptLookup(num_tokens=3)
    drafter.append(np.arange(5))
    for start in range(5, 300_005, 1000):
        drafter.append(np.arange(start, start + 1000))
        assert drafter._tokens.size <= 1 << 17
    assert drafter.draft(300_004 - 65_000, limit=9, position=0, options=SamplingOptions()).tolist() == [235_005, 235_006]
    assert drafter.draft(3, limit=9, position=0, options=SamplingOptions()).tolist() == []


@pytest.mark.parametrize("fields", [{"num_tokens": 0}, {"min_ngram": 0}, {"min_ngram": 5, "max_ngram": 4}])
def test_lookups_options_are_checked(fields: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        PromptLookup(**fields)


def test_lookup_finds_the_loops_of_the_fake_model() -> None:
    """Not an oracle: a sequence of few tokens repeats itself, and lookup is right now and then."""
    options = GenerationOptions(max_new_tokens=100, temperature=0.05, top_k=2)
    drafter: Drafter = PromptLookup()
    with session() as one:
        running = generate(one, [PROMPT], options, drafter=drafter)
        assert said(running) == without(options)[0]
    assert running.drafted > 0
