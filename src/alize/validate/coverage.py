"""Which experts of which layers the validation ran: by its tokens, or by name through the cut-out layer."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alize.models.routing import Routing

__all__ = ["Coverage"]


@dataclass(frozen=True)
class Coverage:
    """counts: int64 [L,E], at how many compared positions the reference's router chose the expert.

    forced, unreachable, wrong: bool [L,E]: run in the cut-out layer; not among the top_k for any hidden state; answered wrongly.
    """

    counts: NDArray[np.int64]
    forced: NDArray[np.bool_]
    unreachable: NDArray[np.bool_]
    wrong: NDArray[np.bool_]

    @classmethod
    def of(cls, routing: Routing, positions: NDArray[np.int64]) -> "Coverage":
        """What tokens reached at the positions [n] whose logits are compared: elsewhere a wrong answer might not show."""
        layers, _, experts = routing.logits.shape
        counts = np.stack([np.bincount(chosen[positions].ravel(), minlength=experts) for chosen in routing.experts])
        none = np.zeros((layers, experts), bool)
        return cls(counts.astype(np.int64), none, none.copy(), none.copy())

    def figures(self) -> dict[str, float]:
        """For the manifest: how many (layer, expert) pairs there are, and how many were run in which way."""
        parts = {"by_prompts": self.counts > 0, "forced": self.forced, "unreachable": self.unreachable}
        return {"pairs": float(self.counts.size)} | {name: float(part.sum()) for name, part in parts.items()}

    def unreachable_names(self) -> tuple[str, ...]:
        """One line for each expert that was not run because it never runs."""
        return tuple(
            f"layer {layer}, expert {expert}: no hidden state puts it among the chosen"
            for layer, expert in np.argwhere(self.unreachable).tolist()
        )
