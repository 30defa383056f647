"""Measures the subjects of one model alternately, each in a process of its own."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench.floor import Floor
from benchmarks.bench.models import BenchModel
from benchmarks.bench.prepare import environment, folder_of, last_line, record_of
from benchmarks.bench.subjects import Subject
from benchmarks.measuring import bandwidth, rounds_of, summaries
from benchmarks.subjects.process import Server, SubjectFailed, once

__all__ = ["LENGTHS", "NEW", "PROMPT", "Effort", "Measuring"]

PROMPT, NEW = 32, 48
LENGTHS = (16, 256, 2048)
_SHARES = {"decode": 0.35, "16": 0.05, "256": 0.15, "2048": 0.25, "cold": 0.2}


@dataclass(frozen=True)
class Effort:
    """rounds: at most, of each measurement.   seconds: of a model in all; a measurement ends with the round that its share of
    it is spent in, two rounds at least (`least`)."""

    rounds: int
    seconds: float
    least: int = 2
    new: int = NEW
    lengths: tuple[int, ...] = LENGTHS

    def of(self, what: str) -> dict[str, Any]:
        return {"rounds": self.rounds, "seconds": self.seconds * _SHARES[what], "least": self.least}


class Measuring:
    """threads: every subject sees so many processors."""

    def __init__(self, work: Path, model: BenchModel, subjects: list[Subject], effort: Effort, *, threads: int) -> None:
        self.work, self.model, self.effort, self.threads = work, model, effort, threads
        self.state = work / f"state-{os.getpid()}"  # none that an earlier run wrote to
        self.environment = environment(self.state) | {"ALIZE_BENCH_THREADS": str(threads)}
        self.commands: dict[str, list[str]] = {}
        self.failed: dict[str, str] = {}
        self.seed = 0
        for subject in subjects:
            record = record_of(work, model, subject)
            if record is None:
                self.failed[subject.name] = "not prepared"
            elif record["failed"]:
                self.failed[subject.name] = record["failed"]
            else:
                self.commands[subject.name] = subject.serve(folder_of(work, model, subject))
        self.prepared = {subject.name: record_of(work, model, subject) for subject in subjects}

    def run(self) -> dict[str, Any]:
        """The result as it is kept, without a folder of this machine."""
        try:
            text = json.dumps(self._run())
            found: dict[str, Any] = json.loads(text.replace(str(self.work.absolute()), "WORK").replace(f"{Path.cwd()}/", ""))
            return found
        finally:
            shutil.rmtree(self.state, ignore_errors=True)

    def _run(self) -> dict[str, Any]:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.threads])  # what is started from here on inherits it
        cold = self._cold()
        with ExitStack() as stack:
            servers = self._servers(stack)
            warm = self._decoding(servers) | self._first_tokens(servers)
        return {
            "what": self.model.title,
            "weights": self.model.weights,
            "threads": self.threads,
            "prompt": PROMPT,
            "new": self.effort.new,
            **warm,
            **cold,
            "prepared": {name: record for name, record in self.prepared.items() if record},
            "failed": self.failed,
        }

    def _servers(self, stack: ExitStack) -> dict[str, Server]:
        """Those that answer. The first answer also packs the weights."""
        servers = {}
        for name, command in self.commands.items():
            server = Server([*command, "serve"], self.environment, log=self._log(name))
            stack.callback(server.close)
            try:
                server.ask(PROMPT, 2, seed=self._seed())
            except SubjectFailed as error:
                self.failed[name] = f"{error}: {last_line(self._log(name))}"
                continue
            servers[name] = server
        return servers

    def _decoding(self, servers: Mapping[str, Server]) -> dict[str, Any]:
        say(f"decode {self.effort.new} tokens")
        measures: dict[str, Callable[[], dict[str, float]]] = {"": lambda: {"bytes": bandwidth()}}
        seeds = self._same_seed(len(servers))
        for name, server in servers.items():
            measures[name] = lambda server=server: server.ask(PROMPT, self.effort.new, seed=next(seeds))
        found = rounds_of(measures, **self.effort.of("decode"))
        speeds = [figures["bytes"] for figures in found.pop("")]
        seconds = {name: [figures["token_seconds"] for figures in each] for name, each in found.items()}
        floor = Floor(self.model.config(self.work), self.model.bits, self.model.group)
        context = PROMPT + self.effort.new // 2
        reached = {
            name: [floor.seconds(context, speed) / passed for speed, passed in zip(speeds, each, strict=True)]
            for name, each in seconds.items()
        }
        return {
            "bandwidth_gb_s": summaries({"bandwidth": [speed / 1e9 for speed in speeds]})["bandwidth"],
            "floor": {"weight_bytes": floor.weight_bytes, "cache_bytes": floor.cache_bytes(context)},
            "decode_tokens_per_second": summaries({name: [1 / passed for passed in each] for name, each in seconds.items()}),
            "processor_seconds_a_token": {
                name: summary
                for name, summary in summaries(
                    {name: [figures["token_processor_seconds"] for figures in each] for name, each in found.items()}
                ).items()
                if name in found
            },
            "fraction_of_floor": {name: summary for name, summary in summaries(reached).items() if name in found},
            "memory_mb": {
                name: {key: each[-1][key] for key in ("rss_mb", "anonymous_mb", "peak_mb")} for name, each in found.items()
            },
        }

    def _first_tokens(self, servers: Mapping[str, Server]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for length in self.effort.lengths:
            say(f"first token after {length}")
            seeds = self._same_seed(len(servers))
            measures = {
                name: lambda server=server, length=length, seeds=seeds: server.ask(length, 1, seed=next(seeds))[
                    "first_token_seconds"
                ]
                for name, server in servers.items()
            }
            share = self.effort.of(str(length) if str(length) in _SHARES else "256")
            found[str(length)] = summaries(rounds_of(measures, **share))
        return {"first_token_seconds": found}

    def _cold(self) -> dict[str, Any]:
        """From the start of a process to its first token: the first time ever, with a state folder that nothing was written to,
        and later ones."""
        say("cold starts")
        first: dict[str, float] = {}
        for name, command in list(self.commands.items()):
            try:
                first[name] = round(self._start(name, command), 2)
            except SubjectFailed as error:
                self.failed[name] = f"{error}: {last_line(self._log(name))}"
                del self.commands[name]
        measures = {
            name: lambda name=name, command=command: self._start(name, command) for name, command in self.commands.items()
        }
        later = summaries(rounds_of(measures, **self.effort.of("cold")))
        return {"cold_start_seconds": {"first": first, "later": later}}

    def _start(self, name: str, command: list[str]) -> float:
        return once([*command, "cold", str(PROMPT)], self.environment, log=self._log(name))["cold_start_seconds"]

    def _seed(self) -> int:
        self.seed += 1
        return self.seed

    def _same_seed(self, subjects: int) -> Iterator[int]:
        """Each round has prompts that no subject has seen, the same for all of them."""
        while True:
            seed = self._seed()
            for _ in range(subjects):
                yield seed

    def _log(self, name: str) -> Path:
        return self.work / self.model.name / f"{name.replace(', ', '-').replace(' ', '-')}.run.log"


def say(text: str) -> None:
    print(f"    {text}", file=sys.stderr, flush=True)
