"""A short search on the device for the fastest runtime configuration of an artifact, each candidate proven before it is timed.

One lever after the other (see `levers`), each value against the best so far, alternately in this process, on a workload of one
prompt and the tokens that follow it. A candidate whose golden replay does not pass is not timed. What was chosen is kept in the
device's state folder, with its verdict, and is what `load` runs from then on.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Protocol

import numpy as np

from alize.artifact.manifest import Configuration
from alize.artifact.state import DeviceVerdict
from alize.errors import ArtifactError, NotValidated, UsageError
from alize.runtimes.golden import GOLDEN, Verdict
from alize.runtimes.levers import fits, levers
from alize.runtimes.model import Model, Place, find_place, golden_verdict
from alize.runtimes.registry import BACKENDS, Backend
from alize.runtimes.session import DEFAULT_CHUNK

__all__ = ["Candidate", "Timing", "Tuned", "Workload", "forget", "tune"]

_DECODED = 16
"""Tokens that are written to time one."""
_MARGIN = 1.03
"""A candidate has to be faster by this: what is less is noise, and the sealed configuration has the better proof."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is tuned for: a prompt of so many tokens, and so many that follow it. rounds: how often each candidate is timed."""

    prompt: int = 256
    new_tokens: int = 128
    rounds: int = 5

    def __post_init__(self) -> None:
        for name in ("prompt", "new_tokens", "rounds"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class Timing:
    """Medians, in seconds. speed: how many times faster than the best so far the workload is, the median of pairs."""

    first_token_seconds: float
    token_seconds: float
    speed: float


@dataclass(frozen=True)
class Candidate:
    """One configuration that was tried. refused: why it cannot be opened or its replay did not pass; it is not timed then."""

    changed: str
    options: dict[str, str | int | bool]
    timing: Timing | None
    refused: str = ""


@dataclass(frozen=True)
class Tuned:
    """What `tune` found. gain: how many times faster the workload is, measured alternately at the end, 1 where nothing was
    kept.   kept: whether `load` runs it from now on."""

    configuration: Configuration
    gain: float
    kept: bool
    candidates: tuple[Candidate, ...]


class Listener(Protocol):
    """Is told what happens."""

    def stage(self, name: str) -> None: ...


def tune(
    path: str | PathLike[str],
    *,
    device: str | None = None,
    workload: Workload | None = None,
    listener: Listener | None = None,
    backends: Mapping[str, Backend] = BACKENDS,
) -> Tuned:
    """Searches, records what it chose and returns it. Two engines are open at a time.

    Raises what `load` raises, and UsageError where nothing can be chosen on that device.
    """
    place = find_place(path, device=device, expect=None, verify="stat", configuration=None, backends=backends)
    choices = levers(place.manifest, place.device)
    if not choices:
        raise UsageError(f"{path}: nothing is to be tuned of {place.manifest.target.backend} on {place.device}")
    if GOLDEN not in {entry.path for entry in place.manifest.files}:
        raise NotValidated(f"{path} has no {GOLDEN} to prove a choice with: rebuild with `{place.manifest.rebuild}`")
    place.verify(full=False)
    search = _Search(place, workload or Workload(), listener)
    try:
        for name, values in choices:
            for value in values:
                search.consider(name, value)
        return search.finish()
    finally:
        search.close()


def forget(path: str | PathLike[str], *, device: str | None = None, backends: Mapping[str, Backend] = BACKENDS) -> bool:
    """Whether something had been chosen; `load` runs the sealed configuration again. Raises what `load` raises."""
    state = find_place(path, device=device, expect=None, verify="stat", configuration=None, backends=backends).state
    known = state.tuned() is not None
    state.forget_tuned()
    return known


class _Search:
    def __init__(self, place: Place, workload: Workload, listener: Listener | None) -> None:
        self._place, self._workload, self._listener = place, workload, listener
        self._first = place.manifest.configurations[0]
        self._best = self._open(dict(self._first.options))
        self._verdict: Verdict | None = None
        self._candidates: list[Candidate] = []

    def consider(self, name: str, value: str | int) -> None:
        """Tries the best so far with one option changed, and goes on with it where it is faster."""
        options = {**self._best.configuration.options, name: value}
        if name == "chunk" and int(options.get("slack", value)) < int(value):
            options["slack"] = value  # a chunk has to fit in it
        default = _DEFAULTS.get(name)
        if options.get(name) == self._best.configuration.options.get(name, default) or not fits(options):
            return
        self._say(f"{name}={value}")
        model, verdict, refused = self._proven(options)
        if model is None:
            self._candidates.append(Candidate(f"{name}={value}", options, None, refused))
            return
        timing = self._race(model)
        self._candidates.append(Candidate(f"{name}={value}", options, timing))
        if timing.speed < _MARGIN:
            model.close()
            return
        self._best.close()
        self._best, self._verdict = model, verdict

    def finish(self) -> Tuned:
        """Times the choice against the sealed configuration once more, and keeps it where it is faster."""
        options = dict(self._best.configuration.options)
        if self._verdict is None:
            self._place.state.forget_tuned()
            return Tuned(self._first, 1.0, False, tuple(self._candidates))
        self._say("the choice against the sealed configuration")
        chosen, self._best = self._best, self._open(dict(self._first.options))
        try:
            gain = self._race(chosen).speed
        finally:
            chosen.close()
        if gain < _MARGIN:
            self._place.state.forget_tuned()
            return Tuned(self._first, gain, False, tuple(self._candidates))
        kept = self._place.state.record_tuned(options, gain=gain)
        if kept is not None:
            self._place.state.record_verdict(kept.name, DeviceVerdict("pass", self._verdict.figures))
        return Tuned(kept or Configuration("tuned", options), gain, kept is not None, tuple(self._candidates))

    def close(self) -> None:
        self._best.close()

    def _say(self, what: str) -> None:
        if self._listener is not None:
            self._listener.stage(f"try {what}")

    def _open(self, options: dict[str, str | int | bool]) -> Model:
        place = self._place
        engine = place.module.open(place.folder, place.manifest, place.device, options)
        return Model(place.folder, place.manifest, engine, device=place.device, configuration=Configuration("candidate", options))

    def _proven(self, options: dict[str, str | int | bool]) -> tuple[Model | None, Verdict | None, str]:
        """An open model whose golden replay passed, or why there is none."""
        try:
            model = self._open(options)
        except ArtifactError as error:
            return None, None, str(error)
        try:
            verdict = golden_verdict(model)
        except BaseException:
            model.close()
            raise
        if verdict.passed:
            return model, verdict, ""
        model.close()
        return None, None, "; ".join(verdict.failures)

    def _race(self, other: Model) -> Timing:
        """The other against the best, alternately."""
        for model in (self._best, other):
            self._time(model, seed=0)  # packs weights
        ratios, firsts, tokens = [], [], []
        for number in range(self._workload.rounds):
            order = (self._best, other) if number % 2 else (other, self._best)
            found = {id(model): self._time(model, seed=number) for model in order}
            mine, its = found[id(self._best)], found[id(other)]
            ratios.append(self._cost(*mine) / self._cost(*its))
            firsts.append(its[0])
            tokens.append(its[1])
        return Timing(*(round(statistics.median(values), 5) for values in (firsts, tokens, ratios)))

    def _cost(self, first: float, each: float) -> float:
        return first + each * (self._workload.new_tokens - 1)

    def _time(self, model: Model, *, seed: int) -> tuple[float, float]:
        """Seconds to the first token behind a random prompt, and of one of those that follow."""
        prompt = np.random.default_rng(seed).integers(0, model.info.vocab_size, (1, self._workload.prompt))
        with model.session() as session:
            began = time.perf_counter()
            token = session.append(prompt)[0, 0].argmax()
            first = time.perf_counter()
            for _ in range(_DECODED):
                token = session.append([[token]])[0, 0].argmax()
            return first - began, (time.perf_counter() - first) / _DECODED


_DEFAULTS: dict[str, str | int] = {"attention": "stateful", "kernels": "engine", "threads": 0, "chunk": DEFAULT_CHUNK}
"""What an option is where a configuration does not name it."""
