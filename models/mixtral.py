"""Mixtral (Jiang et al. 2024, arXiv:2401.04088), `model_type: mixtral`: a Mistral whose MLP is a sparse mixture of experts.

Two layouts of the experts' weights are read: the published one, a tensor for each expert (`block_sparse_moe.experts.{e}.w1`,
`w3`, `w2`: gate, up, down), and transformers' packed one (`mlp.experts.gate_up_proj` [E,2I,M] and `down_proj` [E,M,I]).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alize.errors import UnsupportedModel
from alize.models import mistral
from alize.models.checkpoint import Checkpoint, Weight
from alize.models.config import integer, refuse_unknown
from alize.models.ops import sparse_moe

__all__ = ["Config", "Layer", "Model", "convert_weights"]

USED = [*mistral.USED, "num_local_experts", "num_experts_per_tok"]
PUBLISHED = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


@dataclass(frozen=True, kw_only=True)
class Config(mistral.Config):
    """The numbers that define a Mixtral. A key missing from config.json means what it means to transformers' MixtralConfig."""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "Config":
        """Reads config.json. Raises UnsupportedModel naming what it cannot express, CorruptCheckpoint for a value of no sense."""
        refuse_unknown(config, USED)
        mistral.only_architecture(config, "MixtralForCausalLM")
        experts, top_k = integer(config, "num_local_experts", default=8), integer(config, "num_experts_per_tok", default=2)
        if top_k > experts:
            raise UnsupportedModel(
                f"config.json: num_experts_per_tok {top_k} is more than num_local_experts {experts}; fetch the file again"
            )
        window = mistral.uniform_window(config, default=0)
        fields = mistral.decoder_fields(config, window=window, rms_norm_eps=1e-5, rope_theta=1e6)
        return cls(**fields, num_experts=experts, experts_per_token=top_k)


class Experts(nn.Module):
    """The weights of all E experts of a layer: gate_proj and up_proj [E,I,M], down_proj [E,M,I]."""

    def __init__(self, config: mistral.Config) -> None:
        super().__init__()
        inner = (config.num_experts, config.intermediate_size, config.hidden_size)
        self.gate_proj = nn.Parameter(torch.empty(inner))
        self.up_proj = nn.Parameter(torch.empty(inner))
        self.down_proj = nn.Parameter(torch.empty(inner[0], inner[2], inner[1]))


class SparseMLP(nn.Module):
    """Router and experts: hidden [B,S,M] -> [B,S,M]."""

    def __init__(self, config: mistral.Config) -> None:
        super().__init__()
        self.top_k = config.experts_per_token
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config)

    def forward(self, x: Tensor) -> Tensor:
        experts = self.experts
        output: Tensor = sparse_moe(x, self.gate(x), experts.gate_proj, experts.up_proj, experts.down_proj, self.top_k)
        return output


class Layer(mistral.Layer):
    mlp_type = SparseMLP


class Model(mistral.Model):
    layer_type = Layer


def convert_weights(config: mistral.Config, checkpoint: Checkpoint) -> dict[str, Weight]:
    """Which checkpoint tensors make each parameter. Raises CorruptCheckpoint as `mistral.check_sources` does, and
    UnsupportedModel for a router with a bias."""
    shapes = mistral.parameter_shapes(Model, config)
    biased = next((name for name in checkpoint.tensors if name.endswith((".block_sparse_moe.gate.bias", ".mlp.gate.bias"))), None)
    if biased is not None:
        raise UnsupportedModel(f"{checkpoint.tensors[biased].file}: tensor {biased}: a router with a bias cannot be expressed")
    packed = any(name.endswith(".mlp.experts.down_proj") for name in checkpoint.tensors)
    place = _packed if packed else _published
    weights: dict[str, Weight] = {}
    sources: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        weights[name], made_of = place(name, shape)
        sources |= made_of
    mistral.check_sources(config, checkpoint, sources)
    return weights


def _published(name: str, shape: tuple[int, ...]) -> tuple[Weight, dict[str, tuple[int, ...]]]:
    """The parameter, and the tensors that it is made of with their shapes: a tensor for each expert."""
    name = name.replace(".mlp.", ".block_sparse_moe.")
    if len(shape) < 3:
        return Weight(sources=(name,), shape=shape), {name: shape}
    stack, part = name.rsplit(".", 1)
    sources = tuple(f"{stack}.{e}.{PUBLISHED[part]}.weight" for e in range(shape[0]))
    return Weight(sources=sources, shape=shape), dict.fromkeys(sources, shape[1:])


def _packed(name: str, shape: tuple[int, ...]) -> tuple[Weight, dict[str, tuple[int, ...]]]:
    """The same, with all experts in one tensor and gate above up in another."""
    stack, _, part = name.rpartition(".")
    if len(shape) < 3 or part == "down_proj":
        return Weight(sources=(name,), shape=shape), {name: shape}
    source, size = f"{stack}.gate_up_proj", shape[1]
    rows = (0, size) if part == "gate_proj" else (size, 2 * size)
    return Weight(sources=(source,), shape=shape, rows=rows), {source: (shape[0], 2 * size, shape[2])}
