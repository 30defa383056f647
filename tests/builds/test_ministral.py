"""Whole builds of the models that need more than a Mistral: mixed windows, YaRN, the text model of a multimodal checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest

from alize.artifact import read
from alize.building import build
from alize.inspect_artifact import describe
from alize.models.registry import family_for
from alize.runtimes.model import load
from tests.builds.conftest import WINDOW, BuiltOnce
from tests.models.multimodal_checkpoints import multimodal_checkpoint
from tests.tiny import RUN_HERE, write_tokenizer

LEFT_OUT = "Mistral3ForConditionalGeneration (text model of a multimodal checkpoint; vision tower left out)"

each_target = pytest.mark.parametrize("target", RUN_HERE)


@each_target
def test_a_mixed_model_passes_its_validation(target: str, built: BuiltOnce) -> None:
    manifest = built(target, "mixed").manifest
    assert manifest.validation.verdict == "pass" and not manifest.validation.left_out
    assert (manifest.source.family, manifest.model.windows) == ("ministral", (0, WINDOW, 0))
    assert manifest.target.structure["windows"] == [0, WINDOW, 0]
    assert "decode across the edge" in {case.name for case in manifest.validation.cases}


def test_both_targets_say_the_same_of_a_mixed_model(built: BuiltOnce) -> None:
    """Far beyond the window, in chunks that evict."""
    tokens = np.random.default_rng(0).integers(0, 320, (1, 20 * WINDOW))
    logits = []
    for target in RUN_HERE:
        with load(built(target, "mixed").folder) as model, model.session() as session:
            logits.append([session.append(part)[0, 0] for part in np.split(tokens, 20, axis=1)])
    np.testing.assert_allclose(*logits, rtol=0, atol=0.05)  # one has a float16 cache


@each_target
def test_of_a_multimodal_checkpoint_the_text_model_is_built_and_said_to_be(target: str, tmp_path: Path) -> None:
    multimodal_checkpoint(tmp_path / "checkpoint", "ministral3")
    write_tokenizer(tmp_path / "checkpoint")
    manifest = build(str(tmp_path / "checkpoint"), output=tmp_path / "out", target=target)
    assert manifest.validation.verdict == "pass"
    assert read(tmp_path / "out") == manifest
    assert (manifest.source.architecture, manifest.source.family) == (LEFT_OUT.split()[0], "ministral3")
    assert any(LEFT_OUT in line for line in describe(tmp_path / "out", manifest))
    assert LEFT_OUT in (tmp_path / "out" / "report.html").read_text()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["Ministral3ForCausalLM"]
    assert family_for(config).config.from_dict(config).yarn.factor == 4.0  # type: ignore[attr-defined]
    assert (tmp_path / "out" / "tokenizer.json").is_file()
