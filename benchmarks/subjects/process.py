"""What the subjects of a benchmark say of themselves, and how they are asked. Imports nothing that an environment may lack.

A subject is a program that is called with `cold PROMPT`, where it says one line after its first token, or with `serve`, where
it answers every line `PROMPT NEW SESSIONS SEED` on stdin with one line of JSON: see `TokenClock.figures`.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

__all__ = ["Server", "Subject", "SubjectFailed", "TokenClock", "answer", "memory", "once", "prompt_tokens", "say"]

_FIELDS = {"VmRSS": "rss_mb", "RssAnon": "anonymous_mb", "VmHWM": "peak_mb"}


class SubjectFailed(Exception):
    """A subject ended without an answer."""


def memory() -> dict[str, float]:
    """MB of this process."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {_FIELDS[words[0][:-1]]: round(int(words[1]) * 1024 / 1e6, 1) for words in lines if words and words[0][:-1] in _FIELDS}


def prompt_tokens(size: int, seed: int, vocabulary: int) -> list[int]:
    """The same for every subject. Another seed gives another first token: engines keep the caches of prompts they know."""
    return [(7 * i + 101 * seed + 11) % vocabulary for i in range(size)]


def say(**figures: float) -> None:
    print(json.dumps(figures), flush=True)


class Subject(Protocol):
    """Something loaded that generates."""

    def decode(self, size: int, count: int, seed: int) -> dict[str, float]:
        """`count` greedy tokens after a prompt of `size`. Returns a clock's figures."""
        ...


def answer(load: Callable[[], Subject], what: Sequence[str], *, alone: str) -> None:
    """Does what a subject is called for: `cold PROMPT` or `serve`. alone: why it cannot have several sessions."""
    began = time.perf_counter()
    subject = load()
    if what[0] == "cold":
        loaded = time.perf_counter() - began
        say(load_seconds=loaded, **subject.decode(int(what[1]), 1, 0))
        return
    for line in sys.stdin:
        size, count, sessions, seed = map(int, line.split())
        assert sessions == 1, alone
        say(**subject.decode(size, count, seed))


class TokenClock:
    """When the tokens of a generation came. Begins when it is made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._marks: list[tuple[float, float]] = []

    def token(self) -> None:
        self._marks.append((time.perf_counter(), time.process_time()))

    def figures(self) -> dict[str, float]:
        """Seconds to the first token; of one of the tokens behind it the seconds that pass, and that all threads compute; memory.

        Ask while the session still holds its cache.
        """
        rest = max(len(self._marks) - 1, 1)
        passed, computed = (last - first for first, last in zip(self._marks[0], self._marks[-1], strict=True))
        return {
            "first_token_seconds": self._marks[0][0] - self._began,
            "token_seconds": passed / rest,
            "token_processor_seconds": computed / rest,
            "tokens_per_second": len(self._marks) / (self._marks[-1][0] - self._began),
            **memory(),
        }


def once(command: Sequence[str], environment: Mapping[str, str], *, log: Path | None = None) -> dict[str, float]:
    """Starts a subject that says one line, and returns its figures with the seconds from its start to that line.

    log: where what it writes on stderr goes, by default nowhere else. Raises SubjectFailed.
    """
    began = time.perf_counter()
    with _started(command, environment, log) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        passed = time.perf_counter() - began
        return _figures(line, command) | {"cold_start_seconds": passed}


class Server:
    """A subject in a process of its own. Between its turns it is stopped: no thread of it may spin."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], *, log: Path | None = None) -> None:
        self._command = command
        self._process = _started(command, environment, log)

    def ask(self, prompt: int, new: int, sessions: int = 1, *, seed: int = 0) -> dict[str, float]:
        """`sessions` at once, each with `prompt` tokens and `new` greedy ones. Raises SubjectFailed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(f"{prompt} {new} {sessions} {seed}\n")
            self._process.stdin.flush()
        figures = _figures(self._process.stdout.readline(), self._command)
        self._process.send_signal(signal.SIGSTOP)
        return figures

    def close(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


def _started(command: Sequence[str], environment: Mapping[str, str], log: Path | None) -> "subprocess.Popen[str]":
    with contextlib.ExitStack() as stack:
        errors = None if log is None else stack.enter_context(log.open("a", encoding="utf-8"))
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)


def _figures(line: str, command: Sequence[str]) -> dict[str, float]:
    if not line:
        raise SubjectFailed(f"`{' '.join(command)}` ended without an answer")
    found: dict[str, float] = json.loads(line)
    return found
