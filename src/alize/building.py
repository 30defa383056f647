"""The pipeline: from a checkpoint to a sealed artifact."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from alize.artifact import Building, DeviceState, DeviceVerdict, Manifest
from alize.artifact.pieces import Unfinished, build_key
from alize.calibration_text import CalibrationText
from alize.companions import copy_companions, write_chat_form
from alize.compilers import (
    PROOF_BACKENDS,
    Compiler,
    DevicePlan,
    compiler_for,
    lowering_options,
    normal_weights,
    weights_for,
)
from alize.drafting import as_sliced, draft_manifest, model_info, stored_as
from alize.engine_options import NO_ENGINE_OPTIONS, EngineOptions, check_gpu
from alize.errors import ValidationFailed
from alize.estimate import Estimate, estimate
from alize.export.hub import export_hub
from alize.mixing import Mix, check_budget, plan_mix, text_for_mix
from alize.models.checkpoint import Checkpoint
from alize.models.read_adapter import merge_adapter
from alize.models.registry import single_weights
from alize.nvidia import PACKAGES
from alize.optimize.openvino_slices import Slices
from alize.optimize.quantisation import MIXED, Quantisation
from alize.optimize.rounded import Rounded
from alize.progress import Progress, SilentProgress, reporter
from alize.record import BUILD_RECORD, INSPECT, BuildRecord
from alize.report import render
from alize.rounding import round_weights
from alize.runtimes.golden import GOLDEN, write_golden
from alize.runtimes.registry import backend_module, check_device
from alize.source import Resolved, resolve
from alize.validate.cases import plan_for
from alize.validate.judge import Budget
from alize.validate.run import Outcome, validate_folder

__all__ = ["REPORT", "build", "estimate_build"]

REPORT = "report.html"


def build(
    source: str,
    *,
    output: Path,
    target: str,
    device: str | None = None,
    weights: str | None = None,
    experts: str | None = None,
    revision: str | None = None,
    adapter: Path | None = None,
    budget_seconds: float | None = None,
    budget: Budget | None = None,
    quantisation_budget: float | None = None,
    group_size: str | None = None,
    asymmetric: bool = False,
    bits: float | None = None,
    calibrate: str | None = None,
    force: bool = False,
    resume: bool = True,
    max_memory: int | None = None,
    engine: EngineOptions = NO_ENGINE_OPTIONS,
    progress: Progress | None = None,
) -> Manifest:
    """Compiles `source` for `target`, validates the result against PyTorch and seals it as the folder `output`.

    source: a Hugging Face checkpoint folder or a hub id (with `revision`). adapter: folder of a PEFT LoRA adapter, merged into
    the weights while they are read. weights: fp32, fp16, bf16, int8, int4 or mixed, by default what the checkpoint holds;
    group_size (128, 64, 32, channel) and asymmetric say how integers are grouped and centred. bits: what a weight of a mix of
    int4 and int8 may take on average, scales counted, by default 5.
    calibrate: a file of plain text that integers are rounded for, or "built-in"; by default the weights alone decide.
    experts: the form that a mixture of experts is lowered to, apart or tiled, by default what suits the device.
    budget_seconds: time for the validation, by default 300 or what its minimum set takes; what it leaves out is written down.
    Below the minimum the verdict is "partial", which `load` refuses; 0 leaves out all of it. budget: what each kind of
    difference may be, by default `Budget.for_weights`; quantisation_budget changes its mean KL for what the weights lose.
    force: replace an artifact. resume: an interrupted build keeps what it has finished in `.NAME.unfinished` beside the
    output, and goes on from there when it is called again.
    max_memory: bytes of anonymous memory that may be used, where that is less than the machine has available.
    device: of the target, by default its first.   engine: what an engine for NVIDIA GPUs is compiled for.

    Raises UsageError, SourceError, BuildError, BackendUnavailable; ValidationFailed when the artifact does not say what
    PyTorch says: nothing is sealed then, and the report is left beside `output`.
    """
    progress = progress or SilentProgress()
    job = _prepare(
        source,
        output=output,
        target=target,
        device=device,
        weights=weights,
        experts=experts,
        group_size=group_size,
        asymmetric=asymmetric,
        bits=bits,
        calibrate=calibrate,
        revision=revision,
        adapter=adapter,
        budget_seconds=budget_seconds,
        max_memory=max_memory,
        engine=engine,
        progress=progress,
    )
    compiler, checkpoint, expected, device = job.compiler, job.checkpoint, job.estimate, job.device
    budget = budget or Budget.for_weights(job.weights)
    if quantisation_budget is not None:
        budget = dataclasses.replace(budget, quantisation_kl=quantisation_budget)
    progress.note(expected.line())
    expected.check()
    with (
        Building(output, overwrite=force) as building,
        Unfinished(building.output, resume=resume) as unfinished,
        BuildRecord(progress, expected.as_dict()) as record,
    ):
        progress = record
        progress.stage("hash the checkpoint", total_bytes=sum(tensor.size for tensor in checkpoint.tensors.values()))
        checkpoint.sha256(advance=progress.advance)
        if checkpoint.adapter is not None:
            progress.stage("hash the adapter", total_bytes=checkpoint.adapter.size)
            checkpoint.adapter.sha256(advance=progress.advance)
        draft = draft_manifest(
            checkpoint, compiler, device=device, weights=job.weights, options=job.options, origin=job.resolved, text=job.text
        )
        if expected.slices is not None:
            draft = as_sliced(draft, compiler)
        if found := unfinished.begin(build_key(draft)):
            progress.note(found)
        mix = None if job.sample is None else plan_mix(checkpoint, job.weights, job.sample, unfinished.pieces, progress=progress)
        rounded = round_weights(checkpoint, job.weights, unfinished.pieces, text=job.text, mix=mix, progress=progress)
        draft = _compile(building.folder, draft, checkpoint, compiler, rounded, mix, progress=progress, slices=expected.slices)
        outcome = validate_folder(
            building.folder,
            draft,
            checkpoint,
            compiler,
            budget=budget,
            budget_seconds=budget_seconds,
            progress=progress,
            slices=expected.slices,
            rounded=rounded,
            pieces=unfinished.pieces,
        )
        checkpoint.check_unchanged()
        for name in compiler.temporary:
            (building.folder / name).unlink(missing_ok=True)
        draft = dataclasses.replace(draft, validation=outcome.validation)
        progress.stage("report")
        _write_proof(building.folder, draft, outcome, output, mix)
        record.write(building.folder)
        progress.stage("seal", total_bytes=sum(_sizes(building.folder).values()))
        manifest = building.seal(
            draft, unsealed=(BUILD_RECORD,), advance=progress.advance, hashed=lambda: record.write(building.folder)
        )
        progress.note(record.summary())
    if manifest.validation.verdict == "pass" and job.plan.proof == device:  # no replay needed: the whole validation ran on it
        state = DeviceState(manifest.digest, backend_module(target).fingerprint(device))
        state.record_verdict(manifest.configurations[0].name, DeviceVerdict("pass"))
    return manifest


def estimate_build(
    source: str,
    *,
    output: Path,
    target: str,
    device: str | None = None,
    weights: str | None = None,
    experts: str | None = None,
    revision: str | None = None,
    adapter: Path | None = None,
    budget_seconds: float | None = None,
    group_size: str | None = None,
    asymmetric: bool = False,
    bits: float | None = None,
    calibrate: str | None = None,
    max_memory: int | None = None,
    engine: EngineOptions = NO_ENGINE_OPTIONS,
    progress: Progress | None = None,
) -> Estimate:
    """What `build` with these options would need, from config.json and the shards' headers: nothing is built. Of a hub id the
    checkpoint is fetched first. Raises what `build` raises before it starts, but for what would not fit: that is in the result.
    """
    progress = progress or SilentProgress()
    return _prepare(
        source,
        output=output,
        target=target,
        device=device,
        weights=weights,
        experts=experts,
        group_size=group_size,
        asymmetric=asymmetric,
        bits=bits,
        calibrate=calibrate,
        revision=revision,
        adapter=adapter,
        budget_seconds=budget_seconds,
        max_memory=max_memory,
        engine=engine,
        progress=progress,
    ).estimate


@dataclass(frozen=True)
class _Job:
    """What is settled before a build starts."""

    compiler: Compiler
    device: str
    plan: DevicePlan
    resolved: Resolved
    checkpoint: Checkpoint
    weights: str
    options: dict[str, str]
    text: CalibrationText | None
    sample: CalibrationText | None
    estimate: Estimate


def _prepare(
    source: str,
    *,
    output: Path,
    target: str,
    device: str | None,
    weights: str | None,
    experts: str | None,
    group_size: str | None,
    asymmetric: bool,
    bits: float | None,
    calibrate: str | None,
    revision: str | None,
    adapter: Path | None,
    budget_seconds: float | None,
    max_memory: int | None,
    engine: EngineOptions,
    progress: Progress,
) -> _Job:
    """Finds the checkpoint and refuses what can't be expressed, before any work is done."""
    compiler = compiler_for(target)
    device = next(iter(compiler.devices)) if device is None else device
    compiler, plan = compiler.on(device), compiler.plan(device)
    backend = plan.backend or target
    compiler.versions()  # or it cannot be built here
    check_device(backend, backend_module(backend, backends=PROOF_BACKENDS), plan.proof)
    resolved = resolve(source, revision=revision, progress=reporter(progress))
    checkpoint = Checkpoint.open(resolved.folder)
    info = model_info(checkpoint)
    if adapter is not None:
        merge_adapter(checkpoint, adapter)
    asked = None if weights is None else normal_weights(weights, group_size=group_size, asymmetric=asymmetric, bits=bits)
    stored = weights_for(plan, device, asked=asked, stored=stored_as(checkpoint))
    normal_weights(stored, group_size=group_size, asymmetric=asymmetric, bits=bits)  # refused of a float type, asked for or not
    if quantisation := Quantisation.parse(stored):
        check_budget({name: weight.shape for name, weight in single_weights(checkpoint).items()}, quantisation)
    text = None if calibrate is None else CalibrationText.chosen(calibrate, stored, checkpoint)
    sample = text_for_mix(stored, text, checkpoint)
    options = lowering_options(compiler, info, device=device, experts=experts, engine=engine, weights=stored)
    if target in PACKAGES:
        check_gpu(PACKAGES[target], options["sm"])
    expected = estimate(
        checkpoint,
        info,
        plan_for(checkpoint, info, budget_seconds),
        target=target,
        weights=stored,
        output=output,
        choices=plan.weights,
        calibrated=calibrate is not None,
        plans=len(options["sm"].split(",")) if target in PACKAGES else 0,
        max_memory=max_memory,
    )
    return _Job(compiler, device, plan, resolved, checkpoint, stored, options, text, sample, expected)


