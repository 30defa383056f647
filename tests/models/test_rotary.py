"""Rotary embedding against transformers' own."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from alize.models.rotary import Yarn, apply_rotary, inverse_frequencies, rotary_angles, yarn_frequencies


@pytest.mark.parametrize("theta", [1e4, 1e5, 1e6, 1e8])
@pytest.mark.parametrize("size", [8, 64, 80, 128])
def test_inverse_frequencies_are_those_of_transformers(size: int, theta: float) -> None:
    """To one unit in the last place, whatever this machine's float32 pow does."""
    theirs = 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float) / size))
    ours = torch.tensor(inverse_frequencies(size, theta))
    assert bool(((ours - theirs).abs() <= torch.from_numpy(np.spacing(theirs.numpy()))).all())


PUBLISHED = Yarn(factor=16.0, original_max_positions=16384, beta_fast=32.0, beta_slow=1.0, attention_factor=1.0, truncate=True)


@pytest.mark.parametrize("size", [8, 64, 128])
@pytest.mark.parametrize("theta", [1e4, 1e6])
@pytest.mark.parametrize(
    "yarn",
    [
        PUBLISHED,
        replace(PUBLISHED, truncate=False),
        replace(PUBLISHED, factor=48.0, original_max_positions=8192, beta_fast=4.0),
        replace(PUBLISHED, factor=1.0),
        replace(PUBLISHED, original_max_positions=16, beta_fast=1.0, beta_slow=1.0),  # the range is empty
        replace(PUBLISHED, original_max_positions=10**9, beta_slow=1e-9),  # the range ends behind the last dimension
    ],
)
def test_yarn_frequencies_are_those_of_transformers(size: int, theta: float, yarn: Yarn) -> None:
    """To a few units in the last place: each float32 step is the same, but for the machine's own pow."""
    from transformers import Ministral3Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_max_positions,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
        "truncate": yarn.truncate,
        "llama_4_scaling_beta": 0.1,
    }
    theirs, _ = ROPE_INIT_FUNCTIONS["yarn"](Ministral3Config(head_dim=size, rope_parameters=rope))
    np.testing.assert_allclose(yarn_frequencies(size, theta, yarn), theirs.numpy(), rtol=4e-7, atol=0)


def test_rotation_is_that_of_transformers() -> None:
    from transformers.models.mistral.modeling_mistral import apply_rotary_pos_emb

    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, heads, 5, 8, generator=generator) for heads in (4, 2))
    cos, sin = rotary_angles(torch.tensor([[0, 1, 2, 3, 4], [0, 0, 7, 8, 40_000]]), inverse_frequencies(8, 1e4))
    expected = apply_rotary_pos_emb(query, key, torch.cat([cos, cos], -1), torch.cat([sin, sin], -1))
    torch.testing.assert_close(apply_rotary(query, cos, sin), expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(apply_rotary(key, cos, sin), expected[1], rtol=0, atol=1e-6)


def test_scores_depend_on_distance_only() -> None:
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randn(1, 1, 1, 16, generator=generator) for _ in range(2))

    def score(i: int, j: int) -> float:
        frequencies = inverse_frequencies(16, 1e4)
        rotated = [apply_rotary(x, *rotary_angles(torch.tensor([[at]]), frequencies)) for x, at in ((query, i), (key, j))]
        return float((rotated[0] * rotated[1]).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)
