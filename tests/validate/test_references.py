"""The reference runs of a validation: which positions they keep, which floors they measure, when weights count as kept."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alize.models.checkpoint import Checkpoint
from alize.models.reference import Reference
from alize.progress import SilentProgress
from alize.validate.references import MAX_KEPT, kept_positions, run_references, stored_exactly
from tests.tiny import tiny_checkpoint

TOKENS = np.random.default_rng(1).integers(0, 320, 20)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint(tmp_path_factory.mktemp("references") / "tiny", window=6))


@given(st.integers(1, 40_000))
def test_kept_positions_are_ascending_and_within(length: int) -> None:
    kept = kept_positions(length)
    assert (np.diff(kept) > 0).all()
    assert kept[0] == 0
    assert kept[-1] == length - 1
    assert len(kept) <= MAX_KEPT
    assert len(kept) == length or length > MAX_KEPT


@given(st.integers(319, 20_000))
def test_a_long_row_keeps_its_ends_and_the_windows_edge(window: int) -> None:
    length = 2 * window + 3
    kept = set(kept_positions(length).tolist())
    assert {*range(64), *range(length - 64, length)} <= kept
    assert {window - 2, window - 1, window, window + 1, window + 2} <= kept
    assert max(np.diff(sorted(kept))) <= length // 400 + 1


def test_logits_are_those_of_the_stored_weights(checkpoint: Checkpoint) -> None:
    """Matrices go through the precision, norms do not: every artifact stores those in float32."""
    stored = run_references(checkpoint, TOKENS, weights="bf16", bf16=False, progress=SilentProgress())
    narrowed = Reference(checkpoint, weights=lambda _, rows, __=None: rows.bfloat16().float() if rows.ndim == 2 else rows)
    expected = narrowed.run([TOKENS]).logits[0]
    np.testing.assert_array_equal(stored.logits, expected)
    np.testing.assert_array_equal(stored.logits_at(np.array([3, 19])), expected[[3, 19]])


def test_floors_and_quantisation(checkpoint: Checkpoint) -> None:
    found = run_references(checkpoint, TOKENS, weights="fp16", bf16=True, progress=SilentProgress())
    assert found.floor_bf16 is not None
    assert found.quantisation is not None
    assert 0 < found.floor.error.max() < 1e-4
    assert found.floor_bf16.error.max() > 100 * found.floor.error.max()
    assert found.floor_bf16.error.max() > found.quantisation.error.max() > 10 * found.floor.error.max()


def test_weights_that_are_kept_lose_nothing(checkpoint: Checkpoint) -> None:
    found = run_references(checkpoint, TOKENS, weights="fp32", bf16=False, progress=SilentProgress())
    assert (found.quantisation, found.floor_bf16) == (None, None)


def test_log_probs_add_up(checkpoint: Checkpoint) -> None:
    found = run_references(checkpoint, TOKENS, weights="fp32", bf16=False, progress=SilentProgress())
    probabilities = np.exp(found.log_probs(np.array([0, 5])).astype(np.float64))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert probabilities.argmax(axis=1).tolist() == found.logits[[0, 5]].argmax(axis=1).tolist()


@pytest.mark.parametrize(
    ("dtype", "weights", "exactly"),
    [
        ("float32", "fp32", True),
        ("float32", "fp16", False),
        ("float32", "bf16", False),
        ("float16", "fp16", True),
        ("float16", "fp32", True),
        ("float16", "bf16", False),
        ("bfloat16", "bf16", True),
        ("bfloat16", "fp32", True),
        ("bfloat16", "fp16", False),
    ],
)
def test_what_a_precision_keeps_exactly(tmp_path: Path, dtype: str, weights: str, exactly: bool) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path, dtype=dtype, layers=1))
    assert stored_exactly(checkpoint, weights) is exactly
