"""Builds with weights in 8 and 4 bits: what they hold, what they lose, and that both targets are given the same numbers."""

import hashlib
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from alize.arguments import parse
from alize.building import build
from alize.compilers import compiler_for
from alize.errors import ValidationFailed
from alize.optimize.round_to_integers import Integers
from alize.runtimes.model import load
from alize.runtimes.registry import backend_module
from alize.runtimes.session import Session
from alize.validate import validate_artifact
from alize.validate.judge import Budget
from tests.builds.conftest import Alize, BuiltOnce
from tests.tiny import RUN_HERE, tiny_checkpoint

each_target = pytest.mark.parametrize("target", RUN_HERE)
GENEROUS = Budget(quantisation_kl=1e3, quantisation_kl_max=1e3, runtime_kl=1e3, runtime_kl_max=1e3)
"""Random weights lose more than any model that was trained."""


@each_target
def test_the_manifest_of_int4(target: str, built: BuiltOnce) -> None:
    """The tiny model has inputs of 32 and of 56: a row of the one is a group, and none divides the other."""
    manifest = built(target, weights="int4", group_size="64", asymmetric=True, budget=GENEROUS).manifest
    assert manifest.target.weights == "int4-g64-asym"
    assert "quantise_int4_g64_asym" in manifest.target.passes
    assert manifest.target.structure["integers"] == {"int4 channel asymmetric": 21, "int8 channel": 2}
    assert manifest.target.structure["integer_products"] == 22
    names = [one.name for one in manifest.configurations]
    assert names == (["default", "engine", "exact"] if target == "openvino" else ["default", "exact"])
    assert manifest.configurations[0].options.get("dynamic_quantization_group", 32) == 32
    assert dict(manifest.configurations[-1].options) == dict(compiler_for(target).accuracy)
    options = parse(shlex.split(manifest.rebuild)[1:])
    assert (options.weights, options.group_size, options.asymmetric) == ("int4", "64", True)


def test_both_targets_hold_the_same_integers(built: BuiltOnce) -> None:
    """And so they lose the same by them, to the last digit."""
    ones = [built(target, weights="int4", budget=GENEROUS) for target in RUN_HERE]
    stored = [dict(compiler_for(one.manifest.target.backend).probe.stored_weights(one.folder)) for one in ones]
    assert stored[0].keys() == stored[1].keys()
    for name, first in stored[0].items():
        second = stored[1][name]
        if isinstance(first, Integers) and isinstance(second, Integers):
            assert torch.equal(first.values, second.values) and torch.equal(first.scales, second.scales), name
        else:
            assert isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor) and torch.equal(first, second), name
    losses = [next(case for case in one.manifest.validation.cases if case.question == "quantisation loss") for one in ones]
    assert losses[0] == losses[1]
    assert losses[0].figures["kl_mean"] > 0


@each_target
def test_int8_loses_little(target: str, built: BuiltOnce) -> None:
    losses = {}
    for weights in ("int8", "int4"):
        cases = built(target, weights=weights, budget=GENEROUS).manifest.validation.cases
        losses[weights] = next(case.figures["kl_mean"] for case in cases if case.question == "quantisation loss")
    assert 0 < 20 * losses["int8"] < losses["int4"]


@each_target
def test_both_configurations_load(target: str, built: BuiltOnce, own_state: Path) -> None:
    """`exact` computes in float32; `default` rounds activations, and is near."""
    one = built(target, weights="int4", budget=GENEROUS)
    tokens = np.arange(20)[None] % 300
    logits = {}
    for name in ("default", "exact"):
        with load(one.folder, configuration=name) as model, model.session() as session:
            logits[name] = session.append(tokens, keep=0)
    error = np.abs(logits["default"] - logits["exact"])
    assert 0 < error.mean() < 0.2 * logits["exact"].std()


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_draft_is_checked_with_the_bits_of_decoding(weights: str, built: BuiltOnce) -> None:
    """On paged attention, activations rounded: a chunk of which all logits are wanted has those of one token at a time.

    In and beyond the window of 12. One kernel for both is what it takes: rounding makes tenths of a logit of the last bit.
    """
    one = built("openvino", weights=weights, budget=GENEROUS)
    options = {**one.manifest.configurations[0].options, "threads": 2}  # as many as key/value heads
    assert options["attention"] == "paged"
    engine = backend_module("openvino").open(one.folder, one.manifest, "cpu", options)
    tokens = np.random.default_rng(0).integers(0, 300, (1, 68))

    def logits(size: int) -> NDArray[np.float32]:
        with Session(engine.runner(1), one.manifest.model, batch=1, chunk=32, slack=64) as session:
            session.append(tokens[:, :4])
            steps = [session.append(tokens[:, at : at + size], keep=size)[0] for at in range(4, 68, size)]
        return np.concatenate(steps)

    alone = logits(1)
    for size in (2, 4, 16, 32):
        np.testing.assert_array_equal(logits(size), alone)
    engine.close()


@each_target
def test_the_same_bytes_again(target: str, built: BuiltOnce, tmp_path: Path) -> None:
    one = built(target, weights="int4", budget=GENEROUS)
    again = build(str(one.checkpoint), output=tmp_path / "again", target=target, weights="int4", budget=GENEROUS)
    assert again.digest == one.manifest.digest
    for entry in again.files:
        assert hashlib.sha256((one.folder / entry.path).read_bytes()).hexdigest() == entry.sha256


@each_target
def test_validate_with_the_source(target: str, built: BuiltOnce, own_state: Path) -> None:
    one = built(target, weights="int4", budget=GENEROUS)
    report = validate_artifact(one.folder, source=str(one.checkpoint), budget_seconds=60)
    assert (report["verdict"], report["findings"]) == ("pass", [])


def test_a_loss_beyond_the_budget_names_the_option(built: BuiltOnce, tmp_path: Path) -> None:
    checkpoint, output = built("onnxruntime").checkpoint, tmp_path / "out"
    message = r"int4-g128: mean KL .* above the budget of 0.001: use smaller groups or int8, or raise --quantisation-budget"
    with pytest.raises(ValidationFailed, match=message):
        build(str(checkpoint), output=output, target="onnxruntime", weights="int4", budget=GENEROUS, quantisation_budget=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed-report.html"]


def test_default_budgets() -> None:
    assert Budget.for_weights("bf16") == Budget()
    assert Budget.for_weights("int8-channel").quantisation_kl == Budget().quantisation_kl
    assert Budget.for_weights("int4-g128").quantisation_kl > Budget().quantisation_kl
    assert Budget.for_weights("int8-g32").runtime_kl == Budget.for_weights("int4-g32").runtime_kl > Budget().runtime_kl


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_value_that_cannot_be_rounded_leaves_nothing(value: float, alize: Alize, tmp_path: Path) -> None:
    from alize.models.checkpoint import Checkpoint
    from tests.tiny import edit_tensor

    source, name = tiny_checkpoint(tmp_path / "source", layers=1), "model.layers.0.mlp.down_proj.weight"
    tensor = Checkpoint.open(source).tensor(name).clone()
    tensor[3, 5] = value
    edit_tensor(source, name, tensor)
    ran = alize("build", source, "-o", tmp_path / "out" / "artifact", "-q", "--target", "onnxruntime", "--weights", "int4")
    assert (ran.code, ran.err.count("\n")) == (3, 1)
    assert name in ran.err
    assert not (tmp_path / "out").exists()
