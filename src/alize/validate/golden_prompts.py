"""The golden prompts that travel with an artifact: what a device is asked at its first load, and what it may be off by."""

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo
from alize.optimize.quantisation import Quantisation
from alize.runtimes import golden
from alize.validate.judge import Budget
from alize.validate.references import References

__all__ = ["golden_budget", "golden_cases"]

_ROUNDED_LOG_PROB_ERROR = 20.0
"""Nats, of any token at all, where the engine rounds activations."""


def golden_cases(info: ModelInfo, tokens: NDArray[np.int64], references: References) -> tuple[golden.Case, ...]:
    """A short prompt, and one as long as a replay of a few seconds allows: past the window's edge where it can be."""
    cases = []
    for size in sorted({min(33, len(tokens)), min(640, len(tokens))}):
        edges = [0, size // 2, *(max(info.windows) + step for step in (-2, -1, 0, 1)), size - 2, size - 1]
        positions = references.kept[np.isin(references.kept, [edge for edge in edges if 0 <= edge < size])]
        cases.append(golden.Case(tokens[:size], positions, references.log_probs(positions)))
    return tuple(cases)


def golden_budget(budget: Budget, weights: str) -> golden.Budget:
    """Where activations are rounded too, the least likely of all tokens move by several nats: KL alone judges."""
    rounded = Quantisation.parse(weights) is not None
    return golden.Budget(kl=budget.runtime_kl_max, max_log_prob_error=_ROUNDED_LOG_PROB_ERROR if rounded else 1.0)
