"""How much KL each matrix adds where it is rounded to 4 bits: estimated on a text, layer by layer, without running a mix.

A small change d of the logits costs KL = d^T (diag(p) - p p^T) d / 2, p being the probabilities. So the change of a matrix
costs half the mean square of what its outputs' change comes to along g, the gradient of v^T logits, v being random with that
covariance: v = r * e - p (r^T e), r = sqrt(p), e signs. Errors of different matrices are taken to be independent: what is asked
of a mix is then a sum. docs/weights.md compares it with measured KL.

With so few v the mean square over a sequence is right but noisy; the sum of the squares of its tokens is not noisy, but half of
what is right for a value projection, whose errors attention adds up. So tokens tell the layers apart, and the mean ratio of both,
over the layers, corrects each kind of matrix.

A forward pass keeps what goes into each layer, on the disk; going back, one layer is in memory with the products of the text in
it, and each matrix is rounded when it is multiplied with. What is finished is in the build's pieces: an interrupted one goes on.
"""

import copy
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name every PyTorch reader knows
from numpy.typing import NDArray
from torch import Tensor, nn

from alize.artifact.pieces import Pieces
from alize.errors import UnsupportedModel
from alize.mixing_costs import HEAD_POSITIONS, PROBES, WEIGH
from alize.models.checkpoint import Checkpoint
from alize.models.differentiable import Differentiable
from alize.models.mistral import Layer
from alize.models.registry import family_for
from alize.optimize.quantisation import Form, Quantisation, unit_of
from alize.optimize.round_to_integers import dequantised, quantised
from alize.progress import Progress

__all__ = ["Loss", "losses", "summed", "through_head"]

Loss = tuple[float, float]
"""KL in nats a token that a matrix adds in int4, and in int8."""

_HEAD_ROWS = 16384  # of the head in memory together
_SEED = 0


def losses(
    checkpoint: Checkpoint,
    quantisation: Quantisation,
    sequences: Sequence[NDArray[np.int64]],
    pieces: Pieces,
    *,
    progress: Progress,
) -> dict[str, Loss]:
    """Of every matrix that a mix chooses the form of, by name. What no token reaches (an expert) costs nothing.

    sequences: int64 [S] each, of one length. Raises CorruptCheckpoint (NaN or infinite weights, a shard that changed meanwhile),
    UnsupportedModel (a scale beyond float16, activations that are not finite).
    """
    found: dict[str, list[float]] = {}
    walk = _Walk(checkpoint, quantisation, np.stack(sequences), pieces, progress)
    progress.stage(WEIGH, steps=2 * walk.layers)
    with torch.no_grad():
        walk.start_over_if_torn()
        if not walk.done(0):
            walk.forward()
        for index in reversed(range(walk.layers)):
            if not walk.done(index):
                walk.back(index)
            path = pieces.get(_LAYER.format(index))
            assert path is not None
            found |= json.loads(path.read_bytes())
            progress.advance()
    wrong = next((name for name, figures in found.items() if not all(map(math.isfinite, figures))), None)
    if wrong is not None:
        raise UnsupportedModel(f"{wrong}: what it does to the text is not finite in float32: use --weights int4 or int8")
    walk.clear()
    return summed(found, 1 / (2 * PROBES * walk.tokens.numel()))


def summed(found: Mapping[str, Sequence[float]], scale: float) -> dict[str, Loss]:
    """found: name -> squares by token, squares by sequence, what of either is left in int8."""
    ratios = defaultdict[str, list[float]](list)
    for name, (by_token, by_sequence, _) in found.items():
        if by_token:
            ratios[_part(name)].append(by_sequence / by_token)
    losses = {}
    for name, (by_token, _, left) in sorted(found.items()):
        together = ratios[_part(name)]
        narrow = scale * by_token * (math.fsum(together) / len(together) if together else 0.0)
        losses[name] = (narrow, left * narrow)
    return losses


def _part(name: str) -> str:
    """The kind of matrix, the same in every layer."""
    return str(unit_of(name)).split(".", 2)[2]


_HIDDEN, _GRADIENT, _LAYER = "mix.hidden.{}", "mix.gradient.{}", "mix.layer.{}"
"""Pieces: what goes into a layer [B,S,M], gradients with regard to it [PROBES,B,S,M], and the losses of its matrices."""


