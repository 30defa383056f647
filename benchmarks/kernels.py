"""What alize's own kernels gain on an artifact with integer weights. From the repository's root:

    python -m benchmarks.kernels ARTIFACT [--rounds 9] [--name kernels]

The configuration `default` (the kernels) against itself with OpenVINO's attention, against `engine` (OpenVINO's products, too),
and against `engine` in bfloat16 where the processor has it, alternately in one process: milliseconds a token behind 16, 256 and
2048, and seconds to the first token. Then each in a process of its own: seconds to open it, and anonymous memory. Keeps
benchmarks/results/NAME.json.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from alize.artifact.manifest import Configuration
from alize.runtimes import Model, openvino_runner
from alize.runtimes.model import find_place
from alize.runtimes.processor import processor_name
from alize.runtimes.registry import BACKENDS
from benchmarks.measuring import rounds_of, summaries, write_result
from benchmarks.subjects.process import memory

PROMPTS = (16, 256, 2048)
DECODED = 16
THEIRS = "default, OpenVINO's attention"


def main() -> None:
    parser = argparse.ArgumentParser(description="alize's kernels against the engine's products.")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--name", default="kernels", help="of the file in benchmarks/results")
    parser.add_argument("--alone", help="one configuration: what opening it takes, as JSON on stdout")
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(alone(options.artifact, options.alone)))
        return
    models = {name: opened(options.artifact, name) for name in names()}
    result: dict[str, Any] = {"what": f"weights {next(iter(models.values())).manifest.target.weights}"}
    for size in PROMPTS:
        found = rounds_of({name: partial(timed, model, size) for name, model in models.items()}, rounds=options.rounds + 1)
        for number, what in enumerate(("first_token_seconds", "token_seconds")):
            values = {name: [one[number] for one in runs[1:]] for name, runs in found.items()}  # the first round packs weights
            result[f"{what} behind {size}"] = summaries(values)
    for model in models.values():
        model.close()
    result["alone"] = {name: in_its_own_process(options.artifact, name) for name in names()}
    write_result(options.name, result)


def names() -> list[str]:
    return ["default", THEIRS, "engine", *(["engine in bf16"] if "_bf16" in processor_name() else [])]


def opened(artifact: Path, name: str) -> Model:
    """Without the golden replay: two are no configurations of the artifact."""
    chosen = name.split()[0].strip(",")
    place = find_place(artifact, device=None, expect=None, verify="stat", configuration=chosen, backends=BACKENDS)
    options: Mapping[str, str | int | bool] = place.configuration.options
    if name.endswith("bf16"):
        options = {**options, "inference_precision": "bf16"}
    nothing = {name: lambda *_: None for name in ("use_attention", "blob_of")}  # nor what was compiled with it and kept
    with patch.multiple(openvino_runner, **nothing) if name == THEIRS else nullcontext():
        engine = place.module.open(place.folder, place.manifest, place.device, options)
    return Model(place.folder, place.manifest, engine, device=place.device, configuration=Configuration(name, dict(options)))


def timed(model: Model, size: int) -> tuple[float, float]:
    """Seconds to the first token behind a random prompt, and of one of those that follow."""
    draw = np.random.default_rng(size)
    prompt = draw.integers(0, model.info.vocab_size, (1, size))
    with model.session() as session:
        began = time.perf_counter()
        session.append(prompt)
        first = time.perf_counter()
        for token in draw.integers(0, model.info.vocab_size, DECODED):
            session.append([[token]])
        return first - began, (time.perf_counter() - first) / DECODED


def alone(artifact: Path, name: str) -> dict[str, float]:
    began = time.perf_counter()
    model = opened(artifact, name)
    seconds = time.perf_counter() - began
    timed(model, 256)
    return {"open_seconds": round(seconds, 3), "anonymous_mb": memory()["anonymous_mb"]}


def in_its_own_process(artifact: Path, name: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.kernels", str(artifact), "--alone", name]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


if __name__ == "__main__":
    main()
