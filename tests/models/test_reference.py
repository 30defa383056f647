"""The layer-by-layer run against the whole model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from alize.errors import CorruptCheckpoint, UnsupportedModel, UsageError
from alize.models import reference
from alize.models.checkpoint import Checkpoint
from alize.models.reference import ALL_ROWS, Reference, Rows, SplitSums
from tests.models.oracle import Pair, load_oracle, padded_inputs
from tests.tiny import KINDS, edit_tensor, tiny_checkpoint

WEIGHT = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module", params=sorted(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model", **KINDS[request.param]))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model", window=5))


def sequences(*lengths: int) -> list[NDArray[np.int64]]:
    return [np.random.default_rng(length).integers(0, 320, length) for length in lengths]


@torch.no_grad()
def whole(pair: Pair, sequence: NDArray[np.int64]) -> NDArray[np.float32]:
    mask, positions = padded_inputs([0], len(sequence))
    logits: Tensor = pair.ours(torch.from_numpy(sequence)[None], positions, mask, pair.no_past(1))[0]
    return logits[0].numpy()


def test_same_as_the_whole_model(pair: Pair) -> None:
    rows = sequences(1, 17, 5)
    run = Reference(Checkpoint.open(pair.folder)).run(rows)
    for row, logits in zip(rows, run.logits, strict=True):
        assert (logits.shape, logits.dtype) == ((len(row), 320), np.float32)
        np.testing.assert_allclose(logits, whole(pair, row), rtol=0, atol=2e-5)


def test_long_rows_and_large_heads_are_cut(one: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sequences(23)
    expected = Reference(Checkpoint.open(one.folder)).run(rows).logits[0]
    monkeypatch.setattr(reference, "ROWS", 4)
    monkeypatch.setattr(reference, "HEAD_ROWS", 100)
    np.testing.assert_allclose(Reference(Checkpoint.open(one.folder)).run(rows).logits[0], expected, rtol=0, atol=2e-5)


def test_positions_choose_the_logits(one: Pair) -> None:
    rows = sequences(9, 12)
    run = Reference(Checkpoint.open(one.folder))
    everything = run.run(rows).logits
    some = run.run(rows, positions=[np.array([8]), np.array([3, 0, 11])]).logits
    np.testing.assert_allclose(some[0], everything[0][[8]], rtol=0, atol=2e-5)
    np.testing.assert_allclose(some[1], everything[1][[3, 0, 11]], rtol=0, atol=2e-5)


def test_a_sequence_does_not_depend_on_its_company(one: Pair) -> None:
    rows, run = sequences(9, 30), Reference(Checkpoint.open(one.folder))
    assert np.array_equal(run.run(rows).logits[0], run.run(rows[:1]).logits[0])


def test_taps_are_the_residual_stream(one: Pair) -> None:
    """Against transformers' hidden states, which are those after each layer's MLP."""
    row = sequences(11)
    walk = Reference(Checkpoint.open(one.folder)).walk(row[0])
    taps = walk.advance()[0] | walk.advance()[0] | walk.advance()[0]
    with torch.no_grad():
        hidden = load_oracle(one.folder)(input_ids=torch.from_numpy(row[0])[None], output_hidden_states=True).hidden_states
    assert set(taps) == {f"layers.{index}.{half}" for index in range(3) for half in ("heads", "attention", "mlp")}
    for index in range(2):  # the last one comes normed out of transformers
        np.testing.assert_allclose(taps[f"layers.{index}.mlp"], hidden[index + 1][0].numpy(), rtol=0, atol=5e-5)
    layer = one.ours.layers[0]
    with torch.no_grad():
        fed = layer.feed(torch.from_numpy(taps["layers.0.attention"])[None])[0].numpy()
    np.testing.assert_allclose(fed, taps["layers.0.mlp"], rtol=0, atol=2e-5)


def test_progress_counts_layers(one: Pair) -> None:
    calls: list[tuple[str, int, int]] = []
    Reference(Checkpoint.open(one.folder)).run(sequences(3), progress=lambda *call: calls.append(call))
    assert calls == [("reference", done, 3) for done in range(4)]


def test_one_layer_in_memory_at_a_time(one: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer is gone before the next one is read."""
    import weakref

    run, alive, most = Reference(Checkpoint.open(one.folder)), weakref.WeakSet[torch.nn.Module](), []
    build = run._loaded

    def counted(module: torch.nn.Module, prefix: str) -> torch.nn.Module:
        if prefix != "model.norm":
            most.append(len(alive))
        loaded = build(module, prefix)
        if prefix != "model.norm":
            alive.add(loaded)
        return loaded

    monkeypatch.setattr(run, "_loaded", counted)
    run.run(sequences(4))
    assert most == [0, 0, 0]