class _Walk:
    def __init__(
        self, checkpoint: Checkpoint, quantisation: Quantisation, tokens: NDArray[np.int64], pieces: Pieces, progress: Progress
    ) -> None:
        family = family_for(checkpoint.config)
        self.checkpoint, self.quantisation, self.tokens = checkpoint, quantisation, torch.from_numpy(tokens)
        self.pieces, self.progress = pieces, progress
        self.config = family.config.from_dict(checkpoint.config)
        self.weights = family.convert_weights(self.config, checkpoint)
        self.layers = self.config.num_layers
        with torch.device("meta"):
            self.model = family.model(self.config)

    def done(self, index: int) -> bool:
        """Whether the way back has passed this layer."""
        return self.pieces.get(_LAYER.format(index)) is not None

    def start_over_if_torn(self) -> None:
        """Where the gradients that the way back would go on from are lost."""
        first = next((index for index in range(self.layers) if self.done(index)), 0)
        if first and self.pieces.get(_GRADIENT.format(first)) is None:
            self.clear()

    def clear(self) -> None:
        for index in range(self.layers + 1):
            for kind in (_HIDDEN, _GRADIENT, _LAYER):
                self.pieces.drop(kind.format(index))

    def forward(self) -> None:
        """Keeps the residual stream before each layer, and the one behind the last."""
        if self.pieces.get(_HIDDEN.format(0)) is None:
            self._keep(_HIDDEN.format(0), self.checkpoint.tensor(self._table("embed_tokens"))[self.tokens].float())
        for index in range(self.layers):
            if self.pieces.get(_HIDDEN.format(index + 1)) is None and not self.done(index):
                hidden = self._kept(_HIDDEN.format(index))
                self._keep(_HIDDEN.format(index + 1), self._answer(self._layer(index), hidden))
            self.progress.advance()

    def back(self, index: int) -> None:
        """Takes the gradients through a layer, and weighs its matrices on the way."""
        gradients = self._head() if index == self.layers - 1 else self._kept(_GRADIENT.format(index + 1))
        layer, found = self._layer(index), dict[str, list[float]]()
        meter = _Meter(self._matrices(index, layer), found)
        with torch.enable_grad(), Differentiable(meter.product):
            hidden = self._kept(_HIDDEN.format(index)).requires_grad_()
            answer = self._answer(layer, hidden)
        for probe in range(PROBES):
            kept = probe < PROBES - 1
            (gradients[probe],) = torch.autograd.grad(answer, hidden, gradients[probe], retain_graph=kept)
        self.checkpoint.check_unchanged()  # what was read is what was hashed
        if index:
            self._keep(_GRADIENT.format(index), gradients)
        self.pieces.put(_LAYER.format(index), [json.dumps(found).encode()])
        for kind in (_HIDDEN, _GRADIENT):
            self.pieces.drop(kind.format(index + 1))

    def _answer(self, layer: Layer, hidden: Tensor) -> Tensor:
        """[B,S,M] -> [B,S,M]"""
        rows, count = hidden.shape[:2]
        empty = torch.empty(rows, self.config.num_kv_heads, 0, self.config.head_size)
        angles = self.model.angles(torch.arange(count).expand(rows, -1))
        mask = torch.ones(rows, count, dtype=torch.int64)
        answer: Tensor = layer(hidden, angles, mask, (empty, empty))[0]
        return answer

    def _head(self) -> Tensor:
        """Gradients with regard to what the last layer answers, [PROBES,B,S,M], some positions at a time."""
        norm = copy.deepcopy(self.model.norm)
        norm.load_state_dict({"weight": self._value("model.norm.weight")}, assign=True)
        norm.requires_grad_(False)
        table = self.checkpoint.tensor(self._table("embed_tokens" if self.config.tie_embeddings else "lm_head"))
        hidden = self._kept(_HIDDEN.format(self.layers))
        gradients = torch.empty(PROBES, *hidden.shape)
        signs = torch.Generator().manual_seed(_SEED)
        rows, places = hidden.flatten(0, 1), gradients.flatten(1, 2)
        for start in range(0, len(rows), HEAD_POSITIONS):
            part = slice(start, start + HEAD_POSITIONS)
            with torch.enable_grad():
                before = rows[part].clone().requires_grad_()
                normed = norm(before)
            for probe, direction in enumerate(through_head(normed.detach(), table, signs)):
                (places[probe, part],) = torch.autograd.grad(normed, before, direction, retain_graph=probe < PROBES - 1)
        return gradients

    def _matrices(self, index: int, layer: nn.Module) -> dict[int, tuple[str, Form]]:
        """Address of each matrix -> its name and its form in int4, of those that a mix chooses the form of."""
        found = {}
        for own, parameter in layer.named_parameters():
            name = f"model.layers.{index}.{own}"
            parts = list(self.weights[name].apart(name))
            for part, matrix in zip(parts, parameter if len(parts) > 1 else [parameter], strict=True):
                form = self.quantisation.form(part, matrix.shape)
                if form is not None and unit_of(part) is not None:
                    found[matrix.data_ptr()] = part, form
        return found

    def _layer(self, index: int) -> Layer:
        """With its weights in memory, in float32."""
        layer = copy.deepcopy(self.model.layers[index])
        assert isinstance(layer, Layer)
        layer.load_state_dict({name: self._value(f"model.layers.{index}.{name}") for name in layer.state_dict()}, assign=True)
        return layer.requires_grad_(False)

    def _value(self, name: str) -> Tensor:
        return self.checkpoint.read(self.weights[name], torch.float32)

    def _table(self, name: str) -> str:
        return self.weights["lm_head.weight" if name == "lm_head" else f"model.{name}.weight"].sources[0]

    def _keep(self, name: str, values: Tensor) -> None:
        self.pieces.put(name, [values.contiguous().numpy().reshape(-1).view(np.uint8).data])

    def _kept(self, name: str) -> Tensor:
        path = self.pieces.get(name)
        assert path is not None
        return _read(path).reshape(*(() if "hidden" in name else (PROBES,)), *self.tokens.shape, self.config.hidden_size)


