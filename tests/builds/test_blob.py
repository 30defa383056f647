"""What an artifact's compiled graph is kept for: a later load compiles nothing and says the same, to the last bit."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from alize.runtimes import kernels, openvino_runner
from alize.runtimes.model import load
from tests.builds.conftest import Built, BuiltOnce
from tests.builds.test_integers import GENEROUS

pytestmark = pytest.mark.skipif(kernels.available() is not None, reason=str(kernels.available()))

FIRST = 40  # more than are rounded to 8 bits, and more than a window


def logits(folder: Path) -> NDArray[np.float32]:
    """Of a long append, then of tokens one by one."""
    with load(folder) as model, model.session() as session:
        tokens = np.arange(FIRST + 8)[None] * 5 % model.info.vocab_size
        parts = [session.append(tokens[:, :FIRST], keep=0)]
        parts += [session.append(tokens[:, at : at + 1]) for at in range(FIRST, FIRST + 8)]
        return np.concatenate(parts, axis=1)


def blob_in(state: Path) -> Path:
    (found,) = state.rglob("*.blob")
    return found


@pytest.fixture(params=["windowed", "tied", "mixed", "mixtral"])
def one(request: pytest.FixtureRequest, built: BuiltOnce) -> Built:
    return built("openvino", request.param, weights="int8", budget=GENEROUS)


@pytest.fixture
def tied(built: BuiltOnce) -> Built:
    return built("openvino", "tied", weights="int8", budget=GENEROUS)


@pytest.fixture
def no_compiling(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on nothing can be compiled."""

    def refuse(*_arguments: object) -> None:
        raise AssertionError("it was compiled again")

    return lambda: monkeypatch.setattr(openvino_runner, "use_kernels", refuse)


def test_a_later_load_compiles_nothing(one: Built, own_state: Path, no_compiling: Callable[[], None]) -> None:
    compiled = logits(one.folder)
    blob_in(own_state)
    no_compiling()
    np.testing.assert_array_equal(logits(one.folder), compiled)


def test_no_copy_of_the_weights(tied: Built, own_state: Path) -> None:
    """The tied embedding is the largest of the weights, and head and table at once."""
    load(tied.folder).close()
    kept, weights = blob_in(own_state).read_bytes(), (tied.folder / "openvino_model.bin").read_bytes()
    pieces = [weights[at : at + 64] for at in range(0, len(weights) - 64, 64)]
    copied = sum(len(piece) for piece in pieces if len(set(piece)) > 8 and piece in kept)
    assert copied < len(weights) / 50


@pytest.mark.parametrize("spoil", ["a byte", "cut", "empty", "of another device", "the engine refuses it"])
def test_what_is_stale_or_damaged_is_made_again(
    spoil: str,
    tied: Built,
    own_state: Path,
    no_compiling: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    compiled = logits(tied.folder)
    blob = blob_in(own_state)
    good = blob.read_bytes()
    spoilt = {"a byte": good[:1000] + bytes([good[1000] ^ 1]) + good[1001:], "cut": good[:-100], "empty": b""}
    if spoil in spoilt:
        blob.write_bytes(spoilt[spoil])
    elif spoil == "of another device":
        monkeypatch.setattr("alize.runtimes.openvino_blob.os.sched_getaffinity", lambda _process: set(range(99)))
    else:
        monkeypatch.setattr(openvino_runner, "read_blob", lambda _blob: good[32:-500])
    counted: list[object] = []
    replace = openvino_runner.use_kernels
    monkeypatch.setattr(openvino_runner, "use_kernels", lambda *given: counted.append(given) or replace(*given))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(logits(tied.folder), compiled)
    assert len(counted) == 1 and not caplog.records
    if spoil in spoilt:
        no_compiling()
        np.testing.assert_array_equal(logits(tied.folder), compiled)


def test_what_says_something_else_is_not_kept(tied: Built, own_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(range(9))
    monkeypatch.setattr(openvino_runner, "_trial", lambda _engine: [np.full(3, next(said), np.float32)])
    load(tied.folder).close()
    assert next(said) == 2 and blob_in(own_state).stat().st_size == 32
    load(tied.folder).close()
    assert next(said) == 3, "it was tried again"


def test_what_holds_weights_is_not_kept(tied: Built, own_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alize.runtimes.openvino_blob._LARGEST", 16)
    load(tied.folder).close()
    assert not list(own_state.rglob("*.blob"))


def test_only_load_keeps(tied: Built, own_state: Path) -> None:
    """What a build or `alize tune` opens is not known to be right yet."""
    configuration = tied.manifest.configurations[0]
    openvino_runner.open(tied.folder, tied.manifest, "cpu", configuration.options).close()
    load(tied.folder, configuration="exact").close()
    assert not list(own_state.rglob("*.blob"))
