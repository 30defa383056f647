"""load: from an artifact's folder to a Model that has proven itself on this device."""

import json
import logging
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from alize.artifact import manifest as manifests
from alize.artifact.manifest import Configuration, Manifest, ModelInfo
from alize.artifact.seal import verify as verify_files
from alize.artifact.state import TUNED, DeviceState, DeviceVerdict
from alize.errors import BackendUnavailable, NotValidated, SessionClosed, UsageError
from alize.runtimes.golden import GOLDEN, Verdict, judge, measure, read_golden
from alize.runtimes.kernels import missing
from alize.runtimes.registry import BACKENDS, Backend, BackendModule, Engine, KeepingEngine, backend_module, check_device
from alize.runtimes.session import Limits, Session, session_limits
from alize.runtimes.text import Tokenizer

__all__ = ["Model", "Place", "find_place", "golden_verdict", "load", "replay"]

_log = logging.getLogger("alize")


class Model:
    """Weights and compiled graph of one artifact on one device, shared by its sessions. Close it, or use it in `with`."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        engine: Engine,
        *,
        device: str,
        configuration: Configuration,
        fingerprint: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.manifest, self.device, self.configuration = folder, manifest, device, configuration
        self.limits: Limits = session_limits(manifest.model, configuration.options)
        self._engine: Engine | None = engine
        options = json.dumps(configuration.options, sort_keys=True)
        self._identity = {"artifact": manifest.digest, "configuration": options, **(fingerprint or {})}
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()

    @property
    def info(self) -> ModelInfo:
        """Sizes, windows and special token ids."""
        return self.manifest.model

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the artifact. Raises ArtifactError when it has none."""
        return Tokenizer(self.folder)

    def session(self, batch: int = 1) -> Session:
        """A fresh session of `batch` rows, for one thread. Raises SessionClosed behind `close`, UsageError."""
        if self._engine is None:
            raise SessionClosed("this model is closed: load it again")
        if batch < 1:
            raise UsageError(f"batch {batch} must be at least 1")
        runner, limits = self._engine.runner(batch), self.limits
        return Session(
            runner,
            self.info,
            batch=batch,
            chunk=limits.chunk,
            slack=limits.slack,
            family=self._sessions,
            identity=self._identity,
        )

    def resume(self, path: Path, *, batch: int = 1) -> Session:
        """The session of `batch` rows that `Session.save` wrote, on this artifact, configuration and device: nothing is read
        again. Raises SessionError where it belongs to something else."""
        session = self.session(batch)
        try:
            session.restore(path)
        except BaseException:
            session.reset()
            session.close()
            raise
        return session

    def keep(self) -> None:
        """Lets later processes open this faster, where the engine knows how. What it says has to be known to be right."""
        if isinstance(self._engine, KeepingEngine):
            self._engine.keep()

    def close(self) -> None:
        """Close every session and release the weights. May be called again."""
        for session in list(self._sessions):
            session.close()
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def load(
    path: str | PathLike[str],
    *,
    device: str | None = None,
    expect: str | None = None,
    verify: Literal["stat", "full"] = "stat",
    configuration: str | None = None,
    unsafe_skip_validation: bool = False,
    backends: Mapping[str, Backend] = BACKENDS,
) -> Model:
    """Open an artifact on a device, after checking that it is what was sealed and says here what it should.

    device: by default the one it was built for.   expect: the digest that the manifest must have.   verify: "full" hashes
    every file, "stat" only those that changed since they were last hashed here.   configuration: the name of a runtime
    configuration of the manifest, or "tuned"; by default what `alize tune` chose for this device, else the manifest's first.

    On a device without a verdict the golden prompts are replayed, and the verdict is recorded. `unsafe_skip_validation`
    asks for no verdict at all: it warns at every load and is recorded.

    Raises ArtifactError (TamperedArtifact, UnknownSchema, NotValidated), BackendUnavailable, DeviceUnavailable, UsageError.
    """
    place = find_place(path, device=device, expect=expect, verify=verify, configuration=configuration, backends=backends)
    if unsafe_skip_validation:
        _log.warning("%s runs WITHOUT VALIDATION on %s: nothing says that its output is right", path, place.device)
        place.verify(full=verify == "full")
        place.record(DeviceVerdict("skipped"), unless="pass")
        return place.open()
    _check_manifest(place.folder, place.manifest)
    _check_known(place)
    place.verify(full=verify == "full")
    model = place.open()
    try:
        _check_here(place, model)
        model.keep()
    except BaseException:
        model.close()
        raise
    return model


def replay(
    path: str | PathLike[str],
    *,
    device: str | None = None,
    expect: str | None = None,
    configuration: str | None = None,
    backends: Mapping[str, Backend] = BACKENDS,
) -> Verdict:
    """Hash every file, replay the golden prompts on a device whatever is recorded, and record the verdict.

    Raises what `load` raises, but returns a verdict that failed.
    """
    place = find_place(path, device=device, expect=expect, verify="full", configuration=configuration, backends=backends)
    place.verify(full=True)
    with place.open() as model:
        return _replay(place, model)


