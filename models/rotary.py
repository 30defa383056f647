"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), half-split form, shared by every family.

Cosines and sines are computed from `position_ids` in the graph, in float32: there is no table that a long session could
run past. The inverse frequencies are constants, so that every engine multiplies positions by the same numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.onnx.ops import rotary_embedding

__all__ = ["Angles", "Yarn", "apply_rotary", "inverse_frequencies", "rotary_angles", "yarn_frequencies"]

Floats = NDArray[np.float32]


class Angles(NamedTuple):
    """What a step's queries and keys are rotated by, float32 [B,S,D/2] each: computed once, used by all layers.

    Rotation is linear, so a factor on a query is one on its cosines and sines: where a family scales its queries by their
    position, they differ from the keys'. Elsewhere they are the same tensors.
    """

    query_cos: Tensor
    query_sin: Tensor
    key_cos: Tensor
    key_sin: Tensor

    def to(self, dtype: torch.dtype) -> "Angles":
        """The same in another dtype, for a run whose arithmetic is in it."""
        return Angles(*(part.to(dtype) for part in self))


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """YaRN (Peng et al. 2023, arXiv:2309.00071): angles of positions up to `factor` times those that were trained on.

    A dimension that turns `beta_fast` times or more within `original_max_positions` keeps its frequency, one that turns
    `beta_slow` times or less has it divided by `factor`, and in between they are blended; `truncate` rounds the bounds of
    that range outwards to whole dimensions. Cosines and sines are multiplied by `attention_factor`.
    """

    factor: float
    original_max_positions: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool


def inverse_frequencies(head_size: int, theta: float) -> list[float]:
    """theta ** (-2n / D) for n in 0..D/2-1, rounded to float32 at each step as Hugging Face's own code does."""
    frequencies: list[float] = (np.float32(1) / _powers(head_size, theta)).tolist()
    return frequencies


def yarn_frequencies(head_size: int, theta: float, yarn: Yarn) -> list[float]:
    """The D/2 inverse frequencies under YaRN, rounded to float32 at each step as Hugging Face's own code does."""
    powers = _powers(head_size, theta)
    kept = np.float32(1) - _ramp(head_size, theta, yarn)  # 1: the frequency as it is, 0: divided by the factor
    divided = np.float32(1) / (np.float32(yarn.factor) * powers)
    frequencies: list[float] = (divided * (np.float32(1) - kept) + np.float32(1) / powers * kept).tolist()
    return frequencies


def _powers(head_size: int, theta: float) -> Floats:
    """theta ** (2n / D), taken in float64 and then rounded, so that it does not depend on the machine's float32 `pow`."""
    exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    return np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)


def _ramp(head_size: int, theta: float, yarn: Yarn) -> Floats:
    """0 up to the dimension that turns beta_fast times, 1 from the one that turns beta_slow times, a line between."""

    def dimension(turns: float) -> float:
        return head_size * math.log(yarn.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(yarn.beta_fast), dimension(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_size - 1)
    width = high - low or 0.001  # Hugging Face's own way out where they meet
    line = (np.arange(head_size // 2, dtype=np.float32) - np.float32(low)) / np.float32(width)
    clipped: Floats = np.clip(line, np.float32(0), np.float32(1))
    return clipped


def rotary_angles(position_ids: Tensor, frequencies: Sequence[float]) -> tuple[Tensor, Tensor]:
    """position_ids int64 [B,S], D/2 inverse frequencies -> cos and sin, float32 [B,S,D/2]."""
    constants = torch.tensor(frequencies, dtype=torch.float32, device=position_ids.device)
    angles = position_ids.unsqueeze(2).float() * constants  # [B,S,D/2]
    return torch.cos(angles), torch.sin(angles)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x [B,H,S,D] by cos and sin [B,S,D/2]; dimension n is paired with n + D/2. Returns [B,H,S,D].

    PyTorch's definition of ONNX RotaryEmbedding-23: plain arithmetic here, one node in a trace.
    """
    rotated: Tensor = rotary_embedding(x, cos, sin)
    return rotated