@pytest.mark.parametrize("weights", ["fp16", "bf16"])
def test_round_trip_of_weights(one: Pair, weights: str) -> None:
    """The same as rounding every parameter of the whole model first."""
    rows, dtype = sequences(14), {"fp16": torch.float16, "bf16": torch.bfloat16}[weights]
    rounded = Pair(one.folder)
    state = {name: parameter.to(dtype).float() for name, parameter in one.ours.state_dict().items()}
    rounded.ours.load_state_dict(state)
    found = Reference(Checkpoint.open(one.folder), weights=weights).run(rows).logits[0]
    np.testing.assert_allclose(found, whole(rounded, rows[0]), rtol=0, atol=2e-5)
    assert np.abs(found - whole(one, rows[0])).max() > 1e-3


def test_rule_of_ones_own(one: Pair) -> None:
    rows, names = sequences(6), set()
    whole = dict(one.ours.state_dict())

    def rule(name: str, stored: Tensor, chosen: Rows = ALL_ROWS, /) -> Tensor:
        names.add(name)
        assert torch.equal(stored.float(), whole[name][chosen].float())
        return stored.float()

    found = Reference(Checkpoint.open(one.folder), weights=rule).run(rows).logits[0]
    assert np.array_equal(found, Reference(Checkpoint.open(one.folder), weights="fp32").run(rows).logits[0])
    assert names == set(one.ours.state_dict())


def test_split_summation_is_the_same_maths_in_another_order(pair: Pair) -> None:
    rows = sequences(40)
    plain, split = (Reference(Checkpoint.open(pair.folder), summation=way).run(rows).logits[0] for way in ("plain", "split"))
    difference = np.abs(plain - split).max()
    assert 0 < difference < 1e-4


def test_split_summation_reaches_linears_and_attention(one: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    inner: list[int] = []
    product = reference._split_product

    def counted(left: Tensor, right: Tensor) -> Tensor:
        inner.append(left.shape[-1])
        return product(left, right)

    monkeypatch.setattr(reference, "_split_product", counted)
    Reference(Checkpoint.open(one.folder), summation="split").run(sequences(9))
    # a layer: q, k, v (32), scores (8 = D), weighted values (9 keys), o (32), gate, up (32), down (56); then the head
    assert inner == [32, 32, 32, 8, 9, 32, 32, 32, 56] * 3 + [32]


def test_split_sums_of_odd_sizes() -> None:
    left, right = torch.randn(3, 7), torch.randn(7, 5)
    with SplitSums():
        split = left @ right, torch.matmul(left, right), torch.nn.functional.linear(left, right.T)
    for found in split:
        torch.testing.assert_close(found, left @ right)


def test_bfloat16_arithmetic_is_a_floor_above_float32(one: Pair) -> None:
    rows, checkpoint = sequences(12), Checkpoint.open(one.folder)
    exact = Reference(checkpoint).run(rows).logits[0]
    coarse = Reference(checkpoint, compute=torch.bfloat16).run(rows).logits[0]
    assert coarse.dtype == np.float32
    assert 1e-3 < np.abs(exact - coarse).mean() < 0.5


@pytest.mark.parametrize("name", [WEIGHT, "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"])
def test_nan_weights_are_named(tmp_path: Path, name: str) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    tensor = Checkpoint.open(folder).tensor(name).clone()
    tensor.view(-1)[5] = float("nan")
    edit_tensor(folder, name, tensor)
    with pytest.raises(CorruptCheckpoint, match=name):
        Reference(Checkpoint.open(folder)).run([np.zeros(2, np.int64)])


def test_overflow_of_a_round_trip_is_named(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", dtype="bfloat16")
    tensor = Checkpoint.open(folder).tensor(WEIGHT).clone()
    tensor[0, 0] = 1e6
    edit_tensor(folder, WEIGHT, tensor)
    Reference(Checkpoint.open(folder)).run(sequences(2))
    with pytest.raises(UnsupportedModel, match=WEIGHT):
        Reference(Checkpoint.open(folder), weights="fp16").run(sequences(2))


def test_options_are_checked(one: Pair) -> None:
    checkpoint = Checkpoint.open(one.folder)
    with pytest.raises(UsageError, match="int3"):
        Reference(checkpoint, weights="int3")
    with pytest.raises(UsageError, match="backwards"):
        Reference(checkpoint, summation="backwards")  # type: ignore[arg-type]
