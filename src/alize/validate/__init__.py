"""Does an artifact say what PyTorch says? `validate_artifact` asks again, of one that is sealed."""

import dataclasses
from pathlib import Path
from typing import Any

from alize.artifact import Manifest, read, verify
from alize.errors import SourceError, TamperedArtifact, UsageError
from alize.progress import Progress, SilentProgress, reporter

__all__ = ["validate_artifact"]


def validate_artifact(
    artifact: Path,
    *,
    source: str | None = None,
    adapter: Path | None = None,
    budget_seconds: float | None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Validates a sealed artifact again, here, and records the verdict for this device. The artifact is not written to.

    Without `source` the golden prompts are replayed (numpy only). With the checkpoint that it was built from, everything that
    `build` measures is measured anew; adapter: the one that was merged into that checkpoint. Every file is hashed first. Returns
    verdict, level, left_out, cases and figures, and with a source the findings. Raises ArtifactError, SourceError, UsageError,
    BackendUnavailable.
    """
    progress = progress or SilentProgress()
    if source is None:
        if adapter is not None:
            raise UsageError(f"--adapter {adapter} is compared together with the checkpoint only: give --source too")
        return _replay(artifact, progress)
    from alize.compilers import compiler_for
    from alize.models.checkpoint import Checkpoint
    from alize.source import resolve
    from alize.validate.judge import Budget
    from alize.validate.run import validate_folder

    manifest = read(artifact)
    if compiler_for(manifest.target.backend).temporary:
        raise UsageError(
            f"{artifact} keeps the graph that was proven without its weights, so --source cannot prove it again: leave it out to "
            f"replay the golden prompts, or `{manifest.rebuild}`"
        )
    progress.stage("verify", total_bytes=sum(entry.size for entry in manifest.files))
    verify(artifact, manifest, full=True, advance=progress.advance)
    checkpoint = Checkpoint.open(resolve(source, progress=reporter(progress)).folder)
    if checkpoint.sha256() != manifest.source.sha256:
        raise SourceError(
            f"{source} is not the checkpoint that {artifact} was built from: its sha256 is {checkpoint.sha256()[:12]}..., "
            f"the manifest says {manifest.source.sha256[:12]}...; give that one"
        )
    _merge(checkpoint, adapter, artifact, manifest)
    compiler = compiler_for(manifest.target.backend).on(manifest.target.device)
    budget = Budget(**manifest.validation.budget) if manifest.validation.budget else Budget.for_weights(manifest.target.weights)
    outcome = validate_folder(
        artifact,
        manifest,
        checkpoint,
        compiler,
        budget=budget,
        budget_seconds=budget_seconds,
        progress=progress,
        rounded=_calibrated(artifact, manifest, checkpoint, compiler) if "calibrate" in manifest.target.options else None,
    )
    _record(manifest, outcome.validation.verdict)
    return {**dataclasses.asdict(outcome.validation), "findings": list(outcome.evidence.complaints)}


def _calibrated(artifact: Path, manifest: Manifest, checkpoint: Any, compiler: Any) -> Any:
    """The integers that the artifact holds. What a calibration made is not made again, so they can only be compared with the
    identity that the manifest has of them; what they lose is measured like any loss."""
    from alize.models.registry import single_weights
    from alize.optimize.quantisation import Quantisation
    from alize.optimize.rounded import digest_of

    source = compiler.probe.stored_integers(artifact)
    quantisation = Quantisation.parse(manifest.target.weights, manifest.target.structure)
    assert quantisation is not None  # or nothing could be calibrated
    forms = {name: quantisation.form(name, weight.shape) for name, weight in single_weights(checkpoint).items()}
    found, named = (
        digest_of({name: form for name, form in forms.items() if form is not None}, source),
        manifest.target.structure["integers_sha256"],
    )
    if found != named:
        raise TamperedArtifact(
            f"{artifact} holds integers with the sha256 {found[:12]}..., its manifest names {str(named)[:12]}...: "
            f"rebuild it with `{manifest.rebuild}`"
        )
    return source


def _merge(checkpoint: Any, adapter: Path | None, artifact: Path, manifest: Manifest) -> None:
    """Merges the adapter, which has to be the one that the artifact was built with, or none."""
    from alize.models.read_adapter import merge_adapter

    built_with = manifest.source.adapter
    if adapter is None:
        if built_with is not None:
            raise UsageError(f"{artifact} was built with an adapter (sha256 {built_with[:12]}...): give it with --adapter")
        return
    found = merge_adapter(checkpoint, adapter).sha256()
    if found != built_with:
        said = "none" if built_with is None else f"sha256 {built_with[:12]}..."
        raise SourceError(
            f"{adapter} is not the adapter that {artifact} was built with: "
            f"its sha256 is {found[:12]}..., the manifest says {said}; give that one"
        )


def _replay(artifact: Path, progress: Progress) -> dict[str, Any]:
    from alize.runtimes.model import replay

    progress.stage("replay the golden prompts")
    verdict = replay(artifact)
    return {
        "verdict": "pass" if verdict.passed else "fail",
        "level": "golden replay",
        "left_out": list(verdict.failures),
        "cases": [],
        "figures": {"golden replay": verdict.figures},
    }


def _record(manifest: Any, verdict: str) -> None:
    """A passing or failing verdict is remembered for the device that it was measured on; a partial one says nothing."""
    from alize.artifact import DeviceState, DeviceVerdict
    from alize.compilers import compiler_for
    from alize.runtimes.registry import backend_module

    if verdict == "partial" or compiler_for(manifest.target.backend).plan(manifest.target.device).proof != manifest.target.device:
        return
    fingerprint = backend_module(manifest.target.backend).fingerprint(manifest.target.device)
    state = DeviceState(manifest.digest, fingerprint)
    state.record_verdict(manifest.configurations[0].name, DeviceVerdict("pass" if verdict == "pass" else "fail"))
