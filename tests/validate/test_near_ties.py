"""A reference follows a choice that is as good as its own, in the rows that made it, and no other."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from alize.models.checkpoint import Checkpoint
from alize.models.reference import Reference
from alize.progress import SilentProgress
from alize.validate.cases import Case
from alize.validate.drive import places
from alize.validate.near_ties import Followed, follow
from alize.validate.references import References, run_references
from tests.tiny import edit_tensor, tiny_checkpoint

TOKENS = np.random.default_rng(1).integers(0, 320, 20)
CASE = Case("unequal batch", (9, 14, 5), (1, 1), chunk=14)
GATE = "model.layers.0.block_sparse_moe.gate.weight"


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Experts 1 and 3 of layer 0 have the same logits."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tied") / "tiny", layers=2, experts=4, window=6)
    router = Checkpoint.open(folder).tensor(GATE).clone()
    router[3] = router[1]
    edit_tensor(folder, GATE, router)
    return Checkpoint.open(folder)


@pytest.fixture(scope="module")
def references(tied: Checkpoint) -> References:
    return run_references(tied, TOKENS, weights="fp32", bf16=True, progress=SilentProgress())


def own(references: References) -> list[NDArray[np.int64]]:
    assert references.routing is not None
    return [references.routing.experts[:, :size].copy() for size in CASE.rows]


def asked(tied: Checkpoint, references: References, choices: list[NDArray[np.int64]]) -> Followed:
    assert references.router_floor is not None
    return follow(Reference(tied), references, CASE, TOKENS, choices, tolerance=30 * references.router_floor)


def artifact(tied: Checkpoint, choices: list[NDArray[np.int64]]) -> NDArray[np.float32]:
    """The logits [m,V] of one that chose so, in the order of the case."""
    rows, positions = places(CASE, np.arange(20))
    logits = [
        Reference(tied).run([TOKENS[:size]], follow=[made]).logits[0] for size, made in zip(CASE.rows, choices, strict=True)
    ]
    return np.stack([logits[row][position] for row, position in zip(rows, positions, strict=True)])


def other_of_the_tie(tied: Checkpoint, made: NDArray[np.int64]) -> NDArray[np.int64]:
    """Expert 3 of layer 0 wherever 1 was chosen and 3 was not, and what layer 1 chooses then."""
    first = np.where((made[0] == 1) & ~(made[0] == 3).any(axis=1, keepdims=True), 3, made[0])
    walk = Reference(tied).walk(TOKENS[: made.shape[1]])
    walk.advance(first)
    _, second = walk.advance()
    assert second is not None
    return np.stack([first, second.experts])


def test_the_same_choices_need_no_following(tied: Checkpoint, references: References) -> None:
    choices = [made[:, :, ::-1] for made in own(references)]  # the order does not matter
    found = asked(tied, references, choices)
    assert (found.near, found.far) == ((), ())
    assert found.logits is not None
    np.testing.assert_array_equal(found.logits, references.logits_at(places(CASE, references.kept)[1]))


def test_a_tie_is_followed_in_its_own_row(tied: Checkpoint, references: References) -> None:
    choices = own(references)
    choices[1] = other_of_the_tie(tied, choices[1])
    found = asked(tied, references, choices)
    assert found.far == ()
    assert found.logits is not None
    np.testing.assert_allclose(found.logits, artifact(tied, choices), rtol=0, atol=2e-5)
    rows, positions = places(CASE, references.kept)
    plain = references.logits_at(positions)
    np.testing.assert_array_equal(found.logits[rows != 1], plain[rows != 1])
    assert np.abs(found.logits[rows == 1] - plain[rows == 1]).max() > 0.1  # which no budget would have let pass
    assert {choice.layer for choice in found.near} >= {0}
    first = next(choice for choice in found.near if choice.layer == 0)
    assert (3 in first.experts, 1 in first.instead_of, first.by) == (True, True, 0.0)


def test_a_choice_too_far_off_is_named(tied: Checkpoint, references: References) -> None:
    assert references.routing is not None
    choices = own(references)
    worst = np.argsort(references.routing.logits[1, 4])[:2]
    choices[2][1, 4] = worst
    found = asked(tied, references, choices)
    assert found.logits is None
    right = "{" + ", ".join(map(str, sorted(references.routing.experts[1, 4].tolist()))) + "}"
    wrong = "{" + ", ".join(map(str, sorted(worst.tolist()))) + "}"
    start = f"layer 1, position 4: chose experts {wrong} where the router's logits say {right}, by "
    assert [str(choice).startswith(start) for choice in found.far] == [True]


def test_an_expert_taken_twice_is_too_far_off(tied: Checkpoint, references: References) -> None:
    choices = own(references)
    choices[0][1, 2] = choices[0][1, 2, 0]
    found = asked(tied, references, choices)
    assert (found.logits, len(found.far), found.far[0].by) == (None, 1, np.inf)


def test_the_float32_floors_follow_the_plain_run(tied: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """One flip between the two orders of sums would raise the floor, and with it every limit."""
    followed: list[object] = []
    run = Reference.run

    def watched(self: Reference, *args: object, **options: object) -> object:
        followed.append(options.get("follow"))
        return run(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Reference, "run", watched)
    found = run_references(tied, TOKENS, weights="fp16", bf16=True, progress=SilentProgress())
    assert found.routing is not None
    plain, split, bf16, original = followed
    assert plain is None
    assert original is None  # a changed choice is part of what quantisation costs
    for choices in (split, bf16):
        np.testing.assert_array_equal(choices, [found.routing.experts])
    assert found.router_floor is not None
    assert found.router_floor.shape == (2,)
    assert (found.router_floor > 0).all()
    assert (found.router_floor < 1e-4).all()


def test_without_experts_there_is_no_routing(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path / "dense", layers=1))
    found = run_references(checkpoint, TOKENS, weights="fp32", bf16=False, progress=SilentProgress())
    assert (found.routing, found.router_floor) == (None, None)
