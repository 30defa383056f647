"""Figures of how far two sets of logits are apart, position by position. Measured here, judged in `alize.validate.judge`."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["NEAR_TIE", "Figures", "measure"]

NEAR_TIE = 0.1
"""Nats: where the reference prefers its own most probable token over the artifact's by less, the change is a near-tie."""

_ROWS = 64  # positions taken together: float64 temporaries of 64 * V


@dataclass(frozen=True)
class Figures:
    """One case, measured: arrays over its n positions.

    positions: int64 [n], each token's position in its row.   kl: float64 [n], KL(reference || artifact) in nats.
    error: float64 [n], the largest |reference logit - artifact logit|.
    top1: bool [n], the same most probable token.   near_tie: bool [n], another one, by less than NEAR_TIE.
    """

    positions: NDArray[np.int64]
    kl: NDArray[np.float64]
    error: NDArray[np.float64]
    top1: NDArray[np.bool_]
    near_tie: NDArray[np.bool_]

    def summary(self) -> dict[str, float]:
        """Scalars for the manifest: mean and max KL, max error, share of positions with the same top-1 (near-ties apart)."""
        return {
            "positions": float(len(self.positions)),
            "kl_mean": float(self.kl.mean()),
            "kl_max": float(self.kl.max()),
            "logit_error_max": float(self.error.max()),
            "logit_error_median": float(np.median(self.error)),
            "top1_agreement": float(self.top1.mean()),
            "near_ties": float(self.near_tie.sum()),
        }

    def finite_summary(self) -> dict[str, float]:
        """The summary without what is not finite: JSON cannot hold it, and its absence fails the case anyway."""
        return {name: value for name, value in self.summary().items() if np.isfinite(value)}


def measure(reference: NDArray[np.float32], artifact: NDArray[np.float32], positions: NDArray[np.int64]) -> Figures:
    """reference and artifact: float32 logits [n,V] of the same positions. NaN in the artifact gives infinite figures."""
    parts = [
        _measure_rows(reference[start : start + _ROWS], artifact[start : start + _ROWS])
        for start in range(0, len(positions), _ROWS)
    ]
    kl, error, top1, near_tie = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Figures(positions=np.asarray(positions), kl=kl, error=error, top1=top1, near_tie=near_tie)


def _measure_rows(
    reference: NDArray[np.float32], artifact: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """In float64, by torch: both cores, and an exp that is several times numpy's."""
    expected, found = torch.from_numpy(reference).double(), torch.from_numpy(artifact).double()
    broken = ~found.isfinite().all(dim=1)
    found[broken] = 0.0
    log_p, log_q = expected.log_softmax(dim=1), found.log_softmax(dim=1)
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=1).clamp(min=0.0)  # below 0 is rounding
    error = (expected - found).abs().amax(dim=1)
    best, chosen = expected.argmax(dim=1), found.argmax(dim=1)
    margin = (expected.gather(1, best[:, None]) - expected.gather(1, chosen[:, None]))[:, 0]
    top1 = (best == chosen) & ~broken
    near_tie = ~top1 & (margin <= NEAR_TIE) & ~broken
    kl[broken], error[broken] = torch.inf, torch.inf
    return kl.numpy(), error.numpy(), top1.numpy(), near_tie.numpy()
