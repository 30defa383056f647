"""The generation loop, on the fake back-end and on one that says what it is told to."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from alize.errors import SessionError, UsageError
from alize.runtimes.fake import FakeRunner
from alize.runtimes.generate import ENDED, GenerationOptions, generate
from alize.runtimes.sampling import sample
from alize.runtimes.session import Session
from tests.runtimes.backends import FULL, MAX_POSITIONS, UNIFORM, VOCABULARY, model_info


def session(windows: tuple[int, ...] = UNIFORM, *, batch: int = 1) -> Session:
    return Session(FakeRunner(windows, VOCABULARY, batch=batch), model_info(windows), batch=batch, chunk=4, slack=6)


class Counting(FakeRunner):
    """Row b's logits point at the token after the last one, so that a sequence is foreseen."""

    def step(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        logits = np.zeros_like(super().step(tokens, lengths, positions, keep))
        for row, length in enumerate(lengths):
            logits[row, -1, tokens[row, length - 1] + 1] = 1
        return logits


def counting(*, batch: int = 1) -> Session:
    return Session(Counting(UNIFORM, VOCABULARY, batch=batch), model_info(UNIFORM), batch=batch, chunk=8, slack=8)


def test_greedy_is_the_argmax_fed_back() -> None:
    prompt = [3, 1, 4, 1, 5]
    with session() as one:
        tokens = [int(step[0]) for step in generate(one, [prompt], GenerationOptions(max_new_tokens=20))]
    row = list(prompt)
    for token in tokens:
        with session() as fresh:
            assert token == fresh.append([row])[0, 0].argmax()
        row.append(token)
    assert len(tokens) == 20


def test_the_session_holds_all_but_the_last_token() -> None:
    with counting() as one:
        tokens = [int(step[0]) for step in generate(one, [[0, 1]], GenerationOptions(max_new_tokens=3))]
        assert tokens == [2, 3, 4]
        assert one.position == 4
        assert [int(step[0]) for step in generate(one, [[4, 10]], GenerationOptions(max_new_tokens=1))] == [11]


def test_rows_stop_each_in_their_turn() -> None:
    """The stop token is yielded; then ENDED while others go on; a reason for each."""
    with counting(batch=3) as three:
        running = generate(three, [[5], [8], [20]], GenerationOptions(max_new_tokens=4, stop_token_ids=(9, 7)))
        steps = [step.tolist() for step in running]
    assert steps == [[6, 9, 21], [7, ENDED, 22], [ENDED, ENDED, 23], [ENDED, ENDED, 24]]
    assert running.finish_reasons == ["stop", "stop", "length"]
    with pytest.raises(StopIteration):
        next(running)


def test_all_stopped_ends_early() -> None:
    with counting(batch=2) as two:
        running = generate(two, [[5], [6]], GenerationOptions(max_new_tokens=50, stop_token_ids=(7, 8)))
        assert [step.tolist() for step in running] == [[6, 7], [7, ENDED]]


def test_ragged_prompts_generate_as_they_would_alone() -> None:
    rows = [[1], [2, 3, 4, 5, 6, 7, 8], [9, 10, 11]]
    options = GenerationOptions(max_new_tokens=12)
    padded = [row + [0] * (7 - len(row)) for row in rows]
    with session(batch=3) as batch:
        together = np.stack(list(generate(batch, padded, options, lengths=[1, 7, 3])))
    for number, row in enumerate(rows):
        with session() as one:
            assert [int(step[0]) for step in generate(one, [row], options)] == together[:, number].tolist()


def test_sampling_is_repeated_by_its_seed_and_after_a_rewind() -> None:
    def run(seed: int) -> list[int]:
        with session() as one:
            options = GenerationOptions(max_new_tokens=15, temperature=1.0, top_k=20, seed=seed)
            return [int(step[0]) for step in generate(one, [[1, 2, 3]], options)]

    assert run(1) == run(1) != run(2)
    with session() as one:
        options = GenerationOptions(max_new_tokens=2, temperature=1.0, seed=5)
        first = [int(step[0]) for step in generate(one, [[1, 2]], options)]
        one.rewind(1)
        assert next(generate(one, [[first[0]]], options)).tolist() == [first[1]]


def test_a_draw_belongs_to_the_position_of_its_token() -> None:
    """docs/sampling.md: the position is the number of tokens in the row before it, in each row of a ragged batch."""
    options = GenerationOptions(max_new_tokens=2, temperature=1.0, seed=9)
    rows = [[1, 2, 3, 4, 5], [6, 7]]
    with session(batch=2) as two:
        first, second = generate(two, [[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]], options, lengths=[5, 2])
    for number, row in enumerate(rows):
        for token in (int(first[number]), int(second[number])):
            with session() as fresh:
                logits = np.tile(fresh.append([row])[:, -1], (2, 1))
            assert sample(logits, np.full(2, len(row)), options)[number] == token
            row.append(token)


def test_first_row_of_a_batch_samples_as_alone() -> None:
    options = GenerationOptions(max_new_tokens=8, temperature=1.0, seed=11)
    with session(batch=2) as two, session() as one:
        together = [int(step[0]) for step in generate(two, [[1, 2], [1, 2]], options)]
        assert together == [int(step[0]) for step in generate(one, [[1, 2]], options)]


def test_generation_ends_at_the_models_last_position() -> None:
    """The last token of the context is still said; it could not be appended."""
    with session(FULL) as full:
        running = generate(full, [[1] * (MAX_POSITIONS - 3)], GenerationOptions(max_new_tokens=100))
        assert len(list(running)) == 4
        assert running.finish_reasons == ["context"]


def test_windowed_models_have_no_last_position() -> None:
    with session() as endless:
        running = generate(endless, [[1]], GenerationOptions(max_new_tokens=3 * MAX_POSITIONS))
        assert len(list(running)) == 3 * MAX_POSITIONS
        assert running.finish_reasons == ["length"]


def test_nothing_runs_before_the_first_token_is_asked_for() -> None:
    with session() as one:
        running = generate(one, [[]], GenerationOptions())
        assert one.position == 0
        with pytest.raises(SessionError, match="empty prompt"):
            next(running)


@pytest.mark.parametrize("fields", [{"max_new_tokens": 0}, {"temperature": -1.0}])
def test_options_are_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        GenerationOptions(**fields)
