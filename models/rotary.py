"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), half-split form, shared by every family.

Cosines and sines are computed from `position_ids` in the graph, in float32: there is no table that a long session could
run past. The inverse frequencies are constants, so that every engine multiplies positions by the same numbers.
"""

import numpy as np
import torch
from torch import Tensor
from torch.onnx.ops import rotary_embedding

__all__ = ["apply_rotary", "inverse_frequencies", "rotary_angles"]


def inverse_frequencies(head_size: int, theta: float) -> list[float]:
    """theta ** (-2n / D) for n in 0..D/2-1, rounded to float32 at each step as Hugging Face's own code does.

    The power is taken in float64 and then rounded, so the numbers do not depend on the machine's float32 `pow`.
    """
    exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    powers = np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    frequencies: list[float] = (np.float32(1) / powers).tolist()
    return frequencies


def rotary_angles(position_ids: Tensor, *, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """position_ids int64 [B,S] -> cos and sin, float32 [B,S,D/2]: computed once, used by all layers."""
    frequencies = torch.tensor(inverse_frequencies(head_size, theta), dtype=torch.float32, device=position_ids.device)
    angles = position_ids.unsqueeze(2).float() * frequencies  # [B,S,D/2]
    return torch.cos(angles), torch.sin(angles)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x [B,H,S,D] by cos and sin [B,S,D/2]; dimension n is paired with n + D/2. Returns [B,H,S,D].

    PyTorch's definition of ONNX RotaryEmbedding-23: plain arithmetic here, one node in a trace.
    """
    rotated: Tensor = rotary_embedding(x, cos, sin)
    return rotated
