"""From the start of a process to its first token after 32, the second time and later:

python -m benchmarks.cold_start WORK [--models demo-int8 demo-int4] [--rounds 11] [--checkout FOLDER]

alize and openvino-genai alternately, on what `python -m benchmarks.bench --prepare --work WORK` has made.
checkout: another one of alize, with its own .venv, which is measured beside this one.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.bench.models import MODELS
from benchmarks.bench.prepare import environment, folder_of
from benchmarks.bench.subjects import SUBJECTS
from benchmarks.measuring import alternate, write_result
from benchmarks.subjects.process import once

_ALIZE, _GENAI = SUBJECTS["alize, OpenVINO"], SUBJECTS["openvino-genai"]


def starts(work: Path, model: str, state: Path, *, rounds: int, checkout: Path | None) -> dict[str, dict[str, float]]:
    """Seconds of each subject, and the paired ratios. The first start of each, with an empty state folder, does not count."""
    bench = MODELS[model]
    artifact = folder_of(work, bench, _ALIZE)
    commands = {"alize": _ALIZE.serve(artifact)}
    if Path(_GENAI.serve(artifact)[0]).exists() and folder_of(work, bench, _GENAI).exists():
        commands["openvino-genai"] = _GENAI.serve(folder_of(work, bench, _GENAI))
    if checkout is not None:
        commands["the other checkout"] = [str(checkout / ".venv/bin/python"), *_ALIZE.serve(artifact)[1:]]
    places = {name: environment(state / str(number)) for number, name in enumerate(commands)}

    def start(name: str) -> float:
        return once([*commands[name], "cold", "32"], places[name])["cold_start_seconds"]

    for name in commands:
        start(name)
    return alternate({name: lambda name=name: start(name) for name in commands}, rounds=rounds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", nargs="+", default=["demo-int8", "demo-int4"])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--checkout", type=Path)
    options = parser.parse_args()
    found = {}
    for model in options.models:
        state = Path(tempfile.mkdtemp())
        try:
            found[model] = starts(options.work, model, state, rounds=options.rounds, checkout=options.checkout)
        finally:
            shutil.rmtree(state)
    write_result("cold-start", {"load_average_before": os.getloadavg()[0], "seconds": found})


if __name__ == "__main__":
    sys.exit(main())
