"""Our model and transformers' own, loaded from one checkpoint folder, and the inputs that both are given."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alize.models.checkpoint import Checkpoint
from alize.models.mistral import Config, Model
from alize.models.registry import family_for

Past = list[tuple[Tensor, Tensor]]

TOLERANCE = 1e-4  # on float32 logits, whose std is above 1 for the tiny checkpoints


def load_model(folder: Path) -> Model:
    checkpoint = Checkpoint.open(folder)
    family = family_for(checkpoint.config)
    config = family.config.from_dict(checkpoint.config)
    with torch.device("meta"):
        model = family.model(config)
    weights = family.convert_weights(config, checkpoint)
    model.load_state_dict({name: checkpoint.read(weight, torch.float32) for name, weight in weights.items()}, assign=True)
    return model.eval()


def load_oracle(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


@dataclass(frozen=True)
class Pair:
    """A checkpoint folder with both models."""

    folder: Path

    @cached_property
    def ours(self) -> Model:
        return load_model(self.folder)

    @cached_property
    def oracle(self) -> Any:
        return load_oracle(self.folder)

    @property
    def config(self) -> Config:
        return self.ours.config

    @property
    def window(self) -> int:
        return max(self.config.windows)

    def no_past(self, batch: int) -> Past:
        empty = torch.empty(batch, self.config.num_kv_heads, 0, self.config.head_size)
        return [(empty, empty)] * self.config.num_layers

    def tokens(self, *shape: int, seed: int = 0) -> Tensor:
        return torch.randint(0, self.config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def padded_inputs(padding: list[int], total: int) -> tuple[Tensor, Tensor]:
    """attention_mask and position_ids int64 [B,total] of rows with `padding` zeros on the left, positions from 0 behind them."""
    mask = torch.ones(len(padding), total, dtype=torch.int64)
    for row, count in enumerate(padding):
        mask[row, :count] = 0
    return mask, (mask.cumsum(1) - 1).clamp(min=0)
