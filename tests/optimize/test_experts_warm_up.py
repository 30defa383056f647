"""After `open` every expert has run once, so that no token of a user's pays for packing weights: by the engine's counters."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from alize.artifact.manifest import Manifest
from alize.compilers import compiler_for
from alize.drafting import draft_manifest
from alize.errors import ArtifactError
from alize.optimize.expert_nodes import APART
from alize.optimize.expert_structure import by_layer
from alize.optimize.openvino_experts import executed_names
from alize.runtimes import openvino_runner, openvino_warm_up
from alize.runtimes.session import Session
from tests.export.hubs import TOLERANCE, Tiny, left_padded, make_tiny, torch_logits
from tests.optimize.lowered import lower

LAYERS, E = 2, 8
OPTIONS: dict[str, str | int | bool] = {"inference_precision": "f32", "kv_cache_precision": "f16"}


@pytest.fixture(scope="module", params=[2, 3])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """3 of 8 leaves 2 for the last turn."""
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", experts=E, top_k=request.param, layers=LAYERS)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = openvino_runner.compile_properties

    def properties(options: Mapping[str, str | int | bool]) -> dict[str, str | int]:
        return usual(options) | {"PERF_COUNT": True}

    monkeypatch.setattr(openvino_runner, "compile_properties", properties)


def manifest(tiny: Tiny, form: str) -> Manifest:
    return draft_manifest(tiny.checkpoint, compiler_for("openvino"), device="cpu", weights="fp32", experts=form)


def ran(engine: openvino_runner.OpenVinoEngine) -> list[set[int]]:
    """The experts that have run, of each part of each layer."""
    names = executed_names(engine.compiled.create_infer_request())
    return [experts for parts in by_layer(names, LAYERS).values() for experts in parts.values()]


@pytest.mark.usefixtures("counting")
def test_every_expert_has_run_when_open_returns(tiny: Tiny, tmp_path: Path) -> None:
    lower(tiny, "openvino", tmp_path / "out")
    engine = openvino_runner.open(tmp_path / "out", manifest(tiny, "apart"), "cpu", OPTIONS)
    assert ran(engine) == [set(range(E))] * (LAYERS * len(APART))


@pytest.mark.usefixtures("counting")
def test_without_it_none_has(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lower(tiny, "openvino", tmp_path / "out")
    monkeypatch.setattr(openvino_runner, "warm_up", lambda *_: 0)
    engine = openvino_runner.open(tmp_path / "out", manifest(tiny, "apart"), "cpu", OPTIONS)
    assert ran(engine) == [set()] * (LAYERS * len(APART))


@pytest.mark.parametrize("form", ["apart", "tiled"])
def test_it_leaves_no_trace(form: str, tiny: Tiny, tmp_path: Path) -> None:
    """Sessions choose their own experts afterwards, in rows of unequal lengths too."""
    lower(tiny, "openvino", tmp_path / "out", experts=form)
    made = manifest(tiny, form)
    engine = openvino_runner.open(tmp_path / "out", made, "cpu", {"accuracy": True})
    tokens, (mask, positions) = tiny.tokens(2, 9), left_padded([0, 0], 9)
    expected = torch_logits(tiny.model(), tokens, mask, positions)
    with Session(engine.runner(2), made.model, batch=2, chunk=16, slack=16) as session:
        first = session.append(tokens[:, :6], lengths=np.array([6, 4]), keep=1)
        np.testing.assert_allclose(first[:, 0], [expected[0, 5], expected[1, 3]], rtol=0, atol=TOLERANCE)
        session.reset()
        found = [session.append(tokens[:, part], keep=0) for part in (slice(0, 7), slice(7, 8), slice(8, 9))]
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, rtol=0, atol=TOLERANCE)


def test_a_graph_that_does_not_name_its_routers(tiny: Tiny, tmp_path: Path) -> None:
    dense = make_tiny(tmp_path / "tiny", layers=1)
    lower(dense, "openvino", tmp_path / "out")
    with pytest.raises(ArtifactError, match="the router's logits of 0 layers, the manifest has 2: build it again"):
        openvino_runner.open(tmp_path / "out", manifest(tiny, "apart"), "cpu", OPTIONS)


def test_a_model_without_experts_gets_no_input_more(tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path / "tiny", layers=1)
    lower(tiny, "openvino", tmp_path / "out")
    made = draft_manifest(tiny.checkpoint, compiler_for("openvino"), device="cpu", weights="fp32")
    engine = openvino_runner.open(tmp_path / "out", made, "cpu", OPTIONS)
    assert openvino_warm_up.EXPERT_BIAS not in {value.any_name for value in engine.compiled.inputs}
