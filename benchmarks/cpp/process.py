"""What the subjects say of themselves, and how they are asked. Imports nothing that an environment may lack."""

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["Server", "TokenClock", "memory", "once"]

_FIELDS = {"VmRSS": "rss_mb", "RssAnon": "anonymous_mb", "VmHWM": "peak_mb"}


def memory() -> dict[str, float]:
    """MB of this process."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {_FIELDS[words[0][:-1]]: round(int(words[1]) * 1024 / 1e6, 1) for words in lines if words and words[0][:-1] in _FIELDS}


class TokenClock:
    """When the tokens of a generation came."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, float]] = []

    def token(self) -> None:
        self._marks.append((time.perf_counter(), time.process_time()))

    def each(self) -> dict[str, float]:
        """Of one of the tokens behind the first one: seconds that pass, and seconds that all threads compute."""
        rest = max(len(self._marks) - 1, 1)
        passed, computed = (last - first for first, last in zip(self._marks[0], self._marks[-1], strict=True))
        return {"token_seconds": passed / rest, "token_processor_seconds": computed / rest}


def once(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, float]:
    """Starts a subject that says one line, and returns its figures with the seconds from its start to that line."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        figures: dict[str, float] = json.loads(process.stdout.readline())
        return figures | {"first_token_seconds": time.perf_counter() - began}


class Server:
    """A subject in a process of its own, which waits between its turns."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(self, prompt: int, new: int, sessions: int = 1) -> dict[str, float]:
        """`sessions` at once, each with `prompt` tokens and `new` greedy ones."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{prompt} {new} {sessions}\n")
        self._process.stdin.flush()
        figures: dict[str, float] = json.loads(self._process.stdout.readline())
        return figures

    def close(self) -> None:
        self._process.communicate()
