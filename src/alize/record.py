"""build-record.json: what a build took, on which machine. Not sealed: it differs from run to run."""

import gc
import json
import platform
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from alize.memory import Watch, give_back
from alize.progress import Progress, byte_count
from alize.runtimes.processor import processor_name

__all__ = ["BUILD_RECORD", "INSPECT", "OWN_RUN", "BuildRecord", "builds"]

BUILD_RECORD = "build-record.json"

INSPECT = "inspect the compiled graph"
OWN_RUN = frozenset(
    {INSPECT, "artifact", "greedy continuation", "follow the router's near-ties", "experts that no token reached"}
    | {"find the first difference"}
)
"""Stages in which the engine runs the artifact: it unpacks the weights, so what they hold grows with the model."""

_COMPARED = ("compare weights", "reference", "turn the router's near-ties round")  # and so on: "reference in bfloat16"


def builds(stage: str) -> bool:
    """Whether a stage makes the artifact; the others, the engine's inspection among them, validate it."""
    return stage not in OWN_RUN and not stage.startswith(_COMPARED)


class BuildRecord:
    """A Progress that passes on what it is told and keeps, of each stage, its seconds and the peak of memory in it.

    A context: it ends with the build. Memory is told apart into anonymous and file-mapped, see `alize.memory`. expected: what
    the estimate said, to be kept beside.
    """

    def __init__(self, progress: Progress, expected: dict[str, Any] | None = None) -> None:
        self._progress = progress
        self._stages: list[dict[str, Any]] = []
        self._watch = Watch()
        self._began, self._worked = time.perf_counter(), time.process_time()
        self._name = "open"
        self._expected = expected
        self._froze = False

    def __enter__(self) -> Self:
        self._froze = gc.get_freeze_count() == 0  # else the process sees to it, and would find it undone
        if self._froze:
            gc.collect()
            gc.freeze()  # what is there already, imported modules above all, is not looked through again before every stage
        self._watch.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._watch.__exit__(kind, error, trace)
        if self._froze:
            gc.unfreeze()

    def stage(self, name: str, *, total_bytes: int | None = None, steps: int | None = None) -> None:
        """See Progress."""
        self._end()
        give_back()
        self._watch.restart()  # one stage's leftovers are not counted to the next
        self._name = name
        self._progress.stage(name, total_bytes=total_bytes, steps=steps)

    def advance(self, n: int = 1) -> None:
        """See Progress."""
        self._progress.advance(n)

    def note(self, text: str) -> None:
        """See Progress."""
        self._progress.note(text)

    def peak(self, *, own_run: bool) -> tuple[int, str] | None:
        """The largest anonymous peak in bytes and its stage, of the artifact's own run or of everything else."""
        stages = [stage for stage in self._stages if stage["own_run"] is own_run and stage["peak_anonymous_bytes"] is not None]
        largest = max(stages, key=lambda stage: int(stage["peak_anonymous_bytes"]), default=None)
        return None if largest is None else (largest["peak_anonymous_bytes"], largest["stage"])

    def summary(self) -> str:
        """One line: seconds and peaks, and what was expected of the time."""
        self._end()
        seconds = f"{sum(stage['seconds'] for stage in self._stages):.0f} s"
        if self._expected is not None:
            seconds += f" ({self._expected['build_seconds'] + self._expected['validate_seconds']:.0f} s estimated)"
        peaks = {"building": self.peak(own_run=False), "the artifact's own run": self.peak(own_run=True)}
        told = [f"{what} {byte_count(peak[0])} ({peak[1]})" for what, peak in peaks.items() if peak is not None]
        return f"took {seconds}; peak of anonymous memory: {', '.join(told)}" if told else f"took {seconds}"

    def write(self, folder: Path) -> None:
        """Writes FOLDER/build-record.json, the stage that is under way included as far as it got."""
        self._end()
        machine = {"processor": processor_name(), "system": platform.platform(), "python": platform.python_version()}
        record = {"machine": machine, "stages": self._stages, "estimate": self._expected, "measured": self._measured()}
        (folder / BUILD_RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _measured(self) -> dict[str, Any]:
        """What the estimate has, as it was."""
        spent = {True: 0.0, False: 0.0}
        for stage in self._stages:
            spent[builds(stage["stage"])] += stage["seconds"]
        peaks = {"build_memory": self.peak(own_run=False), "run_memory": self.peak(own_run=True)}
        return {
            "build_seconds": round(spent[True], 1),
            "validate_seconds": round(spent[False], 1),
            **{name: None if peak is None else peak[0] for name, peak in peaks.items()},
        }

    def _end(self) -> None:
        """Closes the stage that is under way; what follows is counted to the next one of the same name."""
        peak, now, worked = self._watch.restart(), time.perf_counter(), time.process_time()
        if self._name:
            self._stages.append(
                {
                    "stage": self._name,
                    "seconds": round(now - self._began, 2),
                    "processor_seconds": round(worked - self._worked, 2),
                    "peak_anonymous_bytes": None if peak is None else peak.anonymous,
                    "peak_mapped_bytes": None if peak is None else peak.mapped,
                    "own_run": self._name in OWN_RUN,
                }
            )
        self._began, self._worked, self._name = now, worked, ""
