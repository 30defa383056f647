"""The reference run: a checkpoint in float32, one layer's weights in memory at a time, so that any model fits.

Every sequence goes through a layer by itself (B = 1) before the next layer's weights are read: a sequence's numbers do
not depend on what else is run, and the hidden states are all that is kept between layers.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name every PyTorch reader knows
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from alize.errors import UnsupportedModel, UsageError
from alize.models.checkpoint import Checkpoint
from alize.models.mistral import Layer
from alize.models.ops import attention_body, moe_body
from alize.models.registry import family_for
from alize.models.routing import Follow, Router, Routing

__all__ = [
    "ALL_ROWS",
    "ROUND_TRIPS",
    "Bookmark",
    "Halfway",
    "Mixture",
    "Progress",
    "Reference",
    "ReferenceRun",
    "Rows",
    "SplitSums",
    "Summation",
    "Walk",
    "WeightRule",
]

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total), in layers: called before the first layer and after each."""

Rows = slice | Tensor
"""Some rows of a matrix: a slice, or int64 [n]."""


class WeightRule(Protocol):
    def __call__(self, name: str, stored: Tensor, rows: Rows = ..., /) -> Tensor:
        """The rows to compute with, in float32, of the parameter `name`: those rows of it in the stored dtype, and which they
        are. Embeddings and head are read a few rows at a time, so the rows of a matrix must not depend on each other."""
        ...


Summation = Literal["plain", "split"]
"""The order of every inner sum: as PyTorch does it, or in two halves, the second half first."""

