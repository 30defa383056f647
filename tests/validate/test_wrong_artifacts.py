"""A wrong artifact cannot pass, and what is wrong with it is named."""

from pathlib import Path

import pytest

from alize.compilers import compiler_for
from alize.drafting import draft_manifest
from alize.models.checkpoint import Checkpoint
from alize.progress import SilentProgress
from alize.validate.judge import Budget
from alize.validate.run import Outcome, validate_folder
from tests.tiny import RUN_HERE, tiny_checkpoint
from tests.validate import tampering
from tests.validate.tampering import SPOILT, Spoil, Tamper, lower

WINDOW = 12

WRONG: dict[str, tuple[Tamper, str, str | None]] = {
    # name -> how it is spoilt, what the numbers alone must say of it, what the structure check must say (None: nothing)
    "corrupt weight": (tampering.corrupt_weight, "weight model.layers.1.mlp.up_proj.weight differs", None),
    "no window": (tampering.window_of(lambda _: 0), "layer 0, attention, from position 12 on: the window is wider", "layer 0: "),
    "W-1": (tampering.window_of(lambda w: w - 1), "layer 0, attention, from position 11 on: the window is narrower", "layer 0: "),
    "W+1": (tampering.window_of(lambda w: w + 1), "layer 0, attention, from position 12 on: the window is wider", "layer 0: "),
    "shifted rope": (tampering.shift_rope, "layer 0, attention, from position 1 on: the rotary embedding", None),
    "swapped heads": (
        tampering.swap_heads,
        "layer 1, attention, from position 1 on: the order of the heads is wrong, or a projection of theirs: heads 0, 3 ",
        None,
    ),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    return Checkpoint.open(tiny_checkpoint(folder, window=WINDOW, tokenizer=True))


def validate(
    folder: Path,
    checkpoint: Checkpoint,
    target: str,
    *,
    weights: str = "fp32",
    budget: Budget | None = None,
    budget_seconds: float | None = 600,
) -> Outcome:
    compiler = compiler_for(target)
    draft = draft_manifest(checkpoint, compiler, device="cpu", weights=weights)
    progress = SilentProgress()
    budget = budget or Budget()
    return validate_folder(folder, draft, checkpoint, compiler, budget=budget, budget_seconds=budget_seconds, progress=progress)


@pytest.mark.parametrize("target", RUN_HERE)
def test_an_untouched_lowering_passes(target: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert lower(checkpoint, target, tmp_path / "out", tampering.nothing) is None
    outcome = validate(tmp_path / "out", checkpoint, target)
    assert outcome.evidence.findings == ()
    assert outcome.validation.verdict == "pass"
    questions = {case.question for case in outcome.validation.cases}
    assert questions == {"compile fidelity", "runtime loss"}  # fp32 of float32: there is no quantisation to lose by


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("target", RUN_HERE)
def test_a_wrong_artifact_is_caught_and_named(target: str, name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    tamper, finding, structure = WRONG[name]
    seen = lower(checkpoint, target, tmp_path / "out", tamper)
    assert (seen is None) == (structure is None)
    assert seen is None or seen.startswith(str(structure))
    outcome = validate(tmp_path / "out", checkpoint, target)
    assert outcome.validation.verdict == "fail"
    assert outcome.evidence.findings[0].startswith(finding), outcome.evidence.findings


# integers: the losses of random weights are beyond any sensible budget, and are not what is asked here
GENEROUS = Budget(quantisation_kl=1e3, quantisation_kl_max=1e3, runtime_kl=1e3, runtime_kl_max=1e3)

WRONG_INTEGERS: dict[str, tuple[Spoil, str]] = {
    "nibble": (tampering.change_nibble, f"weight {SPOILT} differs in 1 of 6144 integers, first at [3, 5]"),
    "scale": (tampering.change_scale, f"weight {SPOILT} differs in 1 of 192 scales, first at [2, 1]"),
}


@pytest.fixture(scope="module")
def wider(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Wide enough for groups."""
    folder = tmp_path_factory.mktemp("checkpoint") / "wider"
    return Checkpoint.open(tiny_checkpoint(folder, layers=2, window=WINDOW, hidden_size=64, intermediate_size=96, tokenizer=True))


@pytest.mark.parametrize("weights", ["int4-g32", "int4-g32-asym", "int8-channel"])
@pytest.mark.parametrize("target", RUN_HERE)
def test_untouched_integers_pass(target: str, weights: str, wider: Checkpoint, tmp_path: Path) -> None:
    assert lower(wider, target, tmp_path / "out", tampering.nothing, weights=weights) is None
    outcome = validate(tmp_path / "out", wider, target, weights=weights, budget=GENEROUS)
    assert outcome.evidence.complaints == ()
    assert {case.question for case in outcome.validation.cases} == {"compile fidelity", "quantisation loss", "runtime loss"}


@pytest.mark.parametrize("name", WRONG_INTEGERS)
@pytest.mark.parametrize("target", RUN_HERE)
def test_one_wrong_integer_or_scale_is_caught_and_named(target: str, name: str, wider: Checkpoint, tmp_path: Path) -> None:
    spoil, finding = WRONG_INTEGERS[name]
    with tampering.spoilt_rounding(spoil):
        assert lower(wider, target, tmp_path / "out", tampering.nothing, weights="int4-g32") is None
    outcome = validate(tmp_path / "out", wider, target, weights="int4-g32", budget=GENEROUS)
    assert outcome.validation.verdict == "fail"
    assert outcome.evidence.findings[0] == finding


@pytest.mark.parametrize("target", RUN_HERE)
def test_floats_where_integers_should_be_are_named(target: str, wider: Checkpoint, tmp_path: Path) -> None:
    lower(wider, target, tmp_path / "out", tampering.nothing)
    outcome = validate(tmp_path / "out", wider, target, weights="int4-g32", budget=GENEROUS)
    assert f"weight {SPOILT} is stored as torch.float32, and should be as integers" in outcome.evidence.findings


def test_no_budget_is_partial(checkpoint: Checkpoint, tmp_path: Path) -> None:
    compiler = compiler_for("onnxruntime")
    draft = draft_manifest(checkpoint, compiler, device="cpu", weights="fp32")
    progress = SilentProgress()
    outcome = validate_folder(tmp_path, draft, checkpoint, compiler, budget=Budget(), budget_seconds=0, progress=progress)
    assert outcome.validation.verdict == "partial"
    assert outcome.validation.left_out
