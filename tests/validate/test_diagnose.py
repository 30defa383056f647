"""A diagnosis names the first point that differs and what is likely wrong there; exact on made-up residual streams."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from alize.errors import CorruptCheckpoint, UnsupportedModel
from alize.models.checkpoint import Checkpoint, Weight
from alize.models.mistral import Config, convert_weights
from alize.validate.diagnose import changed_weights, first_difference, tap_names
from tests.tiny import edit_tensor, tiny_checkpoint
from tests.validate.test_cases import INFO

SIZE, WIDTH = 20, 32
UP = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"

Taps = dict[str, NDArray[np.float32]]


@pytest.fixture
def streams() -> tuple[Taps, Taps, Taps]:
    """Reference, floor (1e-6 away) and an artifact that is as close."""
    rng = np.random.default_rng(0)
    reference = {name: rng.normal(size=(SIZE, WIDTH)).astype(np.float32) for name in tap_names(INFO)}
    floor = {name: tap + np.float32(1e-6) for name, tap in reference.items()}
    return reference, floor, {name: tap - np.float32(2e-6) for name, tap in reference.items()}


def test_taps_are_named_in_the_order_of_computation() -> None:
    assert tap_names(INFO) == [
        "layers.0.heads",
        "layers.0.attention",
        "layers.0.mlp",
        "layers.1.heads",
        "layers.1.attention",
        "layers.1.mlp",
    ]


def test_what_is_as_close_as_the_floor_does_not_differ(streams: tuple[Taps, Taps, Taps]) -> None:
    assert first_difference(*streams, INFO) is None


@pytest.mark.parametrize(
    ("tap", "position", "columns", "finding"),
    [
        ("layers.0.heads", 0, slice(None), "layer 0, attention, from position 0 on: the norm before the attention or the value"),
        ("layers.1.heads", 3, slice(None), "layer 1, attention, from position 3 on: the rotary embedding or the mask"),
        ("layers.0.heads", 11, slice(None), "layer 0, attention, from position 11 on: the window is narrower than 12"),
        ("layers.0.heads", 12, slice(None), "layer 0, attention, from position 12 on: the window is wider than 12 or missing"),
        ("layers.0.heads", 13, slice(None), "layer 0, attention, from position 13 on: the rotary embedding or the mask"),
        ("layers.1.heads", 2, slice(8, 24), "layer 1, attention, from position 2 on: the order of the heads is wrong, or a "),
        ("layers.1.attention", 0, slice(5, 6), "layer 1, attention, from position 0 on: the output projection"),
        ("layers.0.mlp", 7, slice(None), "layer 0, MLP, from position 7 on: a projection or the norm of the MLP"),
    ],
)
def test_where_and_how_it_differs(
    streams: tuple[Taps, Taps, Taps], tap: str, position: int, columns: slice, finding: str
) -> None:
    streams[2][tap][position:, columns] += 0.5
    found = first_difference(*streams, INFO)
    assert found is not None
    assert str(found).startswith(finding)
    assert (f"layers.{found.layer}.{found.part}", found.position) == (tap, position)


def test_the_heads_that_differ_are_named(streams: tuple[Taps, Taps, Taps]) -> None:
    streams[2]["layers.1.heads"][4:, 8:16] += 0.5  # head 1 of 4, D = 8
    streams[2]["layers.1.heads"][4:, 31] += 0.5  # and one number of head 3
    assert "heads 1, 3 differ" in str(first_difference(*streams, INFO))


def test_the_first_point_is_named_not_the_worst(streams: tuple[Taps, Taps, Taps]) -> None:
    streams[2]["layers.0.mlp"][5:] += 0.01
    streams[2]["layers.1.heads"] += 100
    assert str(first_difference(*streams, INFO)).startswith("layer 0, MLP, from position 5 on")


def test_without_a_window_none_is_blamed(streams: tuple[Taps, Taps, Taps]) -> None:
    streams[2]["layers.0.heads"][11:] += 0.5
    found = first_difference(*streams, dataclasses.replace(INFO, windows=(0, 0)))
    assert "the rotary embedding or the mask" in str(found)


def test_what_is_no_number_differs(streams: tuple[Taps, Taps, Taps]) -> None:
    streams[2]["layers.1.mlp"][6, 3] = np.nan
    assert str(first_difference(*streams, INFO)).startswith("layer 1, MLP, from position 6 on")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("diagnose") / "tiny", layers=2)


def weights_of(checkpoint: Checkpoint) -> Mapping[str, Weight]:
    return convert_weights(Config.from_dict(checkpoint.config), checkpoint)


def stored(checkpoint: Checkpoint, dtype: torch.dtype, **changed: torch.Tensor | None) -> Iterator[tuple[str, torch.Tensor]]:
    """The checkpoint's weights as an artifact would hold them; None leaves one out."""
    for name, weight in weights_of(checkpoint).items():
        values = changed.get(name, checkpoint.read(weight, dtype))
        if values is not None:
            yield name, values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_converted_weights_are_unchanged(folder: Path, dtype: torch.dtype) -> None:
    checkpoint = Checkpoint.open(folder)
    assert changed_weights(stored(checkpoint, dtype), checkpoint, weights_of(checkpoint)) == []


def test_a_changed_weight_is_named_with_its_place(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    wrong = checkpoint.read(weights_of(checkpoint)[UP], torch.float16)
    wrong[4, 7] += 1
    wrong[9, 0] += 1
    found = changed_weights(stored(checkpoint, torch.float16, **{UP: wrong}), checkpoint, weights_of(checkpoint))
    assert found == [f"weight {UP} differs from the checkpoint's in 2 of {wrong.numel()} values, first at [4, 7]"]


def test_missing_unknown_and_misshapen_weights_are_named(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    weights = weights_of(checkpoint)
    flat = checkpoint.read(weights[UP], torch.float32).flatten()
    found = changed_weights(
        [*stored(checkpoint, torch.float32, **{UP: flat, EMBEDDING: None}), ("stray.weight", flat)], checkpoint, weights
    )
    assert found == [
        f"weight {UP} has shape [{56 * 32}], the checkpoint's is [56, 32]",
        "weight stray.weight is not one of the model's",
        f"weight {EMBEDDING} is not in the artifact",
    ]


def test_a_swap_of_equal_sums_is_seen(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    turned = checkpoint.read(weights_of(checkpoint)[UP], torch.float32).flip(0)
    assert changed_weights(stored(checkpoint, torch.float32, **{UP: turned}), checkpoint, weights_of(checkpoint))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused_wherever_it_stands(tmp_path: Path, value: float) -> None:
    folder = tiny_checkpoint(tmp_path, layers=1)
    table = Checkpoint.open(folder).tensor(EMBEDDING).clone()
    table[319, 31] = value
    edit_tensor(folder, EMBEDDING, table)
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(CorruptCheckpoint, match=f"tensor {EMBEDDING} holds {value} at element {320 * 32 - 1}"):
        changed_weights(stored(checkpoint, torch.float32), checkpoint, weights_of(checkpoint))


def test_a_weight_that_overflows_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, layers=1)
    table = Checkpoint.open(folder).tensor(EMBEDDING).clone()
    table[300, 0] = 1e6
    edit_tensor(folder, EMBEDDING, table)
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(UnsupportedModel, match=f"{EMBEDDING} does not fit in torch.float16: a value overflows; use --weights"):
        changed_weights(stored(checkpoint, torch.float16), checkpoint, weights_of(checkpoint))
