"""Golden prompts are asked where a router's near-tie, decided otherwise by another device, changes little."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from alize.drafting import model_info
from alize.models.checkpoint import Checkpoint
from alize.models.reference import Reference
from alize.models.routing import NearTies
from alize.progress import SilentProgress
from alize.runtimes import golden
from alize.validate import golden_prompts as module
from alize.validate.golden_prompts import Replay, golden_budget, golden_replay
from alize.validate.judge import Budget
from alize.validate.near_ties import ROUTER_NEAR_TIE
from alize.validate.references import References, run_references
from tests.tiny import edit_config, tiny_checkpoint

WINDOW = 12
TOKENS = np.random.default_rng(0).integers(0, 320, 60)
TIES = {18, 24, 57}  # positions at which a router of this checkpoint has a near-tie
LIMITS = golden_budget(Budget.for_weights("fp32"), "fp32")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    place = tmp_path_factory.mktemp("near-ties")
    return Checkpoint.open(tiny_checkpoint(place, window=WINDOW, experts=4, seed=1, hidden_size=64, intermediate_size=96))


@pytest.fixture(scope="module")
def references(checkpoint: Checkpoint) -> References:
    return referred(checkpoint)


def referred(checkpoint: Checkpoint) -> References:
    return run_references(checkpoint, TOKENS, weights="fp32", bf16=False, progress=SilentProgress())


def made(checkpoint: Checkpoint, references: References) -> Replay:
    info = model_info(checkpoint)
    return golden_replay(info, TOKENS, references, LIMITS, reference=Reference(checkpoint), progress=SilentProgress())


def judged(cases: tuple[golden.Case, ...], logits: NDArray[np.float32], budget: golden.Budget = LIMITS) -> golden.Verdict:
    """A replay on a device that gives `logits` [N,V]."""
    return golden.judge([golden.compare(case.log_probs, logits[case.positions]) for case in cases], budget)


def test_a_device_that_decides_near_ties_otherwise_passes(checkpoint: Checkpoint, references: References) -> None:
    replay = made(checkpoint, references)
    everywhere = module._cases(model_info(checkpoint), TOKENS, references, references.kept)
    failed = 0
    for seed in range(10, 18):  # none that the build tried
        turned = NearTies(ROUTER_NEAR_TIE, share=0.5, seed=seed)
        logits = Reference(checkpoint).run([TOKENS], follow=[turned]).logits[0]
        assert judged(replay.cases, logits).passed
        failed += not judged(everywhere, logits).passed
    assert failed > 0  # what the choice of positions is for


def test_what_is_recorded(checkpoint: Checkpoint, references: References) -> None:
    replay = made(checkpoint, references)
    assert replay.budget == LIMITS
    assert replay.figures["golden_near_ties"] == len(TIES)
    assert replay.figures["golden_positions"] == sum(len(case.positions) for case in replay.cases)
    assert replay.figures["golden_positions_moved"] == 3
    assert 0 < replay.figures["golden_kl_of_near_ties"] < LIMITS.kl / 4
    positions = [case.positions.tolist() for case in replay.cases]
    edge = [0, WINDOW - 2, WINDOW - 1, WINDOW, WINDOW + 1]
    assert [found[:5] for found in positions] == [edge, edge]
    assert positions[1][-1] == len(TOKENS) - 1  # in the part that is decoded one by one; of the short prompt that part is moved


def test_a_wrong_device_still_fails(checkpoint: Checkpoint, references: References, tmp_path: Path) -> None:
    """A window that is off by one, and an expert that answers wrongly."""
    replay = made(checkpoint, references)
    assert judged(replay.cases, references.logits).passed
    other = tiny_checkpoint(tmp_path / "other", window=WINDOW, experts=4, seed=1, hidden_size=64, intermediate_size=96)
    edit_config(other, sliding_window=WINDOW - 1)
    assert not judged(replay.cases, Reference(Checkpoint.open(other)).run([TOKENS]).logits[0]).passed

    def wrong(name: str, rows: torch.Tensor, *_: int) -> torch.Tensor:
        return rows.float() * (0.5 if "layers.1.mlp.experts.2.down_proj" in name else 1)

    assert not judged(replay.cases, Reference(checkpoint, weights=wrong).run([TOKENS]).logits[0]).passed


def test_where_no_position_is_steady_the_budget_is_wider(
    checkpoint: Checkpoint, references: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROUTER_NEAR_TIE", 100.0)
    monkeypatch.setattr(module, "TURNED", (NearTies(100.0), NearTies(100.0, share=0.5, seed=1)))
    replay = made(checkpoint, references)
    assert {case.positions.size for case in replay.cases} == {1}
    assert replay.figures["golden_positions"] == len(replay.cases)
    assert replay.budget.kl == pytest.approx(4 * replay.figures["golden_kl_of_near_ties"]) and replay.budget.kl > LIMITS.kl
    turned = Reference(checkpoint).run([TOKENS], follow=[NearTies(100.0)]).logits[0]
    assert judged(replay.cases, turned, replay.budget).passed


@pytest.mark.parametrize("experts", [0, 2])
def test_without_a_choice_nothing_is_run_again(experts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain model, and one whose experts all answer always."""
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path, window=WINDOW, experts=experts, layers=1))
    references = referred(checkpoint)
    monkeypatch.setattr(Reference, "run", lambda *_, **__: pytest.fail("it was"))
    replay = made(checkpoint, references)
    size = len(TOKENS)
    assert replay.cases[1].positions.tolist() == [0, 10, 11, 12, 13, size // 2, size - 2, size - 1]
    assert [replay.figures.get(name) for name in ("golden_near_ties", "golden_positions_moved")] == [0 if experts else None] * 2
