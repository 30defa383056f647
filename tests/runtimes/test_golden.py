"""The golden replay: what it measures, what it judges, and that a device that is a little wrong fails."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from alize.errors import ArtifactError
from alize.runtimes.fake import FakeRunner
from alize.runtimes.golden import Budget, Case, Figures, judge, measure, read_golden, write_golden
from alize.runtimes.session import Session
from tests.runtimes.artifacts import EXACT, golden_cases, log_probs
from tests.runtimes.backends import UNIFORM, VOCABULARY, model_info


def session(windows: tuple[int, ...] = UNIFORM, *, chunk: int = 5, runner: type[FakeRunner] = FakeRunner) -> Session:
    return Session(runner(windows, VOCABULARY, batch=1), model_info(windows), batch=1, chunk=chunk, slack=chunk + 2)


def figures(*, kl: Any = 0.0, error: Any = 0.0, gap: Any = 0.0, size: int = 10) -> list[Figures]:
    return [Figures(*(np.broadcast_to(np.asarray(value, np.float64), size) for value in (kl, error, gap)))]


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_the_right_model_passes(tmp_path: Path, chunk: int) -> None:
    write_golden(tmp_path / "golden.safetensors", golden_cases(), EXACT)
    budget, cases = read_golden(tmp_path / "golden.safetensors")
    assert budget == EXACT
    with session(chunk=chunk) as one:
        verdict = judge(measure(one, cases), budget)
    assert verdict.passed, verdict.failures
    assert verdict.figures["positions"] == sum(len(case.positions) for case in golden_cases())
    assert verdict.figures["top1"] == 1


@pytest.mark.parametrize("windows", [(5, 4), (6, 5), (0, 0)])
def test_another_window_fails(windows: tuple[int, ...]) -> None:
    with session(windows) as one:
        verdict = judge(measure(one, iter(golden_cases())), EXACT)
    assert not verdict.passed
    assert any("max_log_prob_error" in failure for failure in verdict.failures)


class Drifting(FakeRunner):
    """Logits off by a hair, or no numbers."""

    def step(self, *arguments: Any) -> Any:
        return self.change(super().step(*arguments))

    change: Callable[[Any], Any] = staticmethod(lambda logits: logits)


def test_a_small_error_is_measured_as_it_is() -> None:
    class Off(Drifting):
        change = staticmethod(lambda logits: logits + np.eye(1, VOCABULARY, dtype=np.float32) * np.float32(0.01))

    case = golden_cases()[1]
    with session(runner=Off) as one:
        found = measure(one, iter([case]))[0]
    expected = case.log_probs.astype(np.float64)
    shifted = log_probs((expected + np.eye(1, VOCABULARY) * 0.01).astype(np.float32)).astype(np.float64)
    np.testing.assert_allclose(found.kl, (np.exp(expected) * (expected - shifted)).sum(axis=-1), atol=1e-7)
    np.testing.assert_allclose(found.error, np.abs(expected - shifted).max(axis=-1), atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_numbers_fail(bad: float) -> None:
    class Broken(Drifting):
        change = staticmethod(lambda logits: np.where(np.arange(VOCABULARY) == 3, np.float32(bad), logits))

    with session(runner=Broken) as one:
        verdict = judge(measure(one, iter(golden_cases())), EXACT)
    assert not verdict.passed
    assert np.isfinite(list(verdict.figures.values())).all()


def test_the_decode_path_is_replayed_too() -> None:
    """A device that is wrong only when one token is appended."""

    class BadDecode(FakeRunner):
        def step(self, *arguments: Any) -> Any:
            return super().step(*arguments) + (np.arange(VOCABULARY) % 2 if arguments[0].shape[1] == 1 else 0)

    with session(runner=BadDecode, chunk=64) as one:
        assert not judge(measure(one, iter(golden_cases()[2:])), EXACT).passed


def test_near_ties_are_told_from_disagreements() -> None:
    budget = Budget(kl=1.0, max_log_prob_error=0.1)
    gaps = np.array([0.0, 0.15, 0.2, 0.0, 0.0])
    verdict = judge(figures(gap=gaps, error=0.1, size=5), budget)
    assert verdict.passed
    assert verdict.figures["near_ties"] == 2
    verdict = judge(figures(gap=np.array([0.0, 0.15, 0.21, 0.0, 0.0]), error=0.1, size=5), budget)
    assert verdict.figures["top1"] == pytest.approx(0.8)
    assert verdict.failures == ("top-1 agreement 0.8000 is under 1.0000",)
    assert judge(figures(gap=gaps, size=5), Budget(kl=1.0, max_log_prob_error=0.1, near_tie=0.16, top1=0.8)).passed


@pytest.mark.parametrize("field", ["kl", "error"])
@pytest.mark.parametrize("value", [0.02, np.nan, np.inf])
def test_one_bad_position_fails(field: str, value: float) -> None:
    columns: dict[str, Any] = {field: np.zeros(10)}
    columns[field][7] = value
    budget = Budget(kl=0.01, max_log_prob_error=0.01)
    assert judge(figures(), budget).passed
    assert not judge(figures(**columns), budget).passed


def test_nothing_compared_is_no_pass() -> None:
    assert "nothing was compared" in judge([], EXACT).failures
    assert not judge(figures(size=0), EXACT).passed


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"budget": "{}"},
        {"budget": json.dumps({"kl": 1})},
        {"budget": json.dumps({"kl": 1, "max_log_prob_error": 1, "unknown": 1})},
        {"budget": json.dumps({"kl": "x", "max_log_prob_error": 1})},
        {"budget": "[]"},
        {"budget": "{"},
    ],
    ids=str,
)
def test_a_budget_that_makes_no_sense_is_refused(tmp_path: Path, metadata: dict[str, str]) -> None:
    case = golden_cases()[0]
    tensors: dict[str, Any] = {"prompt.0": case.prompt, "positions.0": case.positions, "log_probs.0": case.log_probs}
    safetensors.numpy.save_file(tensors, tmp_path / "golden.safetensors", metadata=metadata)
    with pytest.raises(ArtifactError, match="no usable budget"):
        read_golden(tmp_path / "golden.safetensors")


@pytest.mark.parametrize("names", [[], ["prompt.0"], ["prompt.0", "positions.0", "log_probs.1"]], ids=str)
def test_missing_parts_are_refused(tmp_path: Path, names: list[str]) -> None:
    budget = {"budget": json.dumps({"kl": 1, "max_log_prob_error": 1})}
    safetensors.numpy.save_file({name: np.zeros(1) for name in names}, tmp_path / "golden.safetensors", metadata=budget)
    with pytest.raises(ArtifactError, match="does not hold prompt, positions and log_probs"):
        read_golden(tmp_path / "golden.safetensors")


def test_no_golden_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_golden(tmp_path / "golden.safetensors")
    (tmp_path / "golden.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_golden(tmp_path / "golden.safetensors")


def test_long_prompts_hold_one_chunk_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    append = Session.append

    def watched(self: Session, tokens: Any, **options: Any) -> Any:
        logits = append(self, tokens, **options)
        kept.append(logits.shape[1])
        return logits

    monkeypatch.setattr(Session, "append", watched)
    prompt = np.zeros(200, np.int64)
    with session(chunk=16) as one:
        measure(one, iter([Case(prompt, np.array([0, 199]), np.zeros((2, VOCABULARY), np.float32))]))
    assert kept == [16] + [1] * (len(kept) - 1)
