"""Verdicts: pure functions of figures and budgets."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from alize.optimize.quantisation import Quantisation
from alize.validate.measure import Figures

__all__ = ["Budget", "fidelity_limit", "judge_fidelity", "judge_loss"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What each of the three questions may cost. docs/validation.md says how the defaults were chosen.

    fidelity_factor: compile fidelity, as a multiple of the float32 floor (the reference in another summation order), on the
    largest logit error of every single position.   quantisation_kl, runtime_kl: mean KL in nats a token.
    quantisation_kl_max, runtime_kl_max: of any single position.
    """

    fidelity_factor: float = 30.0
    quantisation_kl: float = 0.05
    quantisation_kl_max: float = 2.0
    runtime_kl: float = 0.001
    runtime_kl_max: float = 0.1

    @staticmethod
    def for_weights(weights: str) -> "Budget":
        """The defaults for an artifact that stores `weights`: integers lose more, and so do products with them."""
        chosen = Quantisation.parse(weights)
        return Budget() if chosen is None else _INTEGERS[chosen.bits]  # a mix is held to what int4 may lose

    def as_dict(self) -> dict[str, float]:
        return {field.name: float(getattr(self, field.name)) for field in fields(self)}


_INTEGERS = {
    8: Budget(runtime_kl=0.02, runtime_kl_max=0.5),
    4: Budget(quantisation_kl=0.75, quantisation_kl_max=5.0, runtime_kl=0.02, runtime_kl_max=0.5),
}


def fidelity_limit(floor: Figures, budget: Budget) -> float:
    """The largest logit error that compile fidelity allows: a multiple of the floor's largest."""
    return budget.fidelity_factor * float(floor.error.max())


def judge_fidelity(figures: Figures, limit: float) -> list[str]:
    """Why the case fails, or nothing: every position's largest logit error is held to the limit, top-1 to near-ties."""
    wrong = np.flatnonzero(~(figures.error <= limit))  # NaN is wrong too
    reasons = []
    if len(wrong):
        first, worst = int(wrong[0]), int(figures.error.argmax())
        reasons.append(
            f"{len(wrong)} of {len(figures.error)} positions are off by more than {limit:.2g}, "
            f"first at position {figures.positions[first]}, worst {figures.error[worst]:.2g} at {figures.positions[worst]}"
        )
    changed = np.flatnonzero(~figures.top1 & ~figures.near_tie)
    if len(changed):
        reasons.append(f"another most probable token at {len(changed)} positions, first at {figures.positions[changed[0]]}")
    return reasons


def judge_loss(figures: Figures, *, mean: float, worst: float) -> list[str]:
    """Why a loss passes its budget, or nothing."""
    kinds: Sequence[tuple[str, float, float]] = (
        ("mean KL", float(figures.kl.mean()), mean),
        ("worst KL", float(figures.kl.max()), worst),
    )
    return [f"{name} {value:.3g} nats is above the budget of {limit:.3g}" for name, value, limit in kinds if not value <= limit]
