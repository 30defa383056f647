"""Builds one large checkpoint and compares the time with what no build can do without: reading, writing, and rounding.

    python -m benchmarks.full_build WORK [--case CASE] [--checkpoint FOLDER] [--name NAME] [OPTIONS OF BUILD]

from the repository's root. A case is SHAPE:LAYERS:TARGET:WEIGHTS, mistral-7b:32:openvino:int4 by default; the checkpoint of it
is written below WORK unless --checkpoint names one that is there. In one run, one after the other and with the checkpoint
dropped from the page cache before each reading:

    arithmetic      `quantised` over the first layer's matrices and the head, in memory, before the build and after it: their mean
                    for a weight of either width, times how many there are
    read            the checkpoint's shards, 16 MB at a time
    build           a process of its own; options that are not this script's go to it (--validation-budget 0)
    write           as many bytes as the artifact has, and fsync

Building is everything but the engine's own run and the rest of the validation, which are told apart. The result is in
benchmarks/results/NAME.json: seconds, the ratio, peaks of memory by stage, what the validation left out, the machine's load.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alize.models.checkpoint import Checkpoint
from alize.models.registry import single_weights
from alize.optimize.quantisation import Form, Quantisation
from alize.optimize.round_to_integers import quantised
from alize.record import builds
from benchmarks.make_checkpoint import write_checkpoint
from benchmarks.measuring import write_result

_CHUNK = 1 << 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--case", default="mistral-7b:32:openvino:int4", help="SHAPE:LAYERS:TARGET:WEIGHTS")
    parser.add_argument("--checkpoint", type=Path, help="one that is there already")
    parser.add_argument("--name", default="full-build", help="of the file of results")
    options, rest = parser.parse_known_args()
    shape, layers, target, weights = options.case.split(":")
    folder = options.checkpoint or options.work / f"{shape}-{layers}"
    if not folder.exists():
        write_checkpoint(shape, folder, layers=int(layers))
    result = measure(Checkpoint.open(folder), options.work, target, weights, rest)
    write_result(options.name, {"case": options.case, "options": rest, **result})


def measure(checkpoint: Checkpoint, work: Path, target: str, weights: str, rest: list[str]) -> dict[str, Any]:
    """One build and what it is compared with."""
    chosen, output = Quantisation.parse(weights), work / "full-artifact"
    shards = sorted({info.file for info in checkpoint.stored_tensors.values()})
    loads = [os.getloadavg()[0]]
    arithmetic = [_arithmetic(checkpoint, chosen)]
    read = _read(shards)
    _forget(shards)
    words = [str(checkpoint.folder), "--target", target, "--weights", weights, "-o", str(output), *rest]
    ran = subprocess.run([sys.executable, "-m", "alize", "build", "-q", *words], stdout=subprocess.DEVNULL, check=False)
    if ran.returncode not in (0, 5):  # 5: the verdict is "partial", as the options ask for
        raise SystemExit(f"the build ended with {ran.returncode}")
    loads.append(os.getloadavg()[0])
    record = json.loads((output / "build-record.json").read_text())
    manifest = json.loads((output / "manifest.json").read_text())
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    shutil.rmtree(output)
    written = _write(work / "full-written", size)
    arithmetic.append(_arithmetic(checkpoint, chosen))
    loads.append(os.getloadavg()[0])
    stages = record["stages"]
    building = [stage for stage in stages if builds(stage["stage"])]
    seconds = sum(stage["seconds"] for stage in building)
    floor = {"read": read, "write": written, "arithmetic": sum(arithmetic) / len(arithmetic)}
    return {
        "input_bytes": sum(path.stat().st_size for path in shards),
        "output_bytes": size,
        "floor_seconds": {name: round(value, 1) for name, value in floor.items()},
        "arithmetic_seconds": [round(value, 1) for value in arithmetic],
        "building_seconds": round(seconds, 1),
        "building / floor": round(seconds / sum(floor.values()), 2),
        "other_seconds": round(sum(stage["seconds"] for stage in stages) - seconds, 1),
        "building_peak_anonymous_bytes": max(stage["peak_anonymous_bytes"] for stage in stages if not stage["own_run"]),
        "own_run_peak_anonymous_bytes": max((s["peak_anonymous_bytes"] for s in stages if s["own_run"]), default=0),
        "verdict": manifest["validation"]["verdict"],
        "left_out": manifest["validation"]["left_out"],
        "load": [round(load, 1) for load in loads],
        "estimate": record["estimate"],
        "stages": stages,
    }


def _arithmetic(checkpoint: Checkpoint, chosen: Quantisation | None) -> float:
    """Seconds that rounding every matrix would take, were all of them in memory."""
    if chosen is None:
        return 0.0
    weights = single_weights(checkpoint)
    forms = {name: chosen.form(name, weight.shape) for name, weight in weights.items()}
    counts: dict[Form, int] = {}
    for name, form in forms.items():
        if form is not None:
            counts[form] = counts.get(form, 0) + math.prod(weights[name].shape)
    spent = dict.fromkeys(counts, 0.0)
    rounded = dict.fromkeys(counts, 0)
    for name, form in forms.items():
        if form is not None and (".0." in name or not name.startswith("model.layers.")) and rounded[form] < 3e8:
            matrix = checkpoint.stored(weights[name])[0].clone()
            began = time.perf_counter()
            quantised(name, matrix, form)
            spent[form] += time.perf_counter() - began
            rounded[form] += matrix.numel()
    return sum(counts[form] * spent[form] / rounded[form] for form in counts)


def _read(shards: Iterable[Path]) -> float:
    _forget(shards)
    buffer = bytearray(_CHUNK)
    began = time.perf_counter()
    for path in shards:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - began


def _forget(shards: Iterable[Path]) -> None:
    """Asks the system to drop what it keeps of the files in memory."""
    for path in shards:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write(path: Path, size: int) -> float:
    block = os.urandom(_CHUNK)
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, _CHUNK):
            file.write(block[: min(_CHUNK, size - start)])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


if __name__ == "__main__":
    main()
