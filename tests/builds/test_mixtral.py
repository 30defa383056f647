"""Whole builds of a mixture of experts, on both targets."""

import numpy as np
import pytest

from alize.building import build
from alize.errors import UsageError
from alize.models.session import open as open_torch
from alize.runtimes.golden import GOLDEN, read_golden
from alize.runtimes.model import load
from alize.runtimes.session import Session, session_limits
from tests.builds.conftest import WINDOW, Alize, BuiltOnce
from tests.tiny import RUN_HERE

each_target = pytest.mark.parametrize("target", RUN_HERE)


@each_target
def test_it_passes_and_says_which_experts_ran(target: str, built: BuiltOnce, alize: Alize) -> None:
    one = built(target, "mixtral")
    manifest = one.manifest
    assert (manifest.validation.verdict, manifest.validation.level) == ("pass", "device-validated")
    assert (manifest.model.experts, manifest.model.experts_per_token) == (4, 2)
    assert manifest.target.options == {"experts": "apart"}
    assert "--experts apart" in manifest.rebuild
    experts = manifest.target.structure["experts"]
    for phase in ("prefill", "decode"):  # one token repeated: two experts of each of three layers, and no others
        assert (experts[phase]["experts_executed"], experts[phase]["experts_reachable"]) == (6, 12)
    covered = manifest.validation.figures["experts"]
    assert covered["pairs"] == covered["by_prompts"] + covered["forced"] == 12
    assert covered["unreachable"] == 0
    asked = sum(len(case.positions) for case in read_golden(one.folder / GOLDEN)[1])
    assert covered["golden_positions"] == asked and covered["golden_kl_of_near_ties"] < 0.25 * 0.1
    assert "experts" in alize("inspect", one.folder).out


@each_target
def test_it_says_what_pytorch_says_far_beyond_the_window(target: str, built: BuiltOnce) -> None:
    one = built(target, "mixtral")
    tokens = np.random.default_rng(3).integers(0, 320, (1, 6 * WINDOW))
    engine = open_torch(one.checkpoint)
    limits = session_limits(engine.info, {})
    with Session(engine.runner(1), engine.info, batch=1, chunk=limits.chunk, slack=limits.slack) as reference:
        expected = reference.append(tokens)[0, 0]
    with load(one.folder) as model, model.session() as session:
        for part in np.split(tokens, 6, axis=1):
            logits = session.append(part)[0, 0]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=0.05)  # a float16 cache


@each_target
@pytest.mark.parametrize("model", ["mixtral", "windowed"])
def test_a_form_that_is_not_there_is_refused(
    target: str, model: str, built: BuiltOnce, tmp_path_factory: pytest.TempPathFactory
) -> None:
    one, output = built(target, model), tmp_path_factory.mktemp("out") / "artifact"
    if target == "openvino" and model == "mixtral":
        assert built(target, model, experts="tiled").manifest.target.structure["experts"]["form"] == "tiled"
        return
    message = "not a form of target onnxruntime: use apart" if model == "mixtral" else "the model has no experts"
    with pytest.raises(UsageError, match=message):
        build(str(one.checkpoint), output=output, target=target, experts="tiled")
    assert not output.exists()
