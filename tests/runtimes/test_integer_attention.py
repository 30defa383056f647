"""Whole attentions by alize's own kernels: tiny models against the same graph with the engine's attention."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from alize.compilers import compiler_for
from alize.drafting import draft_manifest
from alize.export.hub import export_hub
from alize.models.checkpoint import Checkpoint
from alize.runtimes import kernels, openvino_runner
from alize.runtimes.openvino_blob import Blob
from alize.runtimes.openvino_paged import PagedEngine
from alize.runtimes.processor import processor_name
from alize.runtimes.session import Session
from tests.tiny import YARN, tiny_checkpoint

pytestmark = pytest.mark.skipif(
    kernels.available() is not None or "amx_bf16" not in processor_name(), reason="they pay on processors with AMX only"
)

OPTIONS = {"attention": "paged", "inference_precision": "f32", "kv_cache_precision": "f16", "kernels": "alize"}
WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "layers": 2, "vocab_size": 97}
KINDS: dict[str, dict[str, Any]] = {
    "windows": {"heads": 6, "kv_heads": 2, "head_size": 32, "window": 40},
    "mixed windows": {"heads": 4, "kv_heads": 1, "head_size": 64, "family": "ministral", "window": 40, "pattern": (0, 1)},
    "scaled queries": {"heads": 4, "kv_heads": 4, "head_size": 32, "family": "ministral3", "rope": YARN},
}
FAR = 0.2  # of the logits' spread: what is rounded to 8 bits otherwise, or to bfloat16


class Both:
    """One graph with alize's attention and with the engine's; the products are alize's in both."""

    def __init__(self, folder: Path, **shape: Any) -> None:
        checkpoint = Checkpoint.open(tiny_checkpoint(folder / "checkpoint", **WIDE, **shape))
        compiler = compiler_for("openvino")
        compiler.lowering.lower(export_hub(checkpoint), folder, weights="int8")
        self.folder, self.draft = folder, draft_manifest(checkpoint, compiler, device="cpu", weights="int8")
        self.mine, self.theirs = self.open(), self.open(kv_cache_precision="f32")

    def open(self, **changed: str) -> PagedEngine:
        engine = openvino_runner.open(self.folder, self.draft, "cpu", OPTIONS | changed)
        assert isinstance(engine, PagedEngine)
        return engine


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    yield Both(tmp_path_factory.mktemp("attention"), **KINDS[request.param])


def session(engine: PagedEngine, batch: int = 1) -> Session:
    return Session(engine.runner(batch), engine.info, batch=batch, chunk=64, slack=64)


def tokens(count: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, WIDE["vocab_size"], count)


def logits(engine: PagedEngine, parts: Sequence[int], keep: int = 1) -> list[NDArray[np.float32]]:
    """Behind each part of a row of tokens."""
    with session(engine) as one:
        cuts = np.split(tokens(sum(parts)), np.cumsum(parts)[:-1])
        return [one.append(part[None], keep=keep)[0] for part in cuts]


def assert_near(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert np.sqrt(np.mean((found - expected) ** 2)) < FAR * np.std(expected)


def inputs(engine: PagedEngine) -> set[str]:
    return {value.get_any_name() for value in engine.compiled.inputs}


def test_who_computes(both: Both) -> None:
    """What the kernels do not know stays with the engine: another precision of the cache, and of everything else."""
    few = {"input_ids", "position_ids", "logits_index"}
    assert inputs(both.mine) == few
    for other in (both.theirs, both.open(inference_precision="bf16")):
        assert inputs(other) > few | {"key_cache.0", "past_lens"}


@pytest.mark.parametrize("parts", [(1, 1, 1), (31, 2, 1), (33, 40, 1), (64, 64, 64, 1), (200, 1, 33, 7, 1)])
def test_logits_are_those_of_the_engines_attention(both: Both, parts: tuple[int, ...]) -> None:
    """Few tokens and many, across blocks, and behind a window whose blocks were forgotten."""
    for found, expected in zip(logits(both.mine, parts), logits(both.theirs, parts), strict=True):
        assert_near(found, expected)


def test_rows_of_unequal_length(both: Both) -> None:
    lengths = np.array([3, 50, 1, 33])
    given = np.stack([tokens(50, seed) for seed in range(4)])
    found = []
    for engine in (both.mine, both.theirs):
        with session(engine, batch=4) as rows:
            rows.append(given, lengths=np.array([40, 1, 5, 33]))
            found.append(rows.append(given, lengths=lengths))
    for row in range(4):
        assert_near(found[0][row], found[1][row])


def test_a_token_has_the_same_bits_however_few_come_with_it(both: Both) -> None:
    """Alone, as part of a draft, and beside other rows."""
    more = tokens(5, seed=1)
    with session(both.mine) as one:
        one.append(tokens(70)[None])
        alone = np.concatenate([one.append(token[None, None])[0] for token in more])
    with session(both.mine) as one:
        one.append(tokens(70)[None])
        np.testing.assert_array_equal(one.append(more[None], keep=0)[0], alone)
    with session(both.mine) as other, session(both.mine) as one:
        other.append(tokens(40, seed=2)[None])
        one.append(tokens(70)[None])
        together = [Session.append_together([other, one], [token[None, None]] * 2)[1] for token in more]
    np.testing.assert_array_equal(np.concatenate(together), alone)


def test_a_saved_session_and_a_fork_go_on(both: Both, tmp_path: Path) -> None:
    with session(both.mine) as first, session(both.mine) as second:
        first.append(tokens(90)[None])
        first.save(tmp_path / "saved")
        with first.fork() as twin:
            expected = first.append([[7]])
            np.testing.assert_array_equal(twin.append([[7]]), expected)
        second.restore(tmp_path / "saved")
        np.testing.assert_array_equal(second.append([[7]]), expected)


def test_a_later_process_opens_what_was_compiled(both: Both, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With caches and tables of its own."""
    blob = Blob(tmp_path / "blob", "", kernels.library(), both.folder / "openvino_model.bin")
    monkeypatch.setattr(openvino_runner, "blob_of", lambda *_: blob)
    both.open().keep()
    monkeypatch.setattr(openvino_runner, "use_attention", lambda *_: pytest.fail("it was compiled again"))
    kept = both.open()
    assert kept._attention is not None
    for found, expected in zip(logits(kept, (70, 1, 5)), logits(both.mine, (70, 1, 5)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_heads_of_other_sizes_stay_with_the_engine(tmp_path: Path) -> None:
    engine = Both(tmp_path, heads=4, kv_heads=2, head_size=16)
    assert engine.mine._attention is None
    assert_near(logits(engine.mine, (40,))[0], logits(engine.theirs, (40,))[0])
