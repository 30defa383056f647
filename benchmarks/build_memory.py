"""Builds checkpoints and compares what the estimate said with what the build took.

    python -m benchmarks.build_memory WORK [--case SHAPE:LAYERS[:TARGET[:WEIGHTS]]] ... [--window 64] [OPTIONS OF BUILD]

from the repository's root. A case is a shape of make_checkpoint.py cut to so many layers, or the folder of a checkpoint in place
of SHAPE:LAYERS; without any, CASES. Every build is a process of its own. Checkpoints are written below WORK once, their windows
of --window tokens (published ones make validating long, and change its activations only); artifacts are removed. What random
weights lose by rounding says nothing: no budget is held against them. The result is in
benchmarks/results/NAME.json (build-memory): bytes of anonymous memory by stage, of disk, seconds, and each estimate over the
measured; --check fails where one is more than 30 % off.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.make_checkpoint import SHAPES, write_checkpoint
from benchmarks.measuring import write_result

CASES = (
    "mistral-7b:2:openvino",
    "mistral-7b:4:openvino",
    "mistral-7b:6:openvino",
    "mistral-7b:2:onnxruntime",
    "mistral-7b:4:onnxruntime",
    "mixtral-8x7b:1:openvino",
)
WITHIN = 0.3
_WHATEVER_IT_LOSES = """
import sys
from alize import cli
from alize.validate.judge import Budget
Budget.for_weights = lambda _: Budget(quantisation_kl=1e3, quantisation_kl_max=1e3, runtime_kl=1e3, runtime_kl_max=1e3)
sys.exit(cli.main())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--case", action="append", help="SHAPE:LAYERS[:TARGET[:WEIGHTS]] or FOLDER[:TARGET[:WEIGHTS]]")
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--check", action="store_true", help="fail where an estimate is more than 30 %% off")
    parser.add_argument("--name", default="build-memory", help="of the file of results")
    options, rest = parser.parse_known_args()
    cases = {case.split("/")[-1]: measure(case, options.work, options.window, rest) for case in options.case or CASES}
    write_result(options.name, {"window": options.window, "options": rest, "cases": cases})
    far = [
        f"{case}: {name} {ratio}"
        for case, result in cases.items()
        for name, ratio in result["estimate / measured"].items()
        if abs(ratio - 1) > WITHIN
    ]
    print("\n".join([f"{len(far)} estimates are more than {WITHIN:.0%} off", *far]))
    if far and options.check:
        raise SystemExit(1)


def measure(case: str, work: Path, window: int, rest: list[str]) -> dict[str, Any]:
    """One build."""
    checkpoint, target, weights = _parse(case, work, window)
    output = work / "artifact"
    shutil.rmtree(output, ignore_errors=True)
    words = ["build", str(checkpoint), "--target", target, "-o", str(output), *(["--weights", weights] if weights else []), *rest]
    with _DiskUse(work) as disk:
        program = ["-m", "alize"] if case.split(":")[0] not in SHAPES else ["-c", _WHATEVER_IT_LOSES]
        subprocess.run([sys.executable, *program, "-q", *words], check=True, stdout=subprocess.DEVNULL)
    record = json.loads((output / "build-record.json").read_text())
    sealed = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    shutil.rmtree(output)
    expected, stages = record["estimate"], record["stages"]
    measured = {**record["measured"], "output": sealed, "disk": disk.peak}
    assert "artifact" in {stage["stage"] for stage in stages}
    return {
        "estimate": {name: expected[name] for name in measured},
        "measured": {name: round(value, 1) for name, value in measured.items()},
        "estimate / measured": {name: round(expected[name] / value, 2) for name, value in measured.items()},
        "slices": expected["slices"],
        "anonymous_bytes": {stage["stage"]: stage["peak_anonymous_bytes"] for stage in stages},
        "mapped_bytes": {stage["stage"]: stage["peak_mapped_bytes"] for stage in stages},
        "seconds": {stage["stage"]: stage["seconds"] for stage in stages},
        "estimated seconds": expected["stages"],
    }


def _parse(case: str, work: Path, window: int) -> tuple[Path, str, str]:
    """Checkpoint, target and weights ("" = the checkpoint's own)."""
    first, *others = case.split(":")
    if first not in SHAPES:
        return Path(first), *_two(others)
    layers = int(others.pop(0))
    folder = work / f"{first}-{layers}-w{window}"
    if not folder.exists():
        write_checkpoint(first, folder, layers=layers)
        config = json.loads((folder / "config.json").read_text())
        if config["sliding_window"]:
            (folder / "config.json").write_text(json.dumps(config | {"sliding_window": window}, indent=2))
    return folder, *_two(others)


def _two(words: list[str]) -> tuple[str, str]:
    return (words[0] if words else "openvino"), (words[1] if len(words) > 1 else "")


class _DiskUse:
    """The most bytes that files of a build, half made or done, had in a folder, looked at every 50 ms."""

    def __init__(self, work: Path) -> None:
        self.peak = 0
        self._work = work
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "_DiskUse":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.is_set():
            size = 0
            for folder in self._work.glob("*artifact*"):
                for root, _, files in os.walk(folder):
                    for name in files:
                        try:
                            size += (Path(root) / name).stat().st_size
                        except OSError:  # renamed or removed meanwhile
                            continue
            self.peak = max(self.peak, size)
            time.sleep(0.05)


if __name__ == "__main__":
    main()
