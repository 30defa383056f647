"""What the routers of a reference run choose: written down, and overruled where another choice is to be followed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from alize.models.ops import choose_experts, moe_body

__all__ = ["Follow", "NearTies", "Router", "Routing"]


@dataclass(frozen=True)
class Routing:
    """What each token chose, of one layer [S,...] or of all [L,S,...].

    experts: int64 [L,S,top_k], those that were used: the router's own, of the largest logit first, or the followed ones.
    logits: float32 [L,S,E].   lag: float32 [L,S], how far a followed choice lies below the router's own: its top_k-th logit minus
    the lowest followed one; 0 where the sets agree, infinite where what was to be followed is no choice of top_k experts (the
    router's own is used there).
    """

    experts: NDArray[np.int64]
    logits: NDArray[np.float32]
    lag: NDArray[np.float32]

    @classmethod
    def stack(cls, layers: Sequence["Routing"]) -> "Routing":
        """One routing [L,...] of those of the single layers."""
        experts, logits, lag = zip(*((layer.experts, layer.logits, layer.lag) for layer in layers), strict=True)
        return cls(np.stack(experts), np.stack(logits), np.stack(lag))


@dataclass(frozen=True)
class NearTies:
    """To be followed in place of chosen experts: the router's own, but in a near-tie the next one instead of the last.

    tolerance: how far apart the top_k-th logit and the next may be.   share: how many of these are turned round, drawn by `seed`.
    """

    tolerance: float
    share: float = 1.0
    seed: int = 0
    layer: int = 0

    def __getitem__(self, layer: int) -> "NearTies":
        """Of one layer, as of an array [L,S,top_k]."""
        return replace(self, layer=layer)

    def choose(self, logits: Tensor, top_k: int, first: int) -> Tensor:
        """Logits [n,E] of the positions from `first` on -> int64 [n,top_k]."""
        own = choose_experts(logits, min(top_k + 1, logits.shape[1]))
        if own.shape[1] == top_k:
            return own
        ordered = logits.gather(1, own)
        drawn = np.random.default_rng((self.seed, self.layer, first)).random(len(logits)) < self.share
        turned = (ordered[:, top_k - 1] - ordered[:, top_k] <= self.tolerance) & torch.from_numpy(drawn)
        last = torch.where(turned, own[:, top_k], own[:, top_k - 1])
        return torch.cat([own[:, : top_k - 1], last[:, None]], dim=1)


Follow = NDArray[np.int64] | NearTies
"""Experts [L,S,top_k] (of one layer [S,top_k]) to use in place of the router's own, or how they are to be chosen."""


class Router(TorchFunctionMode):
    """Sees the calls of `sparse_moe` of one layer and one sequence [1,S,M], which may come in blocks of positions.

    follow: of this layer. Entered inside `SplitSums`, it leaves the sums to it.
    """

    def __init__(self, follow: Follow | None = None) -> None:
        super().__init__()
        self._ties = follow if isinstance(follow, NearTies) else None
        self._follow = None if follow is None or self._ties else torch.from_numpy(np.asarray(follow, np.int64))
        self._done = 0
        self._found: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not torch.ops.alize.sparse_moe.default:
            return func(*args, **(kwargs or {}))
        hidden, router_logits, gate_proj, up_proj, down_proj, top_k = args
        logits = router_logits.flatten(0, 1).float()
        experts, lag = self._choose(logits, top_k)
        self._done += len(logits)
        self._found.append((experts, logits, lag))
        return moe_body(hidden, router_logits, gate_proj, up_proj, down_proj, top_k, chosen=experts[None])

    def routing(self) -> Routing:
        """Of the layer: experts [S,top_k], logits [S,E], lag [S]."""
        experts, logits, lag = (torch.cat(blocks).numpy() for blocks in zip(*self._found, strict=True))
        return Routing(experts, logits, lag)

    def _choose(self, logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """The experts of a block [n,top_k] and their lag [n]."""
        if self._ties is not None:
            own, chosen = choose_experts(logits, top_k), self._ties.choose(logits, top_k, self._done)
            return chosen, logits.gather(1, own).amin(dim=1) - logits.gather(1, chosen).amin(dim=1)
        if self._follow is None:
            return choose_experts(logits, top_k), torch.zeros(len(logits))
        follow = self._follow[self._done : self._done + len(logits)]
        own = choose_experts(logits, follow.shape[1])
        ordered = follow.sort(dim=1).values
        twice = (ordered[:, 1:] == ordered[:, :-1]).any(dim=1)
        broken = twice | (ordered[:, 0] < 0) | (ordered[:, -1] >= logits.shape[1])
        experts = torch.where(broken[:, None], own, follow)
        lag = logits.gather(1, own).amin(dim=1) - logits.gather(1, experts).amin(dim=1)
        return experts, lag.masked_fill(broken, torch.inf)
