"""An artifact run a few layers at a time says, to the bit, what it says at once: on both targets, for every kind of cache."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from alize.artifact import Manifest
from alize.compilers import compiler_for
from alize.drafting import as_sliced, draft_manifest
from alize.export.hub import export_hub
from alize.models.checkpoint import Checkpoint
from alize.optimize.openvino_slices import Slices
from alize.progress import SilentProgress
from alize.runtimes.registry import backend_module
from alize.validate.cases import plan_for
from alize.validate.drive import chosen_experts, expert_taps, run_case
from alize.validate.judge import Budget
from alize.validate.prompts import validation_tokens
from alize.validate.run import Outcome, validate_folder
from alize.validate.slices import chosen_in_slices, even_slices, run_cases, spelt
from tests.tiny import KINDS, RUN_HERE, tiny_checkpoint
from tests.validate import tampering

CUTS: tuple[Slices, ...] = (((0, 1), (1, 3)), ((0, 1), (1, 2), (2, 3)))
kinds = pytest.mark.parametrize("kind", ["v0.1", "tied", "ministral", "mixtral"])
targets = pytest.mark.parametrize("target", RUN_HERE)

Lowered = Callable[[str, str], tuple[Path, Checkpoint, Manifest]]


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    root = tmp_path_factory.mktemp("lowered")

    @cache
    def make(kind: str, target: str) -> tuple[Path, Checkpoint, Manifest]:
        checkpoint = Checkpoint.open(tiny_checkpoint(root / f"{kind}-{target}-checkpoint", **KINDS[kind]))
        compiler, folder = compiler_for(target), root / f"{kind}-{target}"
        folder.mkdir()
        draft = draft_manifest(checkpoint, compiler, device="cpu", weights="fp32")
        compiler.lowering.lower(export_hub(checkpoint), folder, weights="fp32", options=draft.target.options)
        return folder, checkpoint, as_sliced(draft, compiler)

    return make


ONLY_WHOLE = ("paged_attention_nodes",)  # its paged form is run where all layers are


def asked(checkpoint: Checkpoint, draft: Manifest) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    plan = plan_for(checkpoint, draft.model, 1e9)
    return validation_tokens(checkpoint.folder, draft.model, plan.length), np.arange(plan.length)


@kinds
@targets
def test_every_case_gives_the_same_logits(kind: str, target: str, lowered: Lowered) -> None:
    folder, checkpoint, draft = lowered(kind, target)
    compiler, cases = compiler_for(target), plan_for(checkpoint, draft.model, 1e9).cases
    tokens, kept = asked(checkpoint, draft)
    for options in (dict(compiler.accuracy), draft.configurations[0].options):
        engine = backend_module(target).open(folder, draft, "cpu", options)
        whole = [run_case(engine, draft.model, case, tokens, kept) for case in cases]
        for slices in CUTS:
            open_slice = partial(compiler.slicer.open_slice, folder, draft.model, options)
            parts = run_cases(open_slice, slices, draft.model, cases, tokens, kept)
            for case, (positions, logits), (same, found) in zip(cases, whole, parts, strict=True):
                np.testing.assert_array_equal(same, positions)
                np.testing.assert_array_equal(found, logits, err_msg=f"{case.name}, {slices}, {options}")


@targets
def test_every_router_chooses_the_same(target: str, lowered: Lowered) -> None:
    folder, checkpoint, draft = lowered("mixtral", target)
    compiler, (tokens, _) = compiler_for(target), asked(checkpoint, draft)
    options = dict(compiler.accuracy)
    engine = backend_module(target).open(folder, draft, "cpu", options, expert_taps(draft.model))
    open_slice = partial(compiler.slicer.open_slice, folder, draft.model, options)
    for case in plan_for(checkpoint, draft.model, 1e9).cases:
        whole = chosen_experts(engine, draft.model, case, tokens)
        for row, found in zip(whole, chosen_in_slices(open_slice, CUTS[0], draft.model, case, tokens), strict=True):
            np.testing.assert_array_equal(found, row)


@kinds
@targets
def test_the_structure_is_seen_slice_by_slice(kind: str, target: str, lowered: Lowered) -> None:
    folder, _, draft = lowered(kind, target)
    check = compiler_for(target).lowering.check_structure
    whole = check(folder, draft.model, draft.target.options)
    for slices in CUTS:
        cut = check(folder, draft.model, draft.target.options, slices=slices)
        assert cut.pop("compiled_in_slices") == [[first, stop - 1] for first, stop in slices]
        assert cut == {name: found for name, found in whole.items() if name not in ONLY_WHOLE}


@targets
@pytest.mark.parametrize("kind", ["v0.1", "mixtral"])
def test_products_with_integers_are_seen_slice_by_slice(kind: str, target: str, lowered: Lowered, tmp_path: Path) -> None:
    _, checkpoint, draft = lowered(kind, target)
    lowering, options = compiler_for(target).lowering, draft.target.options
    lowering.lower(export_hub(checkpoint), tmp_path, weights="int4", options=options)
    whole = lowering.check_structure(tmp_path, draft.model, options, weights="int4")
    cut = lowering.check_structure(tmp_path, draft.model, options, weights="int4", slices=CUTS[1])
    assert whole["integer_products"]
    del cut["compiled_in_slices"]
    assert cut == {name: found for name, found in whole.items() if name not in ONLY_WHOLE}


def validated(folder: Path, checkpoint: Checkpoint, draft: Manifest, slices: Slices | None) -> Outcome:
    compiler = compiler_for(draft.target.backend)
    return validate_folder(
        folder, draft, checkpoint, compiler, budget=Budget(), budget_seconds=600, progress=SilentProgress(), slices=slices
    )


@targets
def test_the_verdict_is_the_same_and_says_how_it_was_found(target: str, lowered: Lowered) -> None:
    whole, cut = (validated(*lowered("v0.1", target), slices).validation for slices in (None, CUTS[0]))
    assert cut.verdict == whole.verdict == "pass"
    assert cut.cases == tuple(case for case in whole.cases if case.name != "greedy continuation")
    assert cut.figures == whole.figures
    assert cut.left_out == ("all layers at once and the greedy continuation: it ran in 2 slices of 1 to 2 layers",)


@targets
def test_a_wrong_artifact_fails_in_slices_too(target: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path / "checkpoint", window=12))
    tampering.lower(checkpoint, target, tmp_path / "out", tampering.swap_heads)
    draft = draft_manifest(checkpoint, compiler_for(target), device="cpu", weights="fp32")
    outcome = validated(tmp_path / "out", checkpoint, draft, CUTS[0])
    assert outcome.validation.verdict == "fail"
    assert outcome.evidence.findings == ("the first difference was not looked for: the artifact was run in slices of its layers",)


def test_slices_are_few_and_even() -> None:
    assert even_slices(32, 32) == ((0, 32),)
    assert even_slices(32, 31) == ((0, 16), (16, 32))
    assert even_slices(7, 3) == ((0, 2), (2, 4), (4, 7))
    assert even_slices(3, 1) == ((0, 1), (1, 2), (2, 3))
    for layers in range(1, 40):
        for most in range(1, layers + 1):
            sizes = [stop - first for first, stop in even_slices(layers, most)]
            assert (sum(sizes), len(sizes)) == (layers, -(-layers // most))
            assert max(sizes) <= most
            assert max(sizes) - min(sizes) <= 1
    assert spelt(((0, 1), (1, 3))) == "2 slices of 1 to 2 layers"
    assert spelt(even_slices(32, 31)) == "2 slices of 16 layers"
    assert spelt(even_slices(3, 1)) == "3 slices of 1 layer"
