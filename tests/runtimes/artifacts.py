"""Sealed artifacts of the fake back-end, right and wrong ones: what load is tried on."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import CaseResult, Configuration, Manifest, Source, Target, Validation
from alize.artifact.seal import Building
from alize.runtimes.fake import FakeRunner
from alize.runtimes.golden import GOLDEN, Budget, Case, write_golden
from alize.runtimes.session import Session
from tests.runtimes.backends import UNIFORM, VOCABULARY, model_info
from tests.runtimes.tokenizer_folders import byte_level

EXACT = Budget(kl=1e-6, max_log_prob_error=1e-4)


def log_probs(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float32] = (shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))).astype(np.float32)
    return result


def golden_cases(windows: tuple[int, ...] = UNIFORM) -> list[Case]:
    """Three prompts, the reference being the fake model itself, with these windows."""
    cases = []
    for seed, size in enumerate((1, 12, 40)):
        prompt = np.random.default_rng(seed).integers(0, VOCABULARY, size)
        positions = np.unique(np.array([0, size // 3, size // 2, size - 1]))
        runner = FakeRunner(windows, VOCABULARY, batch=1)
        with Session(runner, model_info(windows), batch=1, chunk=64, slack=64) as session:
            logits = session.append(prompt[None], keep=0)[0]
        cases.append(Case(prompt, positions, log_probs(logits[positions])))
    return cases


def manifest(**changes: Any) -> Manifest:
    """Of a fake model that passed; fields of it or of its target, model or validation can be changed by name."""
    whole = Manifest(
        alize="0.1.0",
        source=Source("folder", None, None, "0" * 64, "FakeForCausalLM", "fake", {}),
        model=model_info(UNIFORM),
        target=Target("fake", "cpu", "fp32", {}, {}, (), {}),
        configurations=(Configuration("default", {"chunk": 16, "slack": 16}), Configuration("small", {"chunk": 4, "slack": 6})),
        validation=Validation(
            "device-validated", "pass", (), {"kl": 1e-6}, (CaseResult("W-1", "compile fidelity", True, {"kl": 0.0}),), {}
        ),
        rebuild="alize build SOURCE --target fake",
    )
    for part in ("target", "validation"):
        names = {field.name for field in dataclasses.fields(getattr(whole, part))} & changes.keys()
        inner = dataclasses.replace(getattr(whole, part), **{name: changes.pop(name) for name in names})
        whole = dataclasses.replace(whole, **{part: inner})
    return dataclasses.replace(whole, **changes)


def seal(
    folder: Path, *, windows: tuple[int, ...] = UNIFORM, budget: Budget = EXACT, golden: bool = True, **changes: Any
) -> Manifest:
    """An artifact at `folder` whose golden file was made with `windows`: others than (5, 5) make it wrong."""
    with Building(folder) as building:
        byte_level(building.folder)
        if golden:
            write_golden(building.folder / GOLDEN, golden_cases(windows), budget)
        return building.seal(manifest(**changes))
