"""Which experts were run is counted where logits are compared, and nowhere else."""

import numpy as np

from alize.models.routing import Routing
from alize.validate.coverage import Coverage

EXPERTS = np.array([[[0, 1], [2, 0], [0, 3]], [[1, 2], [1, 2], [2, 1]]])  # 2 layers, 3 positions, 2 of 4 experts
ROUTING = Routing(EXPERTS, np.zeros((2, 3, 4), np.float32), np.zeros((2, 3), np.float32))


def test_experts_are_counted() -> None:
    assert Coverage.of(ROUTING, np.arange(3)).counts.tolist() == [[3, 1, 1, 1], [0, 3, 3, 0]]


def test_only_compared_positions_count() -> None:
    """An expert of the last layer that only answered where no logits are compared might be wrong unseen."""
    assert Coverage.of(ROUTING, np.array([0, 1])).counts.tolist() == [[2, 1, 1, 0], [0, 2, 2, 0]]


def test_figures_and_names() -> None:
    coverage = Coverage.of(ROUTING, np.arange(3))
    coverage.forced[1, 0] = True
    coverage.unreachable[1, 3] = True
    assert coverage.figures() == {"pairs": 8.0, "by_prompts": 6.0, "forced": 1.0, "unreachable": 1.0}
    assert coverage.unreachable_names() == ("layer 1, expert 3: no hidden state puts it among the chosen",)
    assert not coverage.wrong.any()