@dataclass(frozen=True)
class Place:
    """An artifact, a device and a configuration that belong together."""

    folder: Path
    manifest: Manifest
    module: BackendModule
    device: str
    configuration: Configuration
    state: DeviceState

    def verify(self, *, full: bool) -> None:
        verify_files(self.folder, self.manifest, state=self.state, full=full)

    def open(self) -> Model:
        engine = self.module.open(self.folder, self.manifest, self.device, self.configuration.options)
        return Model(
            self.folder,
            self.manifest,
            engine,
            device=self.device,
            configuration=self.configuration,
            fingerprint=self.state.fingerprint,
        )

    def record(self, verdict: DeviceVerdict, *, unless: str = "") -> None:
        known = self.state.verdict(self.configuration.name)
        if known is None or known.verdict != unless:
            self.state.record_verdict(self.configuration.name, verdict)


def find_place(
    path: str | PathLike[str],
    *,
    device: str | None,
    expect: str | None,
    verify: str,
    configuration: str | None,
    backends: Mapping[str, Backend],
) -> Place:
    """The artifact, the device and the configuration that these options of `load` mean. Raises what `load` raises of them."""
    if verify not in ("stat", "full"):
        raise UsageError(f"verify {verify!r} must be 'stat' or 'full'")
    path = Path(path)
    manifest = manifests.read(path, expect=expect)
    _check_name(path, manifest, configuration)
    module = backend_module(manifest.target.backend, backends=backends)
    device = manifest.target.device if device is None else device
    check_device(manifest.target.backend, module, device)
    state = DeviceState(manifest.digest, module.fingerprint(device))
    return Place(path, manifest, module, device, _configuration(path, manifest, configuration, state), state)


def _check_name(path: Path, manifest: Manifest, name: str | None) -> None:
    """Before a back-end is imported."""
    known = [configuration.name for configuration in manifest.configurations]
    if not known:
        raise NotValidated(f"{path} has no runtime configuration with a passing verdict: rebuild with `{manifest.rebuild}`")
    if name not in (None, TUNED, *known):
        raise UsageError(f"{path} has no configuration {name!r}: use one of {', '.join(known)}")


def _configuration(path: Path, manifest: Manifest, name: str | None, state: DeviceState) -> Configuration:
    tuned = state.tuned() if name in (None, TUNED) else None
    if tuned is not None:
        known = state.verdict(tuned.name)
        why = missing(tuned.options) if name is None else None  # asked for by name it is refused when it is opened
        if why is not None:
            _log.warning("%s was tuned here, and what was chosen cannot run any more: %s", path, why)
        elif known is not None and known.verdict == "fail":
            _log.warning("%s was tuned here, and what was chosen fails its replay: `alize tune %s` chooses again", path, path)
        else:
            return tuned
    if name == TUNED:
        raise UsageError(f"{path} was not tuned on this device: `alize tune {path}` does that")
    if name is not None:
        return next(one for one in manifest.configurations if one.name == name)
    for one in manifest.configurations:
        why = missing(one.options)
        if why is None:
            return one
        _log.warning("%s: configuration %s cannot run here: %s", path, one.name, why)
    raise BackendUnavailable(f"{path}: none of its configurations can run here: rebuild with `{manifest.rebuild}`")


def _check_manifest(path: Path, manifest: Manifest) -> None:
    verdict = manifest.validation.verdict
    if verdict != "pass":
        left_out = f", left out: {', '.join(manifest.validation.left_out)}" if manifest.validation.left_out else ""
        raise NotValidated(f"{path} has the verdict {verdict!r}, not 'pass'{left_out}: rebuild with `{manifest.rebuild}`")


def _check_known(place: Place) -> None:
    known = place.state.verdict(place.configuration.name)
    if known is not None and known.verdict == "fail":
        raise NotValidated(
            f"{place.folder} failed its replay on {place.device} before: `alize validate {place.folder}` repeats it,"
            f" `{place.manifest.rebuild}` rebuilds"
        )


def _check_here(place: Place, model: Model) -> None:
    known = place.state.verdict(place.configuration.name)
    if known is not None and known.verdict == "pass":
        return
    verdict = _replay(place, model)
    if not verdict.passed:
        raise NotValidated(
            f"{place.folder} does not say on {place.device} what the reference says ({'; '.join(verdict.failures)}):"
            f" `alize validate {place.folder}` repeats this, `{place.manifest.rebuild}` rebuilds"
        )


def golden_verdict(model: Model) -> Verdict:
    """The golden prompts, replayed on this model and judged by their budget. Raises what the engine raises."""
    budget, cases = read_golden(model.folder / GOLDEN)
    with model.session() as session:
        return judge(measure(session, cases), budget)


def _replay(place: Place, model: Model) -> Verdict:
    remedy = f"`alize validate {place.folder}` repeats it, `{place.manifest.rebuild}` rebuilds"
    if GOLDEN not in {entry.path for entry in place.manifest.files}:
        raise NotValidated(f"{place.folder} has no {GOLDEN} to replay on {place.device}: rebuild with `{place.manifest.rebuild}`")
    try:
        verdict = golden_verdict(model)
    except Exception as error:  # an engine raises what it likes; without a replay there is no verdict
        raise NotValidated(f"the replay of {place.folder} cannot run on {place.device} ({error}): {remedy}") from error
    place.record(DeviceVerdict("pass" if verdict.passed else "fail", verdict.figures))
    return verdict
