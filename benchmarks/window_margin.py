"""How far does an off-by-one window stand out? Prints, as JSON, what compile fidelity measures for windows W-1, W and W+1.

    python -m benchmarks.window_margin CHECKPOINT [--target openvino]        from the repository's root

Each window is lowered as a faulty pass would lower it and measured in the engine's accuracy mode on the cases of a build.
"times_floor" is the largest logit error as a multiple of the float32 floor: compile fidelity fails above `fidelity_factor`.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from alize.compilers import COMPILERS, compiler_for
from alize.drafting import draft_manifest, stored_as
from alize.models.checkpoint import Checkpoint
from alize.progress import SilentProgress
from alize.runtimes.registry import backend_module
from alize.validate.cases import make_plan
from alize.validate.drive import run_case
from alize.validate.judge import Budget, fidelity_limit
from alize.validate.measure import Figures, measure
from alize.validate.prompts import validation_tokens
from alize.validate.references import References, run_references
from tests.validate.tampering import lower, window_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a checkpoint whose layers have a sliding window")
    parser.add_argument("--target", choices=sorted(COMPILERS), action="append", help="default: every target")
    options = parser.parse_args()
    checkpoint = Checkpoint.open(options.checkpoint)
    print(json.dumps(compare(checkpoint, options.target or sorted(COMPILERS)), indent=2))


def compare(checkpoint: Checkpoint, targets: list[str]) -> dict[str, Any]:
    """The floors, the limit, and the figures of each target and window."""
    weights = stored_as(checkpoint)
    info = draft_manifest(checkpoint, compiler_for(targets[0]), device="cpu", weights=weights).model
    plan = make_plan(info, seconds_a_token=0.0, budget_seconds=1.0)
    tokens = validation_tokens(checkpoint.folder, info, plan.length)
    references = run_references(checkpoint, tokens, weights=weights, bf16=True, progress=SilentProgress())
    assert references.floor_bf16 is not None
    found: dict[str, Any] = {
        "window": max(info.windows),
        "weights": weights,
        "tokens": plan.length,
        "float32_floor": _figures(references.floor, references),
        "bfloat16_floor": _figures(references.floor_bf16, references),
        "fidelity_factor": Budget().fidelity_factor,
        "logit_error_limit": _round(fidelity_limit(references.floor, Budget())),
        "targets": {},
    }
    for target in targets:
        changes = {"W-1": -1, "W": 0, "W+1": 1}
        found["targets"][target] = {
            name: _measure(checkpoint, target, weights, change, references, tokens) for name, change in changes.items()
        }
    return found


def _measure(
    checkpoint: Checkpoint, target: str, weights: str, change: int, references: References, tokens: np.ndarray[Any, Any]
) -> dict[str, Any]:
    """Figures of every case of the artifact whose windows are `change` off, by the case's name."""
    compiler = compiler_for(target)
    draft = draft_manifest(checkpoint, compiler, device="cpu", weights=weights)
    plan = make_plan(draft.model, seconds_a_token=0.0, budget_seconds=1.0)
    with tempfile.TemporaryDirectory(prefix="alize-margin-") as scratch:
        folder = Path(scratch) / "artifact"
        seen = lower(checkpoint, target, folder, window_of(lambda window: window + change), weights=weights)
        engine = backend_module(target).open(folder, draft, "cpu", dict(compiler.accuracy))
        cases = {}
        for case in plan.cases:
            positions, logits = run_case(engine, draft.model, case, tokens, references.kept)
            cases[case.name] = _figures(measure(references.logits_at(positions), logits, positions), references)
        engine.close()
    return {"structure_check": seen, "cases": cases}


def _figures(figures: Figures, references: References) -> dict[str, Any]:
    floor = references.floor.error.max()
    over = figures.error > fidelity_limit(references.floor, Budget())
    return {
        "positions": len(figures.positions),
        "logit_error_max": _round(figures.error.max()),
        "times_floor": _round(figures.error.max() / floor),
        "kl_mean": _round(figures.kl.mean()),
        "kl_max": _round(figures.kl.max()),
        "positions_over_limit": int(over.sum()),
        "first_over_limit": int(figures.positions[over][0]) if over.any() else None,
        "least_over_limit_times_floor": _round(figures.error[over].min() / floor) if over.any() else None,
        "top1_changed": int((~figures.top1).sum()),
        "top1_changed_beyond_near_ties": int((~figures.top1 & ~figures.near_tie).sum()),
    }


def _round(value: float) -> float:
    return float(f"{value:.3g}")


if __name__ == "__main__":
    main()
