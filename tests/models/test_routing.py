"""What the routers of a reference choose is seen, and can be overruled, however the reference is run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from alize.models import reference
from alize.models.checkpoint import Checkpoint
from alize.models.ops import choose_experts, moe_body
from alize.models.reference import Reference
from alize.models.routing import NearTies, Routing
from tests.tiny import tiny_checkpoint

LAYERS, EXPERTS, TOP_K, HIDDEN = 2, 4, 2, 32
TOKENS = np.random.default_rng(3).integers(0, 320, 23)
WAYS = {
    "plain": {},
    "split": {"summation": "split"},
    "bfloat16": {"compute": torch.bfloat16},
    "rounded weights": {"weights": "fp16"},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("routing") / "tiny"
    return Checkpoint.open(tiny_checkpoint(folder, window=6, layers=LAYERS, experts=EXPERTS, top_k=TOP_K))


def reversed_choices(routing: Routing) -> NDArray[np.int64]:
    """The experts that each router likes least."""
    return np.argsort(routing.logits, axis=-1, kind="stable")[..., :TOP_K].copy()


def test_the_routing_is_what_the_logits_say(checkpoint: Checkpoint) -> None:
    (routing,) = Reference(checkpoint).run([TOKENS]).routing
    assert routing.experts.shape == (LAYERS, 23, TOP_K)
    assert routing.logits.shape == (LAYERS, 23, EXPERTS)
    np.testing.assert_array_equal(routing.experts, choose_experts(torch.from_numpy(routing.logits), TOP_K).numpy())
    assert not routing.lag.any()


def test_each_sequence_has_its_own(checkpoint: Checkpoint) -> None:
    both = Reference(checkpoint).run([TOKENS, TOKENS[:5]]).routing
    assert both[1].experts.shape == (LAYERS, 5, TOP_K)
    np.testing.assert_array_equal(both[1].experts, both[0].experts[:, :5])


def test_near_ties_can_be_turned_round(checkpoint: Checkpoint) -> None:
    """The next expert in place of the last chosen one, where the two are near enough; of a share of them the same each time."""
    (own,) = Reference(checkpoint).run([TOKENS]).routing
    ordered = np.argsort(-own.logits[0], axis=-1, kind="stable")
    margin = np.take_along_axis(own.logits[0], ordered, -1) @ np.array([0, 1, -1, 0])
    tolerance = float(np.median(margin))
    near = margin <= tolerance
    follow = [NearTies(tolerance), NearTies(tolerance, share=0.5, seed=1), NearTies(tolerance, share=0.5, seed=1), NearTies(-1.0)]
    every, *half, none = Reference(checkpoint).run([TOKENS] * 4, follow=follow).routing
    np.testing.assert_array_equal(every.experts[0], np.where(near[:, None], ordered[:, [0, 2]], ordered[:, :2]))
    np.testing.assert_allclose(every.lag[0], np.where(near, margin, 0), rtol=1e-6)
    np.testing.assert_array_equal(half[0].experts, half[1].experts)
    assert 0 < (half[0].lag[0] > 0).sum() < near.sum()
    np.testing.assert_array_equal(none.experts, own.experts)


def test_a_model_without_experts_has_none(tmp_path: Path) -> None:
    dense = Reference(Checkpoint.open(tiny_checkpoint(tmp_path / "dense", layers=1)))
    assert dense.run([TOKENS]).routing == []
    assert dense.walk(TOKENS).advance()[1] is None


@pytest.mark.parametrize("way", WAYS)
def test_its_own_choices_change_nothing(way: str, checkpoint: Checkpoint) -> None:
    run = Reference(checkpoint, **WAYS[way])  # type: ignore[arg-type]
    free = run.run([TOKENS])
    bound = run.run([TOKENS], follow=[free.routing[0].experts])
    np.testing.assert_array_equal(bound.logits[0], free.logits[0])
    assert not bound.routing[0].lag.any()


@pytest.mark.parametrize("way", WAYS)
def test_other_choices_are_followed(way: str, checkpoint: Checkpoint) -> None:
    run = Reference(checkpoint, **WAYS[way])  # type: ignore[arg-type]
    free = run.run([TOKENS])
    made = reversed_choices(free.routing[0])
    bound = run.run([TOKENS], follow=[made])
    np.testing.assert_array_equal(bound.routing[0].experts, made)
    assert np.abs(bound.logits[0] - free.logits[0]).max(axis=1).min() > 1e-3  # at every position
    first = bound.routing[0].logits[0]  # layer 0 has the same logits either way
    np.testing.assert_array_equal(first, free.routing[0].logits[0])
    expected = np.sort(first)[:, -TOP_K] - np.sort(first)[:, 0]
    np.testing.assert_allclose(bound.routing[0].lag[0], expected, rtol=1e-6)


def test_following_holds_position_by_position(checkpoint: Checkpoint) -> None:
    """One other choice at one position: nothing before it changes, the position does."""
    run = Reference(checkpoint)
    free = run.run([TOKENS])
    made = free.routing[0].experts.copy()
    made[1, 11] = reversed_choices(free.routing[0])[1, 11]
    bound = run.run([TOKENS], follow=[made])
    changed = np.flatnonzero(np.abs(bound.logits[0] - free.logits[0]).max(axis=1) > 1e-3)
    assert changed.tolist() == [11]  # the last layer's MLP: no other position sees it
    assert np.argwhere(bound.routing[0].lag).tolist() == [[1, 11]]


def test_rows_that_are_fed_in_blocks(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Reference(checkpoint)
    made = reversed_choices(run.run([TOKENS]).routing[0])
    whole = run.run([TOKENS], follow=[made])
    monkeypatch.setattr(reference, "ROWS", 5)
    blocks = run.run([TOKENS], follow=[made])
    np.testing.assert_array_equal(blocks.routing[0].experts, made)
    np.testing.assert_allclose(blocks.logits[0], whole.logits[0], rtol=0, atol=2e-5)


def test_equal_logits_are_as_good(checkpoint: Checkpoint) -> None:
    mixture = Reference(checkpoint).mixture(0)
    nothing = np.zeros((1, HIDDEN), np.float32)
    assert mixture.answer(nothing)[1].experts.tolist() == [[0, 1]]
    _, routing = mixture.answer(nothing, follow=np.array([[3, 2]]))
    assert (routing.experts.tolist(), routing.lag.tolist()) == ([[3, 2]], [0.0])


@pytest.mark.parametrize("broken", [[1, 1], [0, 4], [-1, 2]])
def test_what_is_no_choice_is_not_followed(broken: list[int], checkpoint: Checkpoint) -> None:
    """An expert taken twice would be right by its own measure: the same answer with half the router's wishes."""
    run = Reference(checkpoint)
    free = run.run([TOKENS])
    made = free.routing[0].experts.copy()
    made[0, 7] = broken
    bound = run.run([TOKENS], follow=[made])
    assert np.argwhere(np.isinf(bound.routing[0].lag)).tolist() == [[0, 7]]
    np.testing.assert_array_equal(bound.logits[0], free.logits[0])


