"""The torch back-end from a checkpoint folder; what every back-end must do is in tests/runtimes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from alize.errors import CorruptCheckpoint, DeviceUnavailable, SourceNotFound
from alize.models import session
from alize.models.checkpoint import Checkpoint
from alize.models.reference import Reference
from alize.runtimes.session import Session
from tests.tiny import edit_tensor, tiny_checkpoint


def test_session_says_what_the_reference_says(tmp_path: Path) -> None:
    """Ragged rows in chunks, well past the window and past what is cached."""
    folder = tiny_checkpoint(tmp_path / "model", window=5)
    engine = session.open(folder)
    rows = [np.random.default_rng(length).integers(0, 320, length) for length in (33, 21)]
    expected = Reference(Checkpoint.open(folder)).run(rows).logits
    tokens = np.stack([rows[0], np.pad(rows[1], (0, 12))])
    with Session(engine.runner(2), engine.info, batch=2, chunk=3, slack=4) as opened:
        logits = opened.append(tokens, lengths=[33, 21], keep=0)
    np.testing.assert_allclose(logits[0], expected[0], rtol=0, atol=5e-5)
    np.testing.assert_allclose(logits[1, :21], expected[1], rtol=0, atol=5e-5)
    assert not logits[1, 21:].any()


def test_info_is_of_the_checkpoint(tmp_path: Path) -> None:
    info = session.open(tiny_checkpoint(tmp_path / "model", window=5, head_size=12, tied=True, dtype="bfloat16")).info
    assert (info.layers, info.query_heads, info.key_value_heads, info.head_size) == (3, 4, 2, 12)
    assert (info.windows, info.max_positions, info.vocab_size, info.eos_token_ids) == ((5, 5, 5), 512, 320, (2,))


def test_evicted_positions_are_freed(tmp_path: Path) -> None:
    runner = session.open(tiny_checkpoint(tmp_path / "model", window=5)).runner(1)
    runner.step(np.zeros((1, 40), np.int64), np.array([40]), np.array([0]), 1)
    runner.evict(4)
    assert runner.cached() == 4
    key = runner._caches[0][0][0]
    assert key.untyped_storage().nbytes() == 4 * 2 * 8 * 4  # positions, K, D, bytes


def test_runners_share_weights_and_nothing_else(tmp_path: Path) -> None:
    engine = session.open(tiny_checkpoint(tmp_path / "model"))
    first, second = engine.runner(1), engine.runner(1)
    one, zero = np.array([1]), np.array([0])
    before = first.step(np.array([[7]]), one, zero, 1)
    second.step(np.array([[9]]), one, zero, 1)
    second.close()
    first.reset()
    assert np.array_equal(first.step(np.array([[7]]), one, zero, 1), before)


def test_back_end_functions(tmp_path: Path) -> None:
    assert session.available() is None
    assert "cpu" in session.devices()
    assert session.fingerprint("cpu")["torch"] == torch.__version__
    with pytest.raises(DeviceUnavailable, match="cuda:9"):
        session.open(tiny_checkpoint(tmp_path / "model"), None, "cuda:9")
    with pytest.raises(SourceNotFound):
        session.open(tmp_path / "nowhere")


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    edit_tensor(folder, "model.norm.weight", torch.full((32,), float("nan")))
    with pytest.raises(CorruptCheckpoint, match=r"model\.norm\.weight"):
        session.open(folder)
