"""Memory and time that building an engine for an NVIDIA GPU takes, against the weights that go into it. Needs no GPU.

    python -m benchmarks.engine_build WORK [--case SHAPE:LAYERS[:WEIGHTS]|FOLDER[:WEIGHTS]] ... [--sm 89] [--target tensorrt-rtx]

from the repository's root, in an environment with the package (ci/tensorrt-rtx makes one). A case is a shape of
make_checkpoint.py cut to so many layers, or the folder of a checkpoint. Each engine is built in a process of its own from a graph
that was lowered before: once without and once with the timing cache that the first build left. Result in
benchmarks/results/engine-build.json: bytes of the graph's weights and of the plan, seconds, the peak of anonymous memory beyond
what the process held before, that of mapped files, and both over the weights.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.make_checkpoint import SHAPES, write_checkpoint
from benchmarks.measuring import write_result

CASES = ("mistral-7b:1:fp16", "mistral-7b:2:fp16", "mistral-7b:2:int4", "mixtral-8x7b:1:int4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--case", action="append")
    parser.add_argument("--sm", type=int, default=89)
    parser.add_argument("--target", default="tensorrt-rtx")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)  # a graph's folder: build it, and print what it took
    options = parser.parse_args()
    if options.build is not None:
        print(json.dumps(built(options.build, options.target, options.sm)))
        return
    cases = {}
    for case in options.case or CASES:
        folder = options.work / "graph"
        lower(case, options.work, folder, options.target, options.sm)
        words = [str(options.work), "--build", str(folder), "--target", options.target, "--sm", str(options.sm)]
        state = os.environ | {"ALIZE_STATE_DIR": str(options.work / "state")}
        shutil.rmtree(options.work / "state", ignore_errors=True)
        for what in ("first", "with its timing cache"):
            said = subprocess.run(
                [sys.executable, "-m", "benchmarks.engine_build", *words], check=True, stdout=subprocess.PIPE, env=state
            )
            cases[f"{case.split('/')[-1]}, {what}"] = json.loads(said.stdout.splitlines()[-1])
        shutil.rmtree(folder)
    distributions = ("tensorrt-rtx-cu12-bindings",) if options.target == "tensorrt-rtx" else ("tensorrt",)
    write_result("engine-build", {"sm": options.sm, "package": {name: version(name) for name in distributions}, "cases": cases})


def lower(case: str, work: Path, folder: Path, target: str, sm: int) -> None:
    """Writes the case's graph into FOLDER, and builds no engine."""
    from unittest import mock

    from alize.compilers import compiler_for, lowering_options, normal_weights
    from alize.drafting import model_info
    from alize.engine_options import EngineOptions
    from alize.export.hub import export_hub
    from alize.models.checkpoint import Checkpoint
    from alize.optimize import lower_tensorrt

    first, *others = case.split(":")
    if first in SHAPES:
        layers = int(others.pop(0))
        source = work / f"{first}-{layers}"
        if not source.exists():
            write_checkpoint(first, source, layers=layers)
    else:
        source = Path(first)
    weights = normal_weights(others[0] if others else "fp16")
    compiler, checkpoint = compiler_for(target), Checkpoint.open(source)
    engine = EngineOptions(sm=str(sm))
    options = lowering_options(compiler, model_info(checkpoint), device="gpu", engine=engine, weights=weights)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with mock.patch.object(lower_tensorrt, "build_plan", lambda *_: ()):
        compiler.lowering.lower(export_hub(checkpoint), folder, weights=weights, options=options)
    (folder / "options.json").write_text(json.dumps({"context": int(options.get("capacity", 0)), "batch": int(options["batch"])}))
    (folder / "windows.json").write_text(json.dumps(list(model_info(checkpoint).windows)))


def built(folder: Path, target: str, sm: int) -> dict[str, Any]:
    """One engine, in this process."""
    from alize.memory import Watch, held
    from alize.nvidia import PACKAGES, engine_limits
    from alize.optimize.lower_tensorrt import GRAPH_FILE, profiles
    from alize.optimize.tensorrt_build import build_plan

    options = json.loads((folder / "options.json").read_text())
    limits = engine_limits(json.loads((folder / "windows.json").read_text()), options["context"])
    PACKAGES[target].load()
    plan, before, began = folder / "engine.plan", held(), time.perf_counter()
    with Watch() as watch:
        build_plan(PACKAGES[target], folder / GRAPH_FILE, plan, sm, profiles(limits, options["batch"]))
        seconds, peak = time.perf_counter() - began, watch.restart()
    assert before is not None and peak is not None
    weights = (folder / f"{GRAPH_FILE}.data").stat().st_size
    anonymous = peak.anonymous - before.anonymous
    return {
        "weights_bytes": weights,
        "plan_bytes": plan.stat().st_size,
        "seconds": round(seconds, 1),
        "seconds_a_gigabyte": round(seconds / weights * 1e9, 1),
        "anonymous_bytes": anonymous,
        "anonymous / weights": round(anonymous / weights, 2),
        "mapped_bytes": peak.mapped,
    }


if __name__ == "__main__":
    main()
