"""Rotary embedding against transformers' own."""

import numpy as np
import pytest
import torch

from alize.models.rotary import apply_rotary, inverse_frequencies, rotary_angles


@pytest.mark.parametrize("theta", [1e4, 1e5, 1e6, 1e8])
@pytest.mark.parametrize("size", [8, 64, 80, 128])
def test_inverse_frequencies_are_those_of_transformers(size: int, theta: float) -> None:
    """To one unit in the last place, whatever this machine's float32 pow does."""
    theirs = 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float) / size))
    ours = torch.tensor(inverse_frequencies(size, theta))
    assert bool(((ours - theirs).abs() <= torch.from_numpy(np.spacing(theirs.numpy()))).all())


def test_rotation_is_that_of_transformers() -> None:
    from transformers.models.mistral.modeling_mistral import apply_rotary_pos_emb

    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, heads, 5, 8, generator=generator) for heads in (4, 2))
    cos, sin = rotary_angles(torch.tensor([[0, 1, 2, 3, 4], [0, 0, 7, 8, 40_000]]), head_size=8, theta=1e4)
    expected = apply_rotary_pos_emb(query, key, torch.cat([cos, cos], -1), torch.cat([sin, sin], -1))
    torch.testing.assert_close(apply_rotary(query, cos, sin), expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(apply_rotary(key, cos, sin), expected[1], rtol=0, atol=1e-6)


def test_scores_depend_on_distance_only() -> None:
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randn(1, 1, 1, 16, generator=generator) for _ in range(2))

    def score(i: int, j: int) -> float:
        rotated = [
            apply_rotary(x, *rotary_angles(torch.tensor([[at]]), head_size=16, theta=1e4)) for x, at in ((query, i), (key, j))
        ]
        return float((rotated[0] * rotated[1]).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)
