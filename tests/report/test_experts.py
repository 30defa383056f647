"""The picture of the experts: a cell each, told apart by how it was run, and the notes of a case that followed a near-tie."""

from dataclasses import replace

import numpy as np
import pytest

from alize.artifact import Manifest
from alize.report import render
from alize.report.experts import expert_plot, expert_summary
from alize.validate.coverage import Coverage
from alize.validate.evidence import Evidence
from tests.report import samples
from tests.report.conftest import Page, Read

LAYERS, EXPERTS = 4, 8
NOTE = "near-tie followed: layer 3, position 17: chose experts {1, 4} where the router's logits say {1, 2}, by 2e-07"


def coverage(layers: int = LAYERS, experts: int = EXPERTS) -> Coverage:
    """Expert 5 of layer 0 was forced, the last of the last layer can't be reached."""
    counts = np.random.default_rng(0).poisson(40, (layers, experts)) + 1
    counts[0, 5 % experts] = counts[-1, -1] = 0
    forced, unreachable, wrong = (np.zeros((layers, experts), bool) for _ in range(3))
    forced[0, 5 % experts] = unreachable[-1, -1] = True
    return Coverage(counts, forced, unreachable, wrong)


def page_of(read: Read, evidence: Evidence) -> Page:
    manifest: Manifest = samples.manifest(evidence, windows=(32,) * LAYERS)
    manifest = replace(manifest, model=replace(manifest.model, experts=EXPERTS, experts_per_token=2))
    return read(render(manifest, evidence, samples.SIZES))


def test_every_expert_has_a_cell_that_says_what_became_of_it(read: Read) -> None:
    page = page_of(read, replace(samples.good(), coverage=coverage()))
    label = "32 experts in 4 layers: 30 chosen by the tokens, 1 forced by name and 1 that no hidden state can reach"
    (figure,) = (svg for svg in page.all("svg") if svg.get("aria-label") == label)
    said = [title.text or "" for title in figure.iter("title")]
    assert {text.partition(":")[0] for text in said} == {f"layer {i}, expert {e}" for i in range(LAYERS) for e in range(EXPERTS)}
    assert "layer 0, expert 5: no token chose it, run by name in the cut-out layer" in said
    assert "layer 3, expert 7: no token chose it, no hidden state puts it among the chosen" in said
    assert f"layer 2, expert 1: chosen by {coverage().counts[2, 1]} tokens" in said
    numbers = [text.text for text in figure.iter("text")]
    assert all(str(count) in numbers for count in coverage().counts[coverage().counts > 0].tolist())
    assert "Each token goes through 2 experts of a layer" in page.text


def test_a_wrong_expert_is_red(read: Read) -> None:
    evidence = replace(samples.good(), coverage=coverage())
    assert evidence.coverage is not None
    assert "var(--fail)" not in expert_plot(evidence.coverage)
    evidence.coverage.wrong[2, 3] = True
    page = page_of(read, evidence)
    touched = {title.text: group for svg in page.all("svg") for group in svg.iter("g") for title in group.findall("title")}
    group = touched[f"layer 2, expert 3: chosen by {evidence.coverage.counts[2, 3]} tokens, wrong"]
    assert "var(--fail)" in group.find("path").get("style", "")  # type: ignore[union-attr]
    assert expert_summary(evidence.coverage).endswith(" and 1 wrong")


def test_a_model_without_experts_has_no_picture(read: Read) -> None:
    page = page_of(read, samples.good())
    assert "Every expert of every layer" not in page.text
    assert len(page.all("svg")) == 3


@pytest.mark.parametrize(("layers", "experts"), [(1, 2), (32, 8), (80, 16), (61, 256)])
def test_every_size_is_drawn_within_the_page(layers: int, experts: int) -> None:
    drawing = expert_plot(coverage(layers, experts))
    width, height = (float(size) for size in drawing.split('viewBox="0 0 ')[1].split('"')[0].split())
    assert width == 690
    assert height < 15 * experts + 60
    assert len(drawing) < 800 * layers * experts + 5000


def test_the_same_coverage_gives_the_same_picture() -> None:
    assert expert_plot(coverage()) == expert_plot(coverage())


def test_near_ties_that_were_followed_are_noted_below_their_case(read: Read) -> None:
    evidence = samples.good()
    noted = replace(evidence.cases[0], notes=(NOTE,) * 5)
    page = page_of(read, replace(evidence, cases=(noted, *evidence.cases[1:])))
    assert any(row == f"{NOTE}; {NOTE}; {NOTE}; and 2 more notes" for row in page.rows())
    assert any(row.startswith("W 32 ") and row.endswith("✓ pass") for row in page.rows())