def _compile(
    folder: Path,
    draft: Manifest,
    checkpoint: Checkpoint,
    compiler: Compiler,
    rounded: Rounded | None,
    mix: Mix | None,
    *,
    progress: Progress,
    slices: Slices | None,
) -> Manifest:
    """Writes the target's files and what travels with them into FOLDER; returns the draft with passes and structure."""
    progress.stage("export to ONNX")
    hub = export_hub(checkpoint)
    progress.stage(f"lower to {compiler.target}")
    target = draft.target
    passes = compiler.lowering.lower(hub, folder, weights=target.weights, options=target.options, rounded=rounded)
    checkpoint.check_unchanged()
    progress.stage(INSPECT)
    structure = compiler.lowering.check_structure(folder, draft.model, target.options, weights=target.weights, slices=slices)
    if rounded is not None:
        structure["integers_sha256"] = rounded.digest()
    if mix is not None:
        structure[MIXED] = mix.as_structure()
    progress.stage("companions")
    copy_companions(checkpoint, folder)
    compiler.companion.write(checkpoint, folder)
    write_chat_form(folder)
    return dataclasses.replace(draft, target=dataclasses.replace(draft.target, passes=passes, structure=structure))


def _write_proof(folder: Path, draft: Manifest, outcome: Outcome, output: Path, mix: Mix | None) -> None:
    """Golden prompts and report. Raises ValidationFailed, leaving the report beside `output`."""
    if outcome.replay:
        write_golden(folder / GOLDEN, outcome.replay, outcome.replay_budget)
    page = render(draft, outcome.evidence, _sizes(folder), mix)
    if outcome.validation.verdict == "fail":
        left = output.with_name(f"{output.name}.failed-report.html")
        left.write_text(page, encoding="utf-8")
        complaints = outcome.evidence.complaints
        more = f" (and {len(complaints) - 1} more findings)" if len(complaints) > 1 else ""
        raise ValidationFailed(
            f"the artifact does not say what PyTorch says: {complaints[0]}{more}; nothing was sealed, see {left}"
        )
    (folder / REPORT).write_text(page, encoding="utf-8")


def _sizes(folder: Path) -> dict[str, int]:
    """Size in bytes of each file, by its path inside FOLDER."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
