"""Why an artifact differs: which weight, which layer, which part of it, and from which position on.

What the heads attended to and the residual stream of artifact and reference are compared layer by layer. The first place
where they part names the layer; how they part there names the kind of mistake:

    heads, position 0, all         the norm or the value projection: position 0 sees itself alone, so neither rotary embedding
                                   nor window can matter yet
    heads, some of them            the order of the heads, or a projection of theirs
    heads, position 1..W-2, all    the rotary embedding, or the mask
    heads, position W-1            the window is narrower than W          position W    it is wider, or not there
    attention                      the output projection
    router logits                  the router, or the norm before it
    MLP                            a projection or the norm of the MLP; experts are cut out (`alize.validate.cut_out`)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo
from alize.errors import UnsupportedModel
from alize.models.checkpoint import Checkpoint, Weight
from alize.optimize.quantisation import Quantisation
from alize.optimize.round_to_integers import Integers
from alize.optimize.rounded import IntegerSource, rounded_now
from alize.validate.stored import changed_integers

__all__ = ["Difference", "changed_weights", "first_difference", "tap_names"]

_FACTOR = 100.0
"""A point of the residual stream differs where its error passes this many times the floor's there (float32 in another
order), or _RELATIVE of the stream's own size, whichever is larger."""
_RELATIVE = 1e-4


def changed_weights(
    stored: Iterable[tuple[str, torch.Tensor | Integers]],
    checkpoint: Checkpoint,
    weights: Mapping[str, Weight],
    *,
    quantisation: Quantisation | None = None,
    integers: IntegerSource | None = None,
) -> list[str]:
    """One line for each weight whose stored values are not the checkpoint's converted to the stored dtype, or is missing.

    With `quantisation`, matrices have to be the very integers, scales and zero points that `integers` gives, by default those
    that the checkpoint's are rounded to now.

    Raises CorruptCheckpoint (NaN or infinite weights), UnsupportedModel (weights that overflow in the stored dtype): the
    reference run reads only those rows of the embeddings that its tokens ask for.
    """
    findings, seen = [], set()
    if quantisation is not None and integers is None:
        integers = rounded_now(checkpoint, weights, quantisation)
    for name, values in stored:
        if name not in weights:
            findings.append(f"weight {name} is not one of the model's")
            continue
        seen.add(name)
        form = None if quantisation is None else quantisation.form(name, weights[name].shape)
        if isinstance(values, Integers):
            if form is None or integers is None:
                findings.append(f"weight {name} is stored as integers, and should be in floats")
            elif changed := changed_integers(name, values, integers(name)):
                findings.append(changed)
            continue
        if form is not None:
            findings.append(f"weight {name} is stored as {values.dtype}, and should be as integers")
            continue
        expected = checkpoint.read(weights[name], values.dtype)
        _check_finite(name, expected, checkpoint, weights[name])
        if values.shape != expected.shape:
            findings.append(f"weight {name} has shape {list(values.shape)}, the checkpoint's is {list(expected.shape)}")
        elif not torch.equal(values, expected):
            wrong = int((values != expected).sum())
            where = (values != expected).nonzero()[0].tolist()
            findings.append(
                f"weight {name} differs from the checkpoint's in {wrong} of {values.numel()} values, first at {where}"
            )
    findings += [f"weight {name} is not in the artifact" for name in sorted(weights.keys() - seen)]
    return findings


def _check_finite(name: str, values: torch.Tensor, checkpoint: Checkpoint, weight: Weight) -> None:
    if values.numel() and not torch.stack(torch.aminmax(values)).isfinite().all():
        for source in weight.sources:
            checkpoint.check_finite(source)
        raise UnsupportedModel(f"{name} does not fit in {values.dtype}: a value overflows; use --weights bf16 or fp32")


@dataclass(frozen=True)
class Difference:
    """The first point that differs.   part: as in its name.   position: of the first token where it does."""

    layer: int
    part: str
    position: int
    text: str

    def __str__(self) -> str:
        return self.text


def first_difference(
    reference: Mapping[str, NDArray[np.float32]],
    floor: Mapping[str, NDArray[np.float32]],
    artifact: Mapping[str, NDArray[np.float32]],
    info: ModelInfo,
) -> Difference | None:
    """The first of the reference's points where the artifact leaves it; None where it never does.

    Each maps names of `tap_names` to float32 [S,H*D] (heads), [S,E] (router_logits) or [S,M]; `floor` is the reference in
    another order.
    """
    for name in (name for name in tap_names(info) if name in reference):
        error = np.abs(reference[name] - artifact[name])
        allowed = _FACTOR * float(np.abs(reference[name] - floor[name]).max())
        allowed = max(allowed, _RELATIVE * float(np.abs(reference[name]).max()))
        wrong = ~(error <= allowed)
        if wrong.any():
            position = int(np.flatnonzero(wrong.any(axis=1))[0])
            layer, part = int(name.split(".")[1]), name.split(".")[2]
            heads = np.flatnonzero(wrong.reshape(len(wrong), info.query_heads, -1).any(axis=(0, 2))) if part == "heads" else _NONE
            what = _explain(part, position, info.windows[layer], heads.tolist(), info.query_heads)
            where = f"layer {layer}, {_HALVES.get(part, 'attention')}, from position {position} on"
            text = f"{where}: {what} (error {error.max():.2g}, allowed {allowed:.2g})"
            return Difference(layer, part, position, text)
    return None


def tap_names(info: ModelInfo) -> list[str]:
    """The points that are compared, in the order of computation, by the names that the hub gives them."""
    parts = ("heads", "attention", *(("router_logits",) if info.experts else ()), "mlp")
    return [f"layers.{layer}.{part}" for layer in range(info.layers) for part in parts]


_HALVES = {"router_logits": "router", "mlp": "MLP"}
_NONE: NDArray[np.int64] = np.zeros(0, np.int64)


def _explain(part: str, position: int, window: int, heads: list[int], count: int) -> str:
    if part == "router_logits":
        return "the router or the norm before it is wrong"
    if part == "mlp":
        return "a projection or the norm of the MLP is wrong"
    if part == "attention":
        return "the output projection is wrong"
    if len(heads) < count:
        return f"the order of the heads is wrong, or a projection of theirs: heads {', '.join(map(str, heads))} differ"
    if position == 0:
        return "the norm before the attention or the value projection is wrong"
    if window and position == window - 1:
        return f"the window is narrower than {window}"
    if window and position == window:
        return f"the window is wider than {window} or missing"
    return "the rotary embedding or the mask is wrong"
