"""What the benchmarks share: engines without a build's validation, alternating measurements, the machine's description."""

import json
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from alize.compilers import compiler_for, normal_weights
from alize.drafting import draft_manifest
from alize.export.hub import export_hub
from alize.models.checkpoint import Checkpoint
from alize.runtimes.processor import processor_name
from alize.runtimes.registry import backend_module
from alize.runtimes.runner import Runner
from alize.runtimes.session import Session, session_limits

__all__ = ["Lowered", "alternate", "bandwidth", "machine", "pages_read", "rounds_of", "summaries", "summary", "write_result"]

Found = TypeVar("Found")

RESULTS = Path(__file__).parent / "results"


class Lowered:
    """A checkpoint lowered for a target, opened as `load` opens it; not validated, so good for measuring only."""

    def __init__(
        self,
        checkpoint: Path,
        target: str,
        folder: Path,
        *,
        weights: str,
        options: Mapping[str, str] | None = None,
        taps: Sequence[str] = (),
    ) -> None:
        compiler = compiler_for(target)
        source = Checkpoint.open(checkpoint)
        weights = normal_weights(weights)
        self.folder = folder
        self.draft = draft_manifest(source, compiler, device="cpu", weights=weights, experts=(options or {}).get("experts"))
        if not folder.exists():
            unfinished = folder.with_name(f".{folder.name}")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            compiler.lowering.lower(export_hub(source), unfinished, weights=weights, options=self.draft.target.options)
            unfinished.rename(folder)
        configuration = dict(self.draft.configurations[0].options)
        self.engine = backend_module(target).open(folder, self.draft, "cpu", configuration, taps)

    def session(self, runner: Runner | None = None) -> Session:
        """A new one, on a runner of its own unless it is given."""
        limits = session_limits(self.draft.model, {})
        runner = runner or self.engine.runner(1)
        return Session(runner, self.draft.model, batch=1, chunk=limits.chunk, slack=limits.slack)

    def tokens(self, count: int, seed: int) -> np.ndarray[Any, Any]:
        """int64 [1,count], random."""
        return np.random.default_rng(seed).integers(0, self.draft.model.vocab_size, (1, count))


def alternate(subjects: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, dict[str, float]]:
    """Of numbers: medians, quartiles and the paired ratios' medians of `rounds_of`."""
    return summaries(rounds_of(subjects, rounds=rounds))


def rounds_of(
    subjects: Mapping[str, Callable[[], Found]], *, rounds: int, seconds: float = float("inf"), least: int = 1
) -> dict[str, list[Found]]:
    """Calls each in turn, `rounds` times over, but not again where so many seconds are spent after `least` rounds.

    Machines are shared and drift: only what was measured alternately in one run may be compared. Each round begins with another
    subject, so that none has always the same one before it.
    """
    found: dict[str, list[Found]] = {name: [] for name in subjects}
    names = list(subjects)
    began = time.monotonic()
    for number in range(rounds):
        if number >= least and time.monotonic() - began > seconds:
            break
        first = number % max(len(names), 1)
        for name in names[first:] + names[:first]:
            found[name].append(subjects[name]())
    return found


def summaries(found: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Of measurements that were taken alternately: those of each subject, then the paired ratios."""
    return {name: summary(values) for name, values in found.items()} | {
        f"{one} / {other}": summary([a / b for a, b in zip(found[one], found[other], strict=True)])
        for number, one in enumerate(found)
        for other in list(found)[number + 1 :]
    }


def summary(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": round(middle, 5), "quartile_1": round(low, 5), "quartile_3": round(high, 5), "runs": len(values)}


def bandwidth() -> float:
    """Bytes a second that this machine reads now, all cores together: the best of five sums over 1 GB."""
    from concurrent.futures import ThreadPoolExecutor

    cores = os.cpu_count() or 1
    parts = np.array_split(np.ones(1 << 28, np.float32), cores)
    best = 0.0
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.sum, parts))  # numpy lets go of the GIL
            best = max(best, (4 << 28) / (time.perf_counter() - start))
    return best


def pages_read(work: Callable[[], object]) -> int:
    """Bytes of this process's memory, mapped files included, in pages that `work` touched (Linux: clear_refs, smaps)."""
    Path("/proc/self/clear_refs").write_text("1")
    work()
    lines = (line.split() for line in Path("/proc/self/smaps").read_text().splitlines())
    return sum(int(words[1]) * 1024 for words in lines if words[0] == "Referenced:")


def machine() -> dict[str, Any]:
    """Where and under what load it was measured."""
    from importlib.metadata import version

    packages = ("openvino", "onnxruntime", "torch", "numpy")
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {name: version(name) for name in packages},
    }


def write_result(name: str, result: dict[str, Any], *, folder: Path | None = None, show: bool = True) -> None:
    """Keeps the result as benchmarks/results/NAME.json, or in another folder, and prints it."""
    text = json.dumps({**result, "machine": machine()}, indent=2)
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    if show:
        print(text)
