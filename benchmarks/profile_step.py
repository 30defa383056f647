"""Where the time of a step goes, by kind of node, on OpenVINO. From the repository's root:

    python -m benchmarks.profile_step ARTIFACT [--tokens 1] [--behind 256] [--set inference_precision=bf16]

Opens an artifact of paged attention with its first configuration, `--set` options changed, and the engine's own counters on
(they cost some microseconds a node). Medians over the steps; what the nodes do not account for is the engine's way from one to
the next.
"""

import argparse
import collections
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from alize.runtimes import openvino_runner
from alize.runtimes.model import find_place
from alize.runtimes.openvino_paged import PagedEngine
from alize.runtimes.registry import BACKENDS


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the time of a step goes, by kind of node.")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--tokens", type=int, default=1, help="of a step (default: 1)")
    parser.add_argument("--behind", type=int, default=256, help="tokens that the session holds before (default: 256)")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of the configuration")
    options = parser.parse_args()
    engine = opened(options.artifact, dict(one.split("=", 1) for one in options.set))
    seconds, kinds = profiled(engine, options.tokens, options.behind, options.steps)
    print(f"{1e3 * seconds:9.3f} ms a step of {options.tokens} behind {options.behind}")
    for kind, (spent, count) in sorted(kinds.items(), key=lambda entry: -entry[1][0])[:14]:
        print(f"{1e3 * spent:9.3f} ms  {count:4d} nodes  {kind}")
    print(f"{1e3 * (seconds - sum(spent for spent, _ in kinds.values())):9.3f} ms  between them")


def opened(artifact: Path, changed: dict[str, str]) -> Any:
    place = find_place(artifact, device="cpu", expect=None, verify="stat", configuration=None, backends=BACKENDS)
    properties = openvino_runner.compile_properties
    openvino_runner.compile_properties = lambda options: properties(options) | {"PERF_COUNT": True}
    engine = place.module.open(place.folder, place.manifest, "cpu", {**place.configuration.options, **changed})
    if not isinstance(engine, PagedEngine):
        raise SystemExit(f"{artifact}: the engine's counters are read of paged attention, not of {type(engine).__name__}")
    return engine


def profiled(engine: Any, tokens: int, behind: int, steps: int) -> tuple[float, dict[str, tuple[float, int]]]:
    """Median seconds a step; by kind of node and kernel, medians of their seconds in all, and how many there are."""
    draw = np.random.default_rng(0)
    runner = engine.runner(1)

    def step(size: int, position: int) -> float:
        began = time.perf_counter()
        runner.step(draw.integers(0, engine.info.vocab_size, (1, size)), np.array([size]), np.array([position]), 1)
        return time.perf_counter() - began

    if behind:
        step(behind, 0)
    step(tokens, behind)
    runs, before = 1 + bool(behind), counted(engine)
    times = []
    for _ in range(steps):
        runner.drop_last(tokens)
        times.append(step(tokens, behind))
    after = counted(engine)
    kinds: dict[str, list[float]] = collections.defaultdict(list)
    for name, (kind, average) in after.items():
        whole = average * (steps + runs) - before[name][1] * runs  # the counters hold averages over all runs
        kinds[kind].append(max(whole, 0.0) / steps)
    return statistics.median(times), {kind: (sum(spent), len(spent)) for kind, spent in kinds.items()}


def counted(engine: Any) -> dict[str, tuple[str, float]]:
    """Name -> kind and kernel, average seconds."""
    found = engine._request.get_profiling_info()
    return {one.node_name: (f"{one.node_type} {one.exec_type}", one.real_time.total_seconds()) for one in found if one.exec_type}


if __name__ == "__main__":
    main()
