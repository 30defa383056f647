"""A wrong mixture of experts cannot pass, and what is wrong with it is named: each of these stores every weight as it should."""

from pathlib import Path

import numpy as np
import pytest
import torch

from alize.compilers import compiler_for
from alize.drafting import draft_manifest
from alize.models.checkpoint import Checkpoint
from alize.models.reference import Reference
from alize.runtimes.registry import backend_module
from alize.validate.cases import Case
from alize.validate.drive import chosen_experts, expert_taps
from tests.tiny import RUN_HERE, edit_tensor, tiny_checkpoint
from tests.validate import tampered_experts as tampered
from tests.validate.tampering import Tamper, lower, nothing
from tests.validate.test_wrong_artifacts import validate

WINDOW = 12
EXPERTS = 4
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(autouse=True)
def least(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the minimum set is run, which has to catch all of these."""
    monkeypatch.setattr("alize.validate.cases.USUAL_SECONDS", 0.0)


WRONG: dict[str, tuple[Tamper, str]] = {
    "swapped experts": (tampered.swap_experts, "layer 1: experts 1 and 3 are swapped, from position "),
    "no renormalisation": (
        tampered.no_renormalisation,
        "layer 1: the shares of the chosen experts are not renormalised, from position 0 on",
    ),
    "one expert": (tampered.double_expert(0, 2), "layer 0: the answer of expert 2 is wrong (expert "),
    "another choice": (tampered.lift_expert(1, 3, 0.5), "layer 1, position "),
}


def gate(layer: int) -> str:
    return f"model.layers.{layer}.block_sparse_moe.gate.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint(tmp_path_factory.mktemp("experts") / "tiny", window=WINDOW, layers=2, experts=EXPERTS))


def with_router(folder: Path, layer: int, expert: int, row: torch.Tensor, *, top_k: int = 2) -> Checkpoint:
    """A checkpoint whose router has this row [M] for the expert; every hidden state has a large first number."""
    tiny_checkpoint(folder, window=WINDOW, layers=2, experts=EXPERTS, top_k=top_k)
    tensors = Checkpoint.open(folder)
    embedding, router = tensors.tensor(EMBEDDING).clone(), tensors.tensor(gate(layer)).clone()
    embedding[:, 0] = 5.0
    router[expert] = row
    edit_tensor(folder, EMBEDDING, embedding)
    edit_tensor(folder, gate(layer), router)
    return Checkpoint.open(folder)


@pytest.mark.parametrize("target", RUN_HERE)
def test_an_untouched_lowering_passes(target: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert lower(checkpoint, target, tmp_path / "out", nothing) is None
    outcome = validate(tmp_path / "out", checkpoint, target)
    assert (outcome.validation.verdict, outcome.evidence.complaints) == ("pass", ())
    figures = outcome.validation.figures["experts"]
    assert figures["golden_positions"] > 0
    assert {name: value for name, value in figures.items() if not name.startswith("golden_")} == {
        "pairs": 8.0,
        "by_prompts": 8.0,
        "forced": 0.0,
        "unreachable": 0.0,
        "near_ties_followed": 0.0,
    }


@pytest.mark.parametrize("target", RUN_HERE)
def test_the_artifact_says_what_it_chose(target: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Row by row, without the padding, in an unequal batch that is fed in steps."""
    lower(checkpoint, target, tmp_path / "out", nothing)
    compiler, tokens = compiler_for(target), np.random.default_rng(0).integers(0, 320, 30)
    draft = draft_manifest(checkpoint, compiler, device="cpu", weights="fp32")
    taps = expert_taps(draft.model)
    engine = backend_module(target).open(tmp_path / "out", draft, "cpu", dict(compiler.accuracy), taps)
    case = Case("unequal batch", (13, 4, 8), (1, 3), chunk=5)
    found = chosen_experts(engine, draft.model, case, tokens)
    engine.close()
    assert [made.shape for made in found] == [(2, size, 2) for size in case.rows]
    expected = Reference(checkpoint).run([tokens]).routing[0].experts
    for made in found:
        np.testing.assert_array_equal(made, expected[:, : made.shape[1]])


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("target", RUN_HERE)
def test_a_wrong_mixture_is_caught_and_named(target: str, name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    tamper, finding = WRONG[name]
    assert lower(checkpoint, target, tmp_path / "out", tamper) is None  # the right experts run: no structure tells
    outcome = validate(tmp_path / "out", checkpoint, target, budget_seconds=None)
    assert outcome.validation.verdict == "fail"
    assert outcome.evidence.findings[0].startswith(finding), outcome.evidence.findings


@pytest.mark.parametrize("target", RUN_HERE)
def test_a_dense_lowering_says_the_right_thing_and_is_caught(target: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    seen = lower(checkpoint, target, tmp_path / "out", tampered.dense_experts)
    assert str(seen).startswith("layer 0, prefill: expert")
    assert str(seen).endswith("dense in disguise")
    assert validate(tmp_path / "out", checkpoint, target, budget_seconds=None).validation.verdict == "pass"


@pytest.mark.parametrize("target", RUN_HERE)
def test_an_expert_that_no_prompt_reaches_is_run_by_name(target: str, tmp_path: Path) -> None:
    row = 0.2 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    row[0] = -3.0  # far below the others, whatever the token
    checkpoint = with_router(tmp_path / "checkpoint", 1, 3, row)
    lower(checkpoint, target, tmp_path / "right", nothing)
    right = validate(tmp_path / "right", checkpoint, target, budget_seconds=None)
    assert (right.validation.verdict, right.evidence.complaints) == ("pass", ())
    assert right.evidence.coverage is not None
    assert right.evidence.coverage.forced.tolist() == [[False] * 4, [False, False, False, True]]
    assert right.validation.figures["experts"]["by_prompts"] == 7
    lower(checkpoint, target, tmp_path / "wrong", tampered.double_expert(1, 3))
    wrong = validate(tmp_path / "wrong", checkpoint, target, budget_seconds=None)
    assert all(not case.reasons for case in wrong.evidence.cases)  # no prompt reaches it, no logit tells
    assert wrong.validation.verdict == "fail"
    assert wrong.evidence.findings[0].startswith("layer 1: the answer of expert 3 is wrong (expert ")
    assert wrong.evidence.coverage is not None
    assert wrong.evidence.coverage.wrong.tolist() == [[False] * 4, [False, False, False, True]]


@pytest.mark.parametrize("target", RUN_HERE)
def test_an_expert_that_nothing_reaches_is_reported(target: str, tmp_path: Path) -> None:
    """With top_k = 1 the second of two equal rows never wins."""
    folder = tiny_checkpoint(tmp_path / "checkpoint", window=WINDOW, layers=2, experts=EXPERTS, top_k=1)
    router = Checkpoint.open(folder).tensor(gate(0)).clone()
    router[3] = router[1]
    edit_tensor(folder, gate(0), router)
    checkpoint = Checkpoint.open(folder)
    lower(checkpoint, target, tmp_path / "out", nothing)
    outcome = validate(tmp_path / "out", checkpoint, target, budget_seconds=None)
    assert outcome.validation.verdict == "pass", outcome.evidence.complaints
    assert outcome.validation.left_out[-1:] == ("layer 0, expert 3: no hidden state puts it among the chosen",)
    assert outcome.validation.figures["experts"]["unreachable"] == 1


@pytest.mark.parametrize("target", RUN_HERE)
def test_a_near_tie_is_followed(target: str, tmp_path: Path) -> None:
    """Experts 1 and 3 have the same logits always and different weights; the reference takes 1, this artifact takes 3."""
    folder = tiny_checkpoint(tmp_path / "checkpoint", window=WINDOW, layers=2, experts=EXPERTS)
    router = Checkpoint.open(folder).tensor(gate(0)).clone()
    router[3] = router[1]
    edit_tensor(folder, gate(0), router)
    checkpoint = Checkpoint.open(folder)
    lower(checkpoint, target, tmp_path / "out", tampered.lift_expert(0, 3, 1e-6))
    outcome = validate(tmp_path / "out", checkpoint, target)
    assert outcome.validation.verdict == "pass", outcome.evidence.complaints
    notes = [note for case in outcome.evidence.cases for note in case.notes]
    assert all(note.startswith("near-tie followed: layer 0, position ") for note in notes)
    assert outcome.validation.figures["experts"]["near_ties_followed"] == len(notes) > 10


@pytest.mark.parametrize("target", RUN_HERE)
def test_rounding_may_decide(target: str, tmp_path: Path) -> None:
    """Two rows of a router that differ by a few roundings: every order of sums has a choice of its own, a cache in float16 too.

    Which cases meet one depends on the processor; on the one that this was written on both questions do.
    """
    folder = tiny_checkpoint(tmp_path / "checkpoint", window=WINDOW, layers=2, experts=EXPERTS)
    router = Checkpoint.open(folder).tensor(gate(0)).clone()
    router[3] = router[1] * (1 + 2.4e-7 * torch.randn(32, generator=torch.Generator().manual_seed(2)))
    edit_tensor(folder, gate(0), router)
    checkpoint = Checkpoint.open(folder)
    lower(checkpoint, target, tmp_path / "out", nothing)
    outcome = validate(tmp_path / "out", checkpoint, target)
    assert outcome.validation.verdict == "pass", outcome.evidence.complaints
