"""A second model as drafter, on the fake back-end: it never changes a token, and never wants back what its window forgot."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from alize.errors import UsageError
from alize.runtimes.assistant import AssistantModel, SessionDrafter, check_tokenizers
from alize.runtimes.fake import FakeRunner
from alize.runtimes.generate import Generation, GenerationOptions, generate
from alize.runtimes.model import load
from alize.runtimes.session import Session
from alize.runtimes.text import Tokenizer
from tests.runtimes.artifacts import seal
from tests.runtimes.backends import EVERY, FULL, MAX_POSITIONS, UNIFORM, VOCABULARY, model_info
from tests.runtimes.tokenizer_folders import byte_fallback, byte_level

PROMPT = [3, 1, 4, 1, 5]
SAMPLED: dict[str, Any] = {"temperature": 1.5, "top_p": 0.95, "seed": 3}


class Mistaken(FakeRunner):
    """The model itself, but at every n-th position its logits are those of other tokens."""

    every = 0

    def step(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        logits = super().step(tokens, lengths, positions, keep)
        end = int(positions[0]) + tokens.shape[1]
        for index, place in enumerate(range(end - keep, end)):
            if self.every and place % self.every == 0:
                logits[0, index] = np.roll(logits[0, index], 1)
        return logits


def session(windows: tuple[int, ...], *, chunk: int = 8, slack: int = 9, batch: int = 1) -> Session:
    return Session(FakeRunner(windows, VOCABULARY, batch=batch), model_info(windows), batch=batch, chunk=chunk, slack=slack)


def mistaken(windows: tuple[int, ...], every: int, *, slack: int, **info: Any) -> Session:
    runner = Mistaken(windows, VOCABULARY, batch=1)
    runner.every = every
    return Session(runner, dataclasses.replace(model_info(windows), **info), batch=1, chunk=min(8, slack), slack=slack)


def said(generation: Generation) -> list[int]:
    return [int(step[0]) for step in generation]


def without(options: GenerationOptions, windows: tuple[int, ...]) -> list[int]:
    with session(windows) as one:
        return said(generate(one, [PROMPT], options))


@pytest.mark.parametrize("windows", EVERY)
@pytest.mark.parametrize("fields", [{}, SAMPLED], ids=["greedy", "sampled"])
@settings(max_examples=10)
@given(every=st.integers(0, 5), num_tokens=st.integers(1, 7), slack=st.integers(1, 12), leave=st.integers(1, 60))
def test_the_tokens_are_the_same(
    windows: tuple[int, ...], fields: dict[str, Any], every: int, num_tokens: int, slack: int, leave: int
) -> None:
    """Through evictions in both sessions, left early once and gone on with."""
    options = GenerationOptions(max_new_tokens=MAX_POSITIONS, **fields)
    tokens = without(options, windows)
    with session(windows) as one, mistaken(windows, every, slack=slack) as other:
        drafter = SessionDrafter(other, num_tokens=num_tokens)
        running = generate(one, [PROMPT], options, drafter=drafter)
        first = [int(step[0]) for _, step in zip(range(leave), running, strict=False)]
        running.close()
        assert first == tokens[: len(first)]
        if len(first) < len(tokens):
            rest = dataclasses.replace(options, max_new_tokens=MAX_POSITIONS - len(first))
            assert said(generate(one, [first[-1:]], rest, drafter=drafter)) == tokens[len(first) :]


@pytest.mark.parametrize("fields", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_what_draws_alike_is_always_right(fields: dict[str, Any]) -> None:
    """It draws with the random numbers of the model that it drafts for: the same logits give the same tokens."""
    options = GenerationOptions(max_new_tokens=31, **fields)
    with session(UNIFORM) as one, session(UNIFORM, slack=100) as other:
        running = generate(one, [PROMPT], options, drafter=SessionDrafter(other, num_tokens=4))
        assert said(running) == without(options, UNIFORM)
    assert running.drafted == running.accepted == 24


def test_an_assistant_at_its_last_position_guesses_no_more() -> None:
    options = GenerationOptions(max_new_tokens=50)
    with session(UNIFORM) as one, mistaken(FULL, 0, slack=8, max_positions=20) as other:
        running = generate(one, [PROMPT], options, drafter=SessionDrafter(other, num_tokens=3))
        assert said(running) == without(options, UNIFORM)
        assert other.room in (0, 1, 2)


def test_a_token_that_the_assistant_has_not_ends_its_guesses() -> None:
    options = GenerationOptions(max_new_tokens=30)
    info = dataclasses.replace(model_info(UNIFORM), vocab_size=20)
    with session(UNIFORM) as one, Session(FakeRunner(UNIFORM, 20, batch=1), info, batch=1, chunk=8, slack=9) as small:
        assert said(generate(one, [PROMPT], options, drafter=SessionDrafter(small))) == without(options, UNIFORM)


def test_reset_begins_anew() -> None:
    options = GenerationOptions(max_new_tokens=13)
    with session(UNIFORM) as one, session(UNIFORM) as other:
        drafter = SessionDrafter(other, num_tokens=3)
        for _ in range(2):
            running = generate(one, [PROMPT], options, drafter=drafter)
            assert said(running) == without(options, UNIFORM)
            assert running.accepted == running.drafted == 9
            one.reset()
            drafter.reset()


@pytest.mark.parametrize("bad", [{"num_tokens": 0}, {"batch": 2}])
def test_options_are_checked(bad: dict[str, int]) -> None:
    with session(UNIFORM, batch=bad.get("batch", 1)) as other, pytest.raises(UsageError):
        SessionDrafter(other, num_tokens=bad.get("num_tokens", 5))


def test_an_assistant_is_a_model_of_the_same_tokenizer(tmp_path: Path) -> None:
    seal(tmp_path / "model")
    seal(tmp_path / "assistant")
    prompt = np.array([PROMPT])
    options = GenerationOptions(max_new_tokens=9)
    with load(tmp_path / "model") as model, load(tmp_path / "assistant") as assistant, model.session() as one:
        with AssistantModel(assistant, model, num_tokens=3) as drafter:
            running = generate(one, prompt, options, drafter=drafter)
            assert said(running) == without(options, UNIFORM)
        assert running.accepted == 6


@pytest.mark.parametrize("swapped", [False, True])
def test_an_assistant_of_another_tokenizer_is_refused(tmp_path: Path, swapped: bool) -> None:
    """Tokens that the other has not, and the same tokens under other numbers."""
    model = Tokenizer(byte_level(tmp_path / "model"))
    other = byte_fallback(tmp_path / "other")
    if swapped:
        fields = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
        words = fields["model"]["vocab"]
        words["a"], words["b"] = words["b"], words["a"]
        (other / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(UsageError, match=r"2 of 420 tokens differ, 'a' is" if swapped else r"of 420 tokens differ"):
        check_tokenizers(Tokenizer(other), model)
    check_tokenizers(model, Tokenizer(tmp_path / "model"))
