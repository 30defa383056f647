"""Made-up validations: what a good artifact, one with a wrong window and one that gives NaN look like. Run as a program it
prints the page of one of them."""

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from alize.artifact import CaseResult, Configuration, Manifest, ModelInfo, Source, Target, Validation
from alize.mixing import Mix
from alize.optimize.quantisation import Quantisation
from alize.report import render
from alize.validate.evidence import CaseEvidence, Evidence
from alize.validate.judge import Budget, fidelity_limit, judge_fidelity, judge_loss
from alize.validate.measure import Figures

WINDOW = 32
LAYERS = 4
COMMIT = "c0ffee" * 6
SIZES = {"model.onnx": 41_000, "model.onnx.data": 269_060_552, "tokenizer.json": 2_104_556}
CONTINUATION = {"prompt": "The capital of France is", "continuation": " Paris."}
_BUDGET = Budget()


def figures(positions: Sequence[int] | NDArray[np.int64], error: float, *, changed: int = 0, seed: int = 0) -> Figures:
    """Errors around `error`, KL around its square; the first `changed` positions have another most probable token, a near-tie."""
    count = len(positions)
    noise = np.exp(np.random.default_rng(seed).normal(0, 0.4, (2, count)))
    top1 = np.arange(count) >= changed
    return Figures(np.asarray(positions, np.int64), error**2 * noise[0], error * noise[1], top1, ~top1)


def fidelity(name: str, measured: Figures, limit: float) -> CaseEvidence:
    return CaseEvidence(name, "compile fidelity", measured, limit, tuple(judge_fidelity(measured, limit)))


def loss(name: str, question: str, measured: Figures) -> CaseEvidence:
    mean, worst = _BUDGET.quantisation_kl, _BUDGET.quantisation_kl_max
    if question == "runtime loss":
        mean, worst = _BUDGET.runtime_kl, _BUDGET.runtime_kl_max
    return CaseEvidence(name, question, measured, mean, tuple(judge_loss(measured, mean=mean, worst=worst)))


def good(*, window: int = WINDOW) -> Evidence:
    """Four compile-fidelity cases, one of each loss."""
    full = np.arange(2 * window + 3)
    rows = np.concatenate([full[: window + 3], full[:7], full])
    floor = figures(full, 2e-5, seed=1)
    limit = fidelity_limit(floor, _BUDGET)
    cases = (
        fidelity("W", figures(full[:window], 3e-5, seed=2), limit),
        fidelity("one append", figures(full, 3e-5, changed=2, seed=3), limit),
        fidelity("decode across the edge", figures(full[window - 2 : window + 4], 3e-5, seed=4), limit),
        fidelity("unequal batch", figures(rows, 3e-5, seed=5), limit),
        loss("weights in int8", "quantisation loss", figures(full, 0.05, changed=3, seed=6)),
        loss("one append", "runtime loss", figures(full, 0.01, seed=7)),
    )
    return Evidence(cases, floor, figures(full, 0.1, seed=8), continuation=dict(CONTINUATION))


def wrong_window() -> Evidence:
    """Everything from position W on is off: the compiled window is W+1."""
    evidence = good()
    for case in evidence.cases[:4]:
        off = case.figures.positions >= WINDOW
        case.figures.error[off] = 2.0
        case.figures.kl[off] = 0.3
    judged = [fidelity(case.name, case.figures, case.limit) for case in evidence.cases[:4]]
    return replace(evidence, cases=(*judged, *evidence.cases[4:]), findings=("the window is 33, the model's is 32",))


def broken() -> Evidence:
    """The artifact gives NaN from position 50 on, which is measured as infinite."""
    evidence = good()
    case = evidence.cases[1]
    case.figures.error[50:] = case.figures.kl[50:] = np.inf
    case.figures.top1[50:] = case.figures.near_tie[50:] = False
    return replace(evidence, cases=(fidelity(case.name, case.figures, case.limit),))


def mix() -> Mix:
    """Of 5 bits."""
    wide = frozenset({"layers.0.v_proj", "layers.3.v_proj", "layers.3.down_proj"})
    curve = ((4.25, 0.41), (4.6, 0.2), (5.1, 0.11), (6.5, 0.05), (8.03, 0.01))
    return Mix(Quantisation(4, 64, True, 5.2, wide), 5.1, 0.11, curve, "built-in, sha256 ab")


def manifest(evidence: Evidence, *, windows: Sequence[int] = (WINDOW,) * LAYERS, verdict: str = "") -> Manifest:
    found = "fail" if any(case.reasons for case in evidence.cases) else "pass"
    results = tuple(
        CaseResult(case.name, case.question, not case.reasons, case.figures.finite_summary())  # type: ignore[arg-type]
        for case in evidence.cases
    )
    return Manifest(
        alize="0.1.0",
        source=Source(
            "hub", "someone/a-model", "c0ffee" * 6, "ab" * 32, "MistralForCausalLM", "mistral", {"rope_theta": 10000.0}
        ),
        model=ModelInfo(len(windows), 4, 2, 8, 32, 512, tuple(windows), 4096, 1, (2,), 0, 0),
        target=Target(
            backend="onnxruntime",
            device="cpu",
            weights="int8",
            options={},
            versions={"onnxruntime": "1.31.1"},
            passes=("store_weights", "group_query_attention"),
            structure={"attention": "GroupQueryAttention", "fused_attention_nodes": LAYERS, "windows": list(windows)},
        ),
        configurations=(Configuration("default", {"chunk": 512}),),
        validation=Validation(
            level="device-validated",
            verdict=verdict or found,  # type: ignore[arg-type]
            left_out=(),
            budget=_BUDGET.as_dict(),
            cases=results,
            figures={"float32 floor": {"kl_max": 1e-9}} if evidence.floor else {},
        ),
        rebuild="alize build someone/a-model --target onnxruntime -o FOLDER",
    )


if __name__ == "__main__":
    sample = {"good": good, "wrong_window": wrong_window, "broken": broken}[sys.argv[1]]()
    sys.stdout.buffer.write(render(manifest(sample), sample, SIZES).encode())