def test_a_walk_follows_layer_by_layer(checkpoint: Checkpoint) -> None:
    run = Reference(checkpoint)
    made = reversed_choices(run.run([TOKENS]).routing[0])
    whole, walk = run.run([TOKENS], follow=[made]).routing[0], run.walk(TOKENS)
    for layer in range(LAYERS):
        taps, routing = walk.advance(made[layer])
        assert routing is not None
        np.testing.assert_array_equal(routing.experts, made[layer])
        np.testing.assert_array_equal(taps[f"layers.{layer}.router_logits"], whole.logits[layer])


def test_a_layer_cut_out(checkpoint: Checkpoint) -> None:
    """Its answer is the sum of the experts' answers by the softmax over the chosen logits."""
    mixture = Reference(checkpoint).mixture(1)
    hidden = np.random.default_rng(0).normal(size=(9, HIDDEN)).astype(np.float32)
    output, routing = mixture.answer(hidden)
    np.testing.assert_allclose(routing.logits, hidden @ mixture.router.T, rtol=0, atol=1e-5)
    alone = [mixture.answer(hidden, follow=np.full((9, 1), e))[0] for e in range(EXPERTS)]
    powers = np.exp(np.take_along_axis(routing.logits, routing.experts, axis=1))
    shares = powers / powers.sum(axis=1, keepdims=True)
    expected = sum(shares[:, [slot]] * np.stack(alone)[routing.experts[:, slot], np.arange(9)] for slot in range(TOP_K))
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)
    other, _ = mixture.answer(hidden, summation="split")
    assert 0 < np.abs(output - other).max() < 1e-5


def test_the_body_takes_the_chosen_experts() -> None:
    hidden, logits = torch.randn(1, 3, 4), torch.randn(1, 3, 3)
    weights = [torch.randn(3, 5, 4), torch.randn(3, 5, 4), torch.randn(3, 4, 5)]
    own = choose_experts(logits, 2)
    torch.testing.assert_close(moe_body(hidden, logits, *weights, 2, chosen=own), moe_body(hidden, logits, *weights, 2))