def _read(path: Path) -> Tensor:
    return torch.from_numpy(np.fromfile(path, dtype=np.float32))


def through_head(normed: Tensor, table: Tensor, signs: torch.Generator) -> Tensor:
    """[n,M], the head [V,M] -> gradients of v^T logits for so many random v, [PROBES,n,M]."""
    blocks = range(0, len(table), _HEAD_ROWS)
    logits = torch.cat([F.linear(normed, table[start : start + _HEAD_ROWS].float()) for start in blocks], dim=1)
    p = logits.softmax(-1)
    r = p.sqrt()
    v = torch.empty(PROBES, *p.shape)
    for direction in v:
        signed = torch.randint(0, 2, p.shape, generator=signs, dtype=torch.int8) * 2 - 1
        torch.mul(r, signed, out=direction)
        direction.sub_(p * direction.sum(-1, keepdim=True))
    found = torch.zeros(PROBES, *normed.shape)
    for start in blocks:
        found += v[..., start : start + _HEAD_ROWS] @ table[start : start + _HEAD_ROWS].float()
    return found


class _Meter:
    """Listens to a layer's products. found: name -> [sum over probes and tokens of squared changes along the gradient, the same
    with each sequence's changes summed up first, what part of either is left in int8], the last by squared errors of weights."""

    def __init__(self, matrices: Mapping[int, tuple[str, Form]], found: dict[str, list[float]]) -> None:
        self.matrices, self.found = matrices, found

    def product(self, inputs: Tensor, weight: Tensor, outputs: Tensor) -> None:
        if weight.data_ptr() not in self.matrices:
            return
        name, form = self.matrices[weight.data_ptr()]
        with torch.no_grad():
            error = dequantised(quantised(name, weight, form)).sub_(weight)
            wide = Form(8, weight.shape[-1], form.symmetric)
            left = float(dequantised(quantised(name, weight, wide)).sub_(weight).square().mean())
            total = float(error.square().mean())
            change = F.linear(inputs, error)
        entry = self.found.setdefault(name, [0.0, 0.0, min(left / total, 1.0) if total else 1.0])

        def weigh(gradient: Tensor) -> None:
            changes = (gradient * change).sum(-1)  # [B,S], of an expert [n]: tokens of all sequences, which sum up to as much
            entry[0] += float(changes.square().sum())
            entry[1] += float(changes.sum(-1).square().sum())

        outputs.register_hook(weigh)  # type: ignore[no-untyped-call]
