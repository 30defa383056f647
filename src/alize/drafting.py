"""What of a manifest is decided before anything is compiled: the source, the model, the target and its configurations."""

import dataclasses

from alize import __version__
from alize.artifact import Manifest, ModelInfo, Source, Target, Validation
from alize.calibration_text import CalibrationText
from alize.compilers import Compiler, lowering_options
from alize.engine_options import compiled_for
from alize.models.checkpoint import Checkpoint
from alize.models.prequantised import format_name
from alize.models.registry import family_for, single_weights
from alize.models.session import model_info as info_of
from alize.optimize.quantisation import Quantisation
from alize.source import Resolved

__all__ = ["draft_manifest", "model_info", "stored_as"]


def stored_as(checkpoint: Checkpoint) -> str:
    """The precision that keeps the checkpoint's weights bit for bit: its own, or fp32 where it mixes several."""
    dtypes = {info.dtype for info in checkpoint.tensors.values()}
    return {"BF16": "bf16", "F16": "fp16"}.get("".join(dtypes), "fp32")


def model_info(checkpoint: Checkpoint) -> ModelInfo:
    """What a runtime has to know of the checkpoint's model. Raises UnsupportedModel."""
    return info_of(family_for(checkpoint.config).config.from_dict(checkpoint.config))


def draft_manifest(
    checkpoint: Checkpoint,
    compiler: Compiler,
    *,
    device: str,
    weights: str,
    experts: str | None = None,
    options: dict[str, str] | None = None,
    origin: Resolved | None = None,
    text: CalibrationText | None = None,
) -> Manifest:
    """The manifest as far as the checkpoint decides it: no passes, no structure, no verdict yet. Raises UsageError for a form
    of experts that the target or the model has not."""
    info = model_info(checkpoint)
    family = family_for(checkpoint.config)
    config = family.config.from_dict(checkpoint.config)
    resolved = origin or Resolved("folder", checkpoint.folder)
    named = resolved.repo or "SOURCE"
    revision = f" --revision {resolved.commit}" if resolved.commit else ""
    adapter = "" if checkpoint.adapter is None else " --adapter ADAPTER"
    if options is None:
        options = lowering_options(compiler, info, device=device, experts=experts)
    quantisation = Quantisation.parse(weights)
    shapes = {name: weight.shape for name, weight in single_weights(checkpoint).items()}
    chosen = f"--weights {weights}" if quantisation is None else quantisation.options
    chosen += "".join(f" --{name} {value}" for name, value in options.items())
    info, configurations = compiled_for(compiler.target, info, options, compiler.plan(device).configurations_for(weights, shapes))
    if text is not None:
        options = {**options, "calibrate": str(text)}
        chosen += f" {text.option}"
    return Manifest(
        alize=__version__,
        source=Source(
            kind=resolved.kind,
            repo=resolved.repo,
            commit=resolved.commit,
            sha256=checkpoint.sha256(),
            architecture=checkpoint.multimodal or str((checkpoint.config.get("architectures") or [family.model_type])[0]),
            family=family.model_type,
            config=dataclasses.asdict(config),
            quantised=None if checkpoint.quantization is None else format_name(checkpoint.quantization),
            adapter=None if checkpoint.adapter is None else checkpoint.adapter.sha256(),
        ),
        model=info,
        target=Target(compiler.target, device, weights, options, compiler.versions(), (), {}),
        configurations=configurations,
        validation=Validation("device-validated", "partial", (), {}, (), {}),
        rebuild=f"alize build {named}{revision}{adapter} --target {compiler.target} --device {device} {chosen} -o FOLDER",
    )


def as_sliced(draft: Manifest, compiler: Compiler) -> Manifest:
    """The same with the configurations that a validation in slices of layers can vouch for."""
    kept = [
        dataclasses.replace(
            one, options={name: value for name, value in one.options.items() if name not in compiler.slicer.WHOLE}
        )
        for one in draft.configurations
    ]
    return dataclasses.replace(draft, configurations=tuple(kept))
