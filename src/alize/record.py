"""build-record.json: what a build took, on which machine. Not sealed: it differs from run to run."""

import contextlib
import json
import platform
import resource
import time
from collections.abc import Iterator

from alize.runtimes.processor import processor_name

__all__ = ["BUILD_RECORD", "BuildRecord"]

BUILD_RECORD = "build-record.json"


class BuildRecord:
    """Seconds of each stage and the peak resident memory at its end, in bytes (file-mapped pages counted in)."""

    def __init__(self) -> None:
        self._stages: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Times the block as one stage."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self._stages[stage] = {"seconds": round(seconds, 2), "peak_rss_bytes": _peak_rss()}

    def to_json(self) -> str:
        machine = {"processor": processor_name(), "system": platform.platform(), "python": platform.python_version()}
        return json.dumps({"machine": machine, "stages": self._stages}, indent=2, sort_keys=True) + "\n"


def _peak_rss() -> int:
    """Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
