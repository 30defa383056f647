"""Three engines, one text: what the artifacts write is what PyTorch writes, windowed or not, beyond two windows."""

import numpy as np
import pytest
from numpy.typing import NDArray

from alize.models import session as torch_backend
from alize.runtimes.generate import GenerationOptions, generate
from alize.runtimes.model import load
from alize.runtimes.session import Session
from tests.builds.conftest import WINDOW, Built, BuiltOnce
from tests.tiny import RUN_HERE

COUNT = 2 * WINDOW + 9
ROWS = np.random.default_rng(3).integers(3, 259, (3, 2 * WINDOW + 3))
NEAR_TIE = 0.02  # logits: what keys and values in float16 can turn round


def write(session: Session, tokens: NDArray[np.int64], lengths: list[int] | None = None) -> NDArray[np.int64]:
    """Greedy tokens [B,COUNT]."""
    options = GenerationOptions(max_new_tokens=COUNT)
    return np.stack(list(generate(session, tokens, options, lengths=lengths)), axis=1)


def assert_torch_agrees(
    one: Built, tokens: NDArray[np.int64], written: NDArray[np.int64], lengths: list[int] | None = None
) -> None:
    """PyTorch reads what was written and would have written every token of it, but for one near-tie at most.

    Its own tokens are not compared: behind a near-tie the two would write different texts, both right.
    """
    engine = torch_backend.open(one.checkpoint)
    for row, size in enumerate(lengths or [tokens.shape[1]] * len(tokens)):
        text = np.concatenate([tokens[row, :size], written[row]])
        with Session(engine.runner(1), engine.info, batch=1, chunk=40, slack=40) as session:
            logits = session.append(text[None], keep=0)[0, size - 1 : -1]
        lost = logits.max(axis=1) - logits[np.arange(COUNT), written[row]]
        assert lost.max() < NEAR_TIE, f"row {row}: another token at {int(lost.argmax())}"
        assert np.count_nonzero(lost) <= 1


@pytest.mark.parametrize("model", ["windowed", "full", "bfloat16"])
@pytest.mark.parametrize("target", RUN_HERE)
def test_greedy_tokens_are_those_of_torch(target: str, model: str, built: BuiltOnce) -> None:
    one = built(target, model)
    with load(one.folder) as loaded:
        for size in (1, WINDOW + 1, 2 * WINDOW + 3):
            prompt = ROWS[:1, :size]
            with loaded.session() as session:
                written = write(session, prompt)
                assert session.position == size + COUNT - 1
            assert_torch_agrees(one, prompt, written)
            assert len(set(written[0].tolist())) > 3  # not one token again and again, which any window would write


@pytest.mark.parametrize("model", ["windowed", "full"])
@pytest.mark.parametrize("target", RUN_HERE)
def test_an_unequal_batch_writes_what_torch_writes(target: str, model: str, built: BuiltOnce) -> None:
    one = built(target, model)
    lengths = [2 * WINDOW + 3, 4, WINDOW]
    with load(one.folder) as loaded, loaded.session(batch=3) as session:
        written = write(session, ROWS, lengths)
    assert_torch_agrees(one, ROWS, written, lengths)


@pytest.mark.parametrize("target", RUN_HERE)
def test_a_cache_that_shifts_again_and_again_changes_nothing(target: str, built: BuiltOnce) -> None:
    one = built(target)
    with (
        load(one.folder) as loaded,
        Session(
            loaded._engine.runner(1),
            loaded.info,
            batch=1,
            chunk=4,
            slack=5,  # type: ignore[union-attr]
        ) as session,
    ):
        assert_torch_agrees(one, ROWS[:1], write(session, ROWS[:1]))