ROUND_TRIPS: dict[str, torch.dtype | None] = {"source": None, "fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
"""What weights go through before they are float32; None = the stored value as it is."""

ALL_ROWS = slice(None)
ROWS = 512  # positions that go through an MLP together
HEAD_ROWS = 16384  # rows of the head in memory together


@dataclass(frozen=True)
class Halfway:
    """Where a run stands behind its first `layers`. hidden: [1,S,M] a sequence.   routed: a list a sequence, one a layer."""

    layers: int
    hidden: list[Tensor]
    routed: list[list[Routing]]


class Bookmark(Protocol):
    """Keeps how far a run got, so that another of the same goes on from there."""

    def load(self, layers: int, /) -> Halfway | None:
        """The last that was saved of a model of so many layers."""
        ...

    def save(self, halfway: Halfway, /) -> None: ...


@dataclass(frozen=True)
class ReferenceRun:
    """logits: float32 [n,V], one a sequence.   routing: one a sequence, none without experts."""

    logits: list[NDArray[np.float32]]
    routing: list[Routing]


class SplitSums(TorchFunctionMode):
    """The same maths in another summation order: each inner product in two halves, the second half first.

    What changes under it is the floor of float32 itself: no compiled graph can be asked to come closer than that.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.linear:
            return _split_product(args[0], args[1].transpose(-1, -2))
        if func is torch.matmul:
            return _split_product(args[0], args[1])
        if func in _BODIES:
            with self:  # its sums too: a mode does not see into an operator by itself
                return _BODIES[func](*args)
        return func(*args, **(kwargs or {}))


_BODIES: dict[Any, Callable[..., Any]] = {
    torch.ops.alize.sliding_window_attention.default: attention_body,
    torch.ops.alize.sparse_moe.default: moe_body,
}


def _split_product(left: Tensor, right: Tensor) -> Tensor:
    half = left.shape[-1] // 2
    second = torch.matmul(left[..., half:], right[..., half:, :])
    return second + torch.matmul(left[..., :half], right[..., :half, :])


class Reference:
    """Runs `checkpoint` layer by layer.

    weights: a key of ROUND_TRIPS or a rule of your own (for quantised weights, say). summation: "plain", or "split" for
    another order of every inner sum. compute: the dtype of the arithmetic; bfloat16 gives the floor that bf16 engines have.
    Raises what `Config.from_dict` and `convert_weights` raise.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        weights: str | WeightRule = "source",
        summation: Summation = "plain",
        compute: torch.dtype = torch.float32,
    ) -> None:
        if isinstance(weights, str) and weights not in ROUND_TRIPS:
            raise UsageError(f"weights {weights!r} is not one of {', '.join(ROUND_TRIPS)}")
        if summation not in ("plain", "split"):
            raise UsageError(f'summation {summation!r} is not "plain" or "split"')
        family = family_for(checkpoint.config)
        self.checkpoint = checkpoint
        self.config = family.config.from_dict(checkpoint.config)
        self._weights = family.convert_weights(self.config, checkpoint)
        self._rule = weights if callable(weights) else _round_trip(ROUND_TRIPS[weights])
        self._split = summation == "split"
        self._dtype = compute
        with torch.device("meta"):
            self._model = family.model(self.config)

    def run(
        self,
        sequences: Sequence[NDArray[np.int64]],
        *,
        positions: Sequence[NDArray[np.int64]] | None = None,
        progress: Progress | None = None,
        follow: Sequence[Follow] | None = None,
        bookmark: Bookmark | None = None,
    ) -> ReferenceRun:
        """sequences: int64 [S] each, at positions 0..S-1. positions: for each sequence the positions [n] whose logits are
        returned, in that order; None = all. follow: for each sequence what is used in place of what
        the routers choose. bookmark: where it goes on from, and is told of each layer. Raises CorruptCheckpoint (NaN or
        infinite weights), UnsupportedModel (weights that do not fit in the dtype asked for)."""
        report = progress or _silent
        with _arithmetic(split=self._split):
            halfway = bookmark.load(self.config.num_layers) if bookmark else None
            if halfway is None:
                halfway = Halfway(0, [self._embed(sequence) for sequence in sequences], [[] for _ in sequences])
            hidden, routed = halfway.hidden, halfway.routed
            report("reference", halfway.layers, self.config.num_layers)
            for index in range(halfway.layers, self.config.num_layers):
                chosen = [None] * len(hidden) if follow is None else [choices[index] for choices in follow]
                for found, routing in zip(routed, self._advance(index, hidden, chosen), strict=True):
                    found.extend(routing)
                if bookmark is not None:
                    bookmark.save(Halfway(index + 1, hidden, routed))
                report("reference", index + 1, self.config.num_layers)
            if positions is not None:
                hidden = [states[:, torch.from_numpy(kept)] for states, kept in zip(hidden, positions, strict=True)]
            return ReferenceRun(logits=self._logits(hidden), routing=[Routing.stack(found) for found in routed if found])

    def walk(self, sequence: NDArray[np.int64]) -> "Walk":
        """The same for one sequence, a layer at a time and with a look at what it holds on the way."""
        return Walk(self, sequence)

    def mixture(self, index: int) -> "Mixture":
        """The router and the experts of layer `index`, cut out; raises as `run` does."""
        name = f"model.layers.{index}.mlp"
        return Mixture(self._loaded(self._model.get_submodule(name), name), self._dtype)

    def _advance(
        self,
        index: int,
        hidden: list[Tensor],
        follow: Sequence[Follow | None],
        taps: list[dict[str, NDArray[np.float32]]] | None = None,
    ) -> list[list[Routing]]:
        """Takes every sequence through layer `index`, in place. The layer is gone when this returns.

        Returns a routing a sequence, in a list of its own that is empty where the layer has no experts.
        """
        layer = self._loaded(self._model.layers[index], f"model.layers.{index}")
        assert isinstance(layer, Layer)
        routed: list[list[Routing]] = []
        for number, states in enumerate(hidden):
            attended, heads = self._attend(layer, states)
            with Router(follow[number]) as router:
                hidden[number] = torch.cat([layer.feed(rows) for rows in torch.split(attended, ROWS, dim=1)], dim=1)
            routed.append([router.routing()] if self.config.num_experts else [])
            if taps is not None:
                held = {"heads": heads, "attention": attended, "mlp": hidden[number]}
                taps[number] |= {f"layers.{index}.{part}": _numpy(values[0]) for part, values in held.items()}
        return routed

    def _embed(self, sequence: NDArray[np.int64]) -> Tensor:
        name = "model.embed_tokens.weight"
        table = self.checkpoint.tensor(self._weights[name].sources[0])
        chosen = torch.from_numpy(sequence)
        rows = self._checked(name, table[chosen], chosen)
        return rows.to(self._dtype)[None]

    def _loaded(self, module: nn.Module, prefix: str) -> nn.Module:
        """A copy of a part of the model with its weights in memory."""
        copied = copy.deepcopy(module)
        copied.load_state_dict({name: self._whole(f"{prefix}.{name}") for name in copied.state_dict()}, assign=True)
        return copied

    def _attend(self, layer: Layer, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream after the attention [1,S,M], and what its output projection was given [1,S,H*D]."""
        count = hidden.shape[1]
        angles = self._model.angles(torch.arange(count)[None]).to(self._dtype)
        empty = torch.empty(1, self.config.num_kv_heads, 0, self.config.head_size, dtype=self._dtype)
        mask = torch.ones(1, count, dtype=torch.int64)
        heads: list[Tensor] = []
        hook = layer.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: heads.append(inputs[0]))
        attended, _ = layer.attend(hidden, angles, mask, (empty, empty))
        hook.remove()
        return attended, heads[0]

    def _logits(self, hidden: list[Tensor]) -> list[NDArray[np.float32]]:
        """[1,n,M] each -> float32 [n,V] each, the head's rows a block at a time."""
        norm = self._loaded(self._model.norm, "model.norm")
        normed = [norm(states[0]) for states in hidden]
        name = "model.embed_tokens.weight" if self.config.tie_embeddings else "lm_head.weight"
        table = self.checkpoint.tensor(self._weights[name].sources[0])
        logits = [np.empty((len(states), self.config.vocab_size), np.float32) for states in normed]
        for start in range(0, self.config.vocab_size, HEAD_ROWS):
            block = slice(start, start + HEAD_ROWS)
            rows = self._checked(name, table[block], block).to(self._dtype)
            for states, output in zip(normed, logits, strict=True):
                output[:, block] = _numpy(F.linear(states, rows))
        return logits

    def _whole(self, name: str) -> Tensor:
        """A parameter in the dtype of the arithmetic; of a stack of experts one is in memory twice at a time, not all."""
        weight = self._weights[name]
        whole = torch.empty(weight.shape, dtype=self._dtype)
        parts = weight.apart(name)
        for (part, source), place in zip(parts.items(), whole if len(parts) > 1 else [whole], strict=True):
            place.copy_(self._checked(part, self.checkpoint.stored(source)[0]))
        return whole

    def _checked(self, name: str, stored: Tensor, chosen: Rows = ALL_ROWS) -> Tensor:
        """The rows after the rule, float32. NaN and infinities are looked for here, where they are in memory anyway."""
        rows = self._rule(name, stored, chosen)
        if rows.numel() and not torch.stack(torch.aminmax(rows)).isfinite().all():
            self._blame(name)
            raise UnsupportedModel(f"{name} does not fit in the weights asked for: a value overflows; use bf16 or fp32")
        return rows

    def _blame(self, name: str) -> None:
        """Raises CorruptCheckpoint where the checkpoint itself holds NaN or an infinity."""
        whole = next(stack for stack, weight in self._weights.items() if name in weight.apart(stack))
        for source in self._weights[whole].sources:
            self.checkpoint.check_finite(source)


class Walk:
    """One sequence on its way through the layers of a reference: `advance` takes it through the next one."""

    def __init__(self, reference: Reference, sequence: NDArray[np.int64]) -> None:
        self._reference = reference
        self._layer = 0
        with _arithmetic(split=reference._split):
            self._hidden = [reference._embed(sequence)]

    def advance(self, follow: NDArray[np.int64] | None = None) -> tuple[dict[str, NDArray[np.float32]], Routing | None]:
        """What layer i's heads attended to ("layers.{i}.heads", float32 [S,H*D]), the residual stream after its attention
        ("layers.{i}.attention", [S,M]) and after its MLP ("layers.{i}.mlp"); with experts the logits that its router chose by
        ("layers.{i}.router_logits", [S,E]) and its routing. follow: experts [S,top_k] to use in place of the router's own."""
        taps: list[dict[str, NDArray[np.float32]]] = [{}]
        with _arithmetic(split=self._reference._split):
            (routed,) = self._reference._advance(self._layer, self._hidden, [follow], taps)
        if routed:
            taps[0][f"layers.{self._layer}.router_logits"] = routed[0].logits
        self._layer += 1
        return taps[0], routed[0] if routed else None


class Mixture:
    """One layer's router and experts. router: float32 [E,M], a row an expert."""

    def __init__(self, module: nn.Module, compute: torch.dtype) -> None:
        self._module = module
        self._dtype = compute
        self.router = _numpy(module.get_submodule("gate").get_parameter("weight").detach())

    def answer(
        self, hidden: NDArray[np.float32], *, follow: NDArray[np.int64] | None = None, summation: Summation = "plain"
    ) -> tuple[NDArray[np.float32], Routing]:
        """hidden [n,M], what the layer's norm would hand on -> the weighted sum of the experts' answers [n,M], and who gave them.

        follow: int64 [n,k], experts to use in place of the router's own; with k = 1 the answer is that of one expert alone.
        """
        with _arithmetic(split=summation == "split"), Router(follow) as router:
            output = self._module(torch.from_numpy(hidden).to(self._dtype)[None])
        return _numpy(output[0]), router.routing()


@contextlib.contextmanager
def _arithmetic(*, split: bool) -> Iterator[None]:
    with torch.inference_mode(), SplitSums() if split else contextlib.nullcontext():
        yield


def _round_trip(dtype: torch.dtype | None) -> WeightRule:
    def rule(name: str, stored: Tensor, rows: Rows = ALL_ROWS, /) -> Tensor:  # noqa: ARG001
        return stored.float() if dtype is None else stored.to(dtype).float()

    return rule


def _numpy(x: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = x.float().numpy()
    return array


def _silent(stage: str, done: int, total: int) -> None:
    pass
