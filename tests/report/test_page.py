"""report.html: what it says, that it says it the same way every time, and that it fetches and runs nothing."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from alize.artifact import CaseResult
from alize.report import render
from alize.validate.evidence import CaseEvidence, Evidence
from alize.validate.measure import Figures
from tests.report import samples
from tests.report.conftest import Page, Read
from tests.report.samples import SIZES, manifest

HOSTILE = '$\\frac{$ </dd><script>alert("1")</script>&amp; <img src="https://example.com/x.png"> \x00\x1b[31m \ud800'
Sample = Callable[[], Evidence]


@pytest.fixture(scope="module")
def good(read: Read) -> Page:
    evidence = samples.good()
    return read(render(manifest(evidence), evidence, SIZES))


@pytest.fixture(scope="module")
def wrong(read: Read) -> Page:
    evidence = samples.wrong_window()
    return read(render(manifest(evidence), evidence, SIZES))


def test_verdict_target_and_versions_are_said(good: Page) -> None:
    start = "MistralForCausalLM compiled for onnxruntime on cpu, int8 weights (4 layers, window of 32 tokens in every layer)"
    assert good.text.startswith(f"{start} ✓ pass device-validated All 6 cases pass.")
    for said in ("someone/a-model", samples.COMMIT, "ab" * 32, "1.31.1", "group_query_attention", "32 (4 times)", "chunk = 512"):
        assert said in good.text
    assert "fused attention nodes 4" in good.text
    assert "Made again by alize build someone/a-model --target onnxruntime -o FOLDER" in good.text
    assert "What is wrong" not in good.text


def test_what_the_weights_went_through_is_said(read: Read) -> None:
    evidence = samples.good()
    sealed = manifest(evidence)
    source = replace(sealed.source, quantised="awq-int4-g64", adapter="cd" * 32)
    text = read(render(replace(sealed, source=source), evidence, SIZES)).text
    assert "its weights came as awq-int4-g64" in text and f"sha256 of the adapter merged {'cd' * 32}" in text


def test_every_case_has_its_row(good: Page) -> None:
    for case in samples.good().cases:
        figures = case.figures
        changed = int((~figures.top1).sum())
        ties = f"{changed} of {changed}" if changed else "–"
        row = rf"{case.name} {len(figures.positions)} \S+ \S+ \S+ [\d.]+ % {ties} [\d.< ]+ % ✓ pass"
        assert any(re.fullmatch(row, found) for found in good.rows()), row
    assert any(row.startswith("float32 floor 67") for row in good.rows())
    assert any(row.startswith("bfloat16 floor 67") for row in good.rows())


def test_sizes_budget_and_continuation_are_shown(good: Page) -> None:
    assert [row.split()[0] for row in good.rows()[-3:]] == ["model.onnx.data", "tokenizer.json", "model.onnx"]
    assert "Files, 271 MB" in good.text
    assert "fidelity factor 30" in good.text
    assert "prompt The capital of France is" in good.text
    assert "Paris." in good.text


def test_the_three_questions_are_explained_first(good: Page) -> None:
    heads = [element.text for element in good.all("h2")]
    plots = ["Largest logit error along positions", "At the edges of the window", "KL along positions"]
    assert heads[:5] == ["How to read this page", *plots, "Cases"]
    assert [element.text for element in good.all("h3")][:3] == ["compile fidelity", "quantisation loss", "runtime loss"]


def test_figures_have_alternative_text_and_names_to_point_at(good: Page) -> None:
    labels = [element.get("aria-label") or "" for element in good.all("svg")]
    assert len(labels) == 3
    assert labels[0].startswith("Largest logit error along positions, logarithmic: 4 cases, 0 failing; limit ")
    assert all(element.get("role") == "img" for element in good.all("svg"))
    touched = [title.text or "" for svg in good.all("svg") for title in svg.iter("title")]
    for case in samples.good().cases:
        assert any(said.startswith(f"{case.name} passes: worst ") for said in touched)


def test_a_mix_is_drawn_with_what_was_measured_of_it(read: Read) -> None:
    evidence = samples.good()
    page = read(render(manifest(evidence), evidence, SIZES, samples.mix()))
    (drawn,) = [svg for svg in page.all("svg") if "along bits a weight" in (svg.get("aria-label") or "")]
    assert (drawn.get("aria-label") or "").startswith(
        "Expected KL along bits a weight, from 0.41 in int4 at 4.25 bits to 0.01 in int8 at 8.03; "
        "this mix: 0.11 at 5.10 bits, measured 0.00"
    )
    words = {"".join(text.itertext()) for text in drawn.iter("text")}
    assert {"5.10 bits", "expected 0.11", "all in int4", "all in int8"} <= words
    assert any(text.startswith("measured 0.00") for text in words)
    assert "went to int8 where it saves most KL: 2 of v_proj and 1 of down_proj, in 2 layers; the rest is in int4." in page.text
    assert "on the text built-in." in page.text


def test_a_failure_says_first_what_is_wrong(wrong: Page) -> None:
    assert "✕ fail device-validated 3 of 6 cases fail." in wrong.text
    assert wrong.text.index("What is wrong the window is 33, the model's is 32") < wrong.text.index("How to read this page")
    assert sum("✕ fail" in row for row in wrong.rows()) == 3
    assert any("first at position 32" in row for row in wrong.rows())
    assert "manifest.json beside this page" not in wrong.text  # nothing was sealed


def test_many_findings_are_folded_away(read: Read) -> None:
    evidence = replace(samples.good(), findings=tuple(f"finding {index}" for index in range(20)))
    page = read(render(manifest(evidence, verdict="fail"), evidence, SIZES))
    assert "All 6 cases pass. Something else was found to be wrong." in page.text
    assert page.text.index("finding 4") < page.text.index("15 more findings") < page.text.index("finding 5")


@pytest.mark.parametrize("sample", [samples.good, samples.wrong_window, samples.broken])
def test_nothing_is_fetched_and_nothing_runs(sample: Sample, read: Read) -> None:
    evidence = replace(sample(), continuation={"prompt": HOSTILE})
    page = read(render(manifest(evidence), evidence, SIZES))
    assert page.attributes("src") == []
    assert {element.tag for element in page.root.iter()} & {"script", "link", "img", "iframe", "object", "base", "form"} == set()
    assert not [name for element in page.root.iter() for name in element.attrib if name.startswith("on")]
    ids = page.attributes("id")
    assert {href.removeprefix("#") for href in page.attributes("href")} <= set(ids)
    assert set(re.findall(r"url\(#?([^)]*)\)", page.html)) <= set(ids)
    assert max(Counter(ids).values()) == 1
    assert "@import" not in page.html
    assert re.findall("https?:", page.html.replace("https://example.com/x.png", "")) == []
    assert "default-src 'none'" in page.attributes("content")[0]


@pytest.mark.parametrize("name", ["good", "wrong_window", "broken"])
def test_two_processes_write_the_same_bytes(name: str, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.grid: True\nsvg.fonttype: path\n")
    program = str(Path(samples.__file__).resolve())
    other = {"PYTHONHASHSEED": "7", "TZ": "Asia/Ulaanbaatar", "MPLCONFIGDIR": str(tmp_path), "MPLBACKEND": "pdf"}
    pages = [
        subprocess.run([sys.executable, program, name], env=os.environ | env, cwd=cwd, capture_output=True, check=True).stdout
        for env, cwd in (({"PYTHONHASHSEED": "1"}, Path.cwd()), (other, tmp_path))
    ]
    assert pages[0].startswith(b"<!DOCTYPE html>")
    assert pages[0] == pages[1]


def test_matplotlib_is_left_as_it_was() -> None:
    with matplotlib.rc_context({"font.size": 31, "svg.fonttype": "path"}):
        before = matplotlib.rcParams.copy()
        evidence = samples.good()
        render(manifest(evidence), evidence, SIZES)
        assert matplotlib.rcParams.copy() == before


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_is_shown_as_such(value: float, read: Read) -> None:
    evidence = samples.broken()
    for figures in (evidence.cases[0].figures.kl, evidence.cases[0].figures.error):
        figures[50:] = value
    page = read(render(manifest(evidence), evidence, SIZES))
    assert "1 of 1 case fails." in page.text
    assert any(re.fullmatch(r"one append 67 ∞ ∞ ∞ [\d.]+ % 2 of 19 ∞ × ✕ fail", row) for row in page.rows())
    drawn = [path.attrib["d"] for svg in page.all("svg") for path in svg.iter("path")]
    assert not [path for path in drawn if re.search("nan|inf", path)]
    colour = "var(--fail)"
    used = [element for svg in page.all("svg")[:1] for element in svg.iter("use") if colour in element.get("style", "")]
    assert len(used) == 17  # a triangle for each of the positions 50..66


def test_an_empty_validation_has_a_page(read: Read) -> None:
    evidence = Evidence((), None, None, left_out=("everything: the validation budget is 0 s",))
    page = read(render(manifest(evidence, verdict="partial"), evidence, {}))
    assert "◐ partial" in page.text
    assert "No case was measured. Too little was measured for a verdict: the time budget left out 1 part." in page.text
    assert page.text.count("everything: the validation budget is 0 s") == 2
    assert page.all("svg") == []
    assert "Files" not in page.text


def test_a_case_without_positions_has_a_row(read: Read) -> None:
    nothing = np.empty(0)
    figures = Figures(nothing.astype(np.int64), nothing, nothing, nothing > 0, nothing > 0)
    case = CaseEvidence("nothing", "compile fidelity", figures, 1.0)
    page = read(render(manifest(Evidence((), None, None)), Evidence((case,), None, None), {}))
    assert any(row.startswith("nothing – – – – – –") for row in page.rows())


@pytest.mark.parametrize("windows", [(0, 0), (32, 0, 16, 0), (4,)], ids=str)
@pytest.mark.parametrize("floors", [True, False])
def test_every_kind_of_window_is_drawn(windows: tuple[int, ...], floors: bool, read: Read) -> None:
    evidence = samples.good()
    if not floors:
        evidence = replace(evidence, floor=None, floor_bf16=None)
    page = read(render(manifest(evidence, windows=windows), evidence, SIZES))
    assert ("At the edges of the window" in page.text) == any(windows)
    assert ("float32 floor 67" in page.text) == floors
    assert len(page.all("svg")) == (3 if any(windows) else 2)


def test_one_case_without_edges_fails_in_a_close_up(read: Read) -> None:
    evidence = samples.broken()
    page = read(render(manifest(evidence, windows=(0, 0)), evidence, SIZES))
    assert "Position by position" in page.text
    assert "50" in [text.text for text in page.all("svg")[1].iter("text")]  # the first position that is off


def test_edges_of_the_window_are_named_in_the_figures(wrong: Page) -> None:
    error, zooms, _ = wrong.all("svg")
    assert {"W", "2W"} <= {text.text for text in error.iter("text")}
    assert "32 = W" in [text.text for text in zooms.iter("text")]
    assert "64 = 2W" in [text.text for text in zooms.iter("text")]
    dots = Counter(re.sub(".*(fail|fidelity).*", r"\1", element.get("style", "")) for element in zooms.iter("use"))
    assert dots["fail"] == (8 + 9) + 4 + (3 + 8 + 9)  # from W on: one append, decode across the edge, unequal batch


def test_foreign_text_is_only_text(read: Read) -> None:
    evidence = samples.good()
    case = replace(evidence.cases[0], name=HOSTILE, reasons=(HOSTILE,))
    evidence = replace(evidence, cases=(case,), findings=(HOSTILE,), left_out=(HOSTILE,), continuation={HOSTILE: HOSTILE})
    sample = manifest(Evidence((), None, None), verdict="fail")
    target = replace(sample.target, versions={HOSTILE: HOSTILE}, passes=(HOSTILE,), structure={HOSTILE: HOSTILE})
    page = read(render(replace(sample, target=target, rebuild=HOSTILE), evidence, {HOSTILE: 1}))
    shown = " ".join(HOSTILE.replace("\x00", "�").replace("\x1b", "�").replace("\ud800", "�").split())
    assert page.text.count(shown) >= 12
    assert all(svg.get("aria-label") for svg in page.all("svg"))


def test_the_manifest_is_believed_too(read: Read) -> None:
    """A case passes where evidence and manifest both say so; a case that only the manifest has is listed."""
    evidence = samples.good()
    sample = manifest(evidence)
    one, *others = sample.validation.cases
    other = CaseResult("told by the manifest", "runtime loss", True, {"positions": 5.0, "kl_mean": 0.25})
    cases = (replace(one, passed=False), *others, other)
    page = read(render(replace(sample, validation=replace(sample.validation, cases=cases)), evidence, SIZES))
    assert any(row.startswith("W 32 ") and row.endswith("✕ fail") for row in page.rows())
    assert any(re.fullmatch("told by the manifest 5 0.25 – – – – – ✓ pass", row) for row in page.rows())
    assert "float32 floor kl max" not in page.text  # the floor has its own row already


def test_a_long_window_and_fifteen_cases_stay_small(read: Read) -> None:
    evidence = samples.good(window=4096)
    many = [replace(case, name=f"{case.name} {index}") for index in range(3) for case in evidence.cases]
    evidence = replace(evidence, cases=tuple(many[:15]))
    html = render(manifest(evidence, windows=(4096,) * 32), evidence, SIZES)
    assert len(html.encode()) < 1_000_000
    assert "Each point is the largest of 12 neighbouring positions." in read(html).text
