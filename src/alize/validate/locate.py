"""Where a failing artifact leaves the reference: the two are walked through their layers side by side, as far as they agree."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo
from alize.compiler_modules import Probe
from alize.models.checkpoint import Checkpoint
from alize.models.reference import Reference, WeightRule
from alize.models.routing import Routing
from alize.validate.cut_out import examine
from alize.validate.diagnose import Difference, first_difference, tap_names
from alize.validate.near_ties import far_choices

__all__ = ["Located", "locate"]

_TAP_BYTES = 256e6
"""Of the artifact's stream, held at once: as many layers are asked for in one run of it, and one at least."""

Taps = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Located:
    """findings: what is wrong at the first difference; none where there is no difference.   layer, experts: whose answer is."""

    findings: tuple[str, ...] = ()
    layer: int = 0
    experts: tuple[int, ...] = ()


def locate(
    probe: Probe,
    folder: Path,
    checkpoint: Checkpoint,
    info: ModelInfo,
    tokens: NDArray[np.int64],
    *,
    rule: WeightRule,
    factor: float,
) -> Located:
    """The first layer, part and position over tokens [S] where the artifact leaves the reference, and what is wrong there.

    The reference uses the experts that the artifact chose, so that a difference is blamed on the layer that it begins in; a
    choice further off than `factor` times the float32 floor of the router's logits is such a difference itself. Empty where
    the two agree.
    """
    plain, split = (Reference(checkpoint, weights=rule, summation=order).walk(tokens) for order in ("plain", "split"))
    for layer, artifact, chosen in _layers(probe, folder, info, tokens):
        (expected, routing), (other, _) = plain.advance(chosen), split.advance(chosen)
        found = first_difference(expected, other, artifact, info)
        if routing is not None and chosen is not None and (found is None or found.part == "mlp"):
            name = f"layers.{layer}.router_logits"
            tolerance = np.array([factor * np.abs(expected[name] - other[name]).max()])
            far = far_choices(Routing.stack([routing]), chosen[None], tolerance, first_layer=layer)
            if far:
                return Located((str(far[0]),))
        if found is not None and found.part == "mlp" and info.experts:
            return _experts(found, probe, folder, Reference(checkpoint, weights=rule), info, factor)
        if found is not None:
            return Located((str(found),))
    return Located()


def _layers(
    probe: Probe, folder: Path, info: ModelInfo, tokens: NDArray[np.int64]
) -> Iterator[tuple[int, Taps, NDArray[np.int64] | None]]:
    """Layer by layer: its points, and the experts [S,top_k] that it chose."""
    width = info.query_heads * info.head_size + 2 * info.hidden_size + info.experts + info.experts_per_token
    at_once = max(1, int(_TAP_BYTES / (4 * width * len(tokens))))
    for start in range(0, info.layers, at_once):
        layers = range(start, min(start + at_once, info.layers))
        names = [name for name in tap_names(info) if int(name.split(".")[1]) in layers]
        experts = [f"layers.{layer}.experts" for layer in layers] if info.experts else []
        held: dict[str, Any] = probe.residual_stream(folder, tokens, [*names, *experts])
        for layer in layers:
            chosen = held.get(f"layers.{layer}.experts")
            own = {name: held[name] for name in names if int(name.split(".")[1]) == layer}
            yield layer, own, None if chosen is None else chosen.astype(np.int64)


def _experts(found: Difference, probe: Probe, folder: Path, reference: Reference, info: ModelInfo, factor: float) -> Located:
    """What the cut-out layer says of the experts behind which the stream differs."""
    mixture = reference.mixture(found.layer)
    cut = examine(probe, folder, mixture, found.layer, range(info.experts), top_k=info.experts_per_token, factor=factor)
    where = f"from position {found.position} on"
    if not cut.findings:
        what = "the norm before the experts or what becomes of their answer is wrong: cut out, they are right"
        return Located((f"layer {found.layer}, MLP, {where}: {what}",))
    return Located(tuple(f"{finding}, {where}" for finding in cut.findings), found.layer, cut.wrong)
