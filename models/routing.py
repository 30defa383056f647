"""What the routers of a reference run choose: written down, and overruled where another choice is to be followed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from alize.models.ops import choose_experts, moe_body

__all__ = ["Router", "Routing"]


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


class Router(TorchFunctionMode):
    """Sees the calls of `sparse_moe` of one layer and one sequence [1,S,M], which may come in blocks of positions.

    follow: int64 [S,top_k], experts to use in place of the router's own. Entered inside `SplitSums`, it leaves the sums to it.
    """

    def __init__(self, follow: NDArray[np.int64] | None = None) -> None:
        super().__init__()
        self._follow = None if follow is None else torch.from_numpy(np.asarray(follow, np.int64))
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
