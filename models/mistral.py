"""Mistral (Jiang et al. 2023, arXiv:2310.06825) and what goes by `model_type: mistral`: v0.1 to v0.3, Nemo, Small, Codestral.

Letters: B batch, S new tokens, P past tokens, H query heads, K key/value heads, D head size, M hidden size, I expert (here:
MLP) size, V vocabulary, L layers, W window. Parameter names are Hugging Face's. The definition holds for any dtype of
parameters; cosines, sines, scores and softmax are float32 always.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every PyTorch reader knows
from torch import Tensor, nn

from alize.errors import CorruptCheckpoint, UnsupportedModel
from alize.models.checkpoint import DTYPES, Checkpoint, Weight
from alize.models.config import integer, number, refuse_unknown, token_ids
from alize.models.config import rope_theta as rotary_base
from alize.models.ops import sliding_window_attention
from alize.models.rotary import Angles, apply_rotary, inverse_frequencies, rotary_angles

__all__ = [
    "Config",
    "Layer",
    "Model",
    "check_sources",
    "convert_weights",
    "decoder_fields",
    "only_architecture",
    "parameter_shapes",
    "uniform_window",
]

USED = """model_type architectures vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim sliding_window layer_types rms_norm_eps rope_theta rope_scaling rope_parameters
    max_position_embeddings tie_word_embeddings bos_token_id eos_token_id pad_token_id""".split()  # noqa: SIM905


@dataclass(frozen=True, kw_only=True)
class Config:
    """The numbers that define a Mistral. A key missing from config.json means what it means to transformers' MistralConfig."""

    vocab_size: int  # V
    hidden_size: int  # M
    intermediate_size: int  # I
    num_layers: int  # L
    num_heads: int  # H
    num_kv_heads: int  # K
    head_size: int  # D
    windows: tuple[int, ...]  # one a layer, 0 = full attention
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    tie_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    num_experts: int = 0  # E, 0 = a plain MLP
    experts_per_token: int = 0  # top_k

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "Config":
        """Reads config.json. Raises UnsupportedModel naming what it cannot express, CorruptCheckpoint for a value of no sense."""
        refuse_unknown(config, USED)
        only_architecture(config, "MistralForCausalLM")
        window = uniform_window(config, default=4096)
        return cls(**decoder_fields(config, window=window, rms_norm_eps=1e-6, rope_theta=10000.0))


def only_architecture(config: Mapping[str, Any], name: str) -> None:
    """Raises UnsupportedModel where config.json names another architecture than this one; naming none is fine."""
    architectures = config.get("architectures")
    if architectures not in (None, [], [name]):
        raise UnsupportedModel(f"config.json: architectures {architectures!r}; only {name} can be compiled")


def decoder_fields(config: Mapping[str, Any], *, window: int, rms_norm_eps: float, rope_theta: float) -> dict[str, Any]:
    """The fields of Config that every family reads alike; `rms_norm_eps` and `rope_theta` are what a missing key means."""
    hidden, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    layers = integer(config, "num_hidden_layers")
    kv_heads = integer(config, "num_key_value_heads", default=heads if "num_key_value_heads" in config else 8)
    head_size = integer(config, "head_dim", default=hidden // heads)
    if heads % kv_heads or head_size % 2:
        raise CorruptCheckpoint(
            f"config.json: {heads} query heads, {kv_heads} key/value heads, head size {head_size}: query heads must be "
            "a multiple of key/value heads and the head size even; fetch the file again"
        )
    bos, pad = token_ids(config, "bos_token_id", default=(1,)), token_ids(config, "pad_token_id")
    return {
        "vocab_size": integer(config, "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": integer(config, "intermediate_size"),
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_size": head_size,
        "windows": (window,) * layers,
        "rms_norm_eps": number(config, "rms_norm_eps", default=rms_norm_eps),
        "rope_theta": rotary_base(config, default=rope_theta),
        "max_positions": integer(config, "max_position_embeddings", default=131072),
        "tie_embeddings": _flag(config, "tie_word_embeddings"),
        "bos_token_id": bos[0] if bos else None,
        "eos_token_ids": token_ids(config, "eos_token_id", default=(2,)),
        "pad_token_id": pad[0] if pad else None,
    }


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key)
    if value not in (None, False, True):
        raise CorruptCheckpoint(f"config.json: {key} is {value!r}, not true or false; fetch the file again")
    return value is True


def uniform_window(config: Mapping[str, Any], *, default: int) -> int:
    """The one window of every layer: null is none, a missing key is transformers' default (0 = none)."""
    none = config.get("sliding_window", default or None) is None
    window = 0 if none else integer(config, "sliding_window", default=default)
    layers = integer(config, "num_hidden_layers")
    kind = "sliding_attention" if window else "full_attention"
    if config.get("layer_types") not in (None, [kind] * layers):
        raise UnsupportedModel(
            f"config.json: layer_types {config['layer_types']!r} with sliding_window {window or None}: "
            f"transformers gives every one of the {layers} layers of such a model the same attention, here {kind}"
        )
    return window


class Attention(nn.Module):
    def __init__(self, config: Config, window: int) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.scale = config.head_size**-0.5
        self.window = window
        query_size, key_size = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)

    def forward(
        self, hidden: Tensor, angles: Angles, attention_mask: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        query = apply_rotary(self._heads(self.q_proj(hidden)), angles.query_cos, angles.query_sin)  # [B,H,S,D]
        key = apply_rotary(self._heads(self.k_proj(hidden)), angles.key_cos, angles.key_sin)  # [B,K,S,D]
        value = self._heads(self.v_proj(hidden))
        output, present_key, present_value = sliding_window_attention(
            query, key, value, past_key, past_value, attention_mask, self.window, self.scale
        )
        merged = output.transpose(1, 2).flatten(2)  # [B,S,H*D]
        return self.o_proj(merged), present_key, present_value

    def _heads(self, x: Tensor) -> Tensor:
        """[B,S,heads*D] -> [B,heads,S,D]"""
        return torch.unflatten(x, 2, (-1, self.head_size)).transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return output


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019, arXiv:1910.07467."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.weight = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Layer(nn.Module):
    """One decoder layer: hidden [B,S,M] -> hidden [B,S,M], in two halves that a reference run may take one at a time."""

    mlp_type: type[nn.Module] = MLP

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config)
        self.self_attn = Attention(config, config.windows[index])
        self.post_attention_layernorm = RMSNorm(config)
        self.mlp = self.mlp_type(config)

    def attend(
        self, hidden: Tensor, angles: Angles, attention_mask: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The attention half and its residual add; past and present are (key, value), [B,K,P,D] and [B,K,P+S,D]."""
        output, key, value = self.self_attn(self.input_layernorm(hidden), angles, attention_mask, *past)
        return hidden + output, (key, value)

    def feed(self, hidden: Tensor) -> Tensor:
        """The MLP half and its residual add; every position by itself."""
        output: Tensor = self.mlp(self.post_attention_layernorm(hidden))
        return hidden + output

    def forward(
        self, hidden: Tensor, angles: Angles, attention_mask: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden, present = self.attend(hidden, angles, attention_mask, past)
        return self.feed(hidden), present


class Trunk(nn.Module):
    """What Hugging Face calls `model`: it only gives the parameters their names."""

    def __init__(self, config: Config, layer_type: type[Layer]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layer_type(config, index) for index in range(config.num_layers))
        self.norm = RMSNorm(config)


class Model(nn.Module):
    """A Mistral. `embed`, `layers`, `norm` and `head` are the pieces that `forward` strings together."""

    layer_type: type[Layer] = Layer

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config, self.layer_type)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.layers

    @property
    def norm(self) -> RMSNorm:
        return self.model.norm

    def embed(self, input_ids: Tensor) -> Tensor:
        """int64 [B,S] -> [B,S,M]"""
        hidden: Tensor = self.model.embed_tokens(input_ids)
        return hidden

    def angles(self, position_ids: Tensor) -> Angles:
        """int64 [B,S] -> cosines and sines, float32 [B,S,D/2], that every layer rotates by."""
        cos, sin = rotary_angles(position_ids, inverse_frequencies(self.config.head_size, self.config.rope_theta))
        return Angles(cos, sin, cos, sin)

    def head(self, hidden: Tensor) -> Tensor:
        """Normed hidden states [B,S,M] -> logits float32 [B,S,V]"""
        weight = self.model.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight
        return F.linear(hidden, weight)

    def hidden(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, past: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """As `forward`, up to the final norm: [B,S,M] in place of the logits."""
        hidden = self.embed(input_ids)
        angles = self.angles(position_ids)
        presents = []
        for layer, pair in zip(self.layers, past, strict=True):
            hidden, present = layer(hidden, angles, attention_mask, pair)
            presents.append(present)
        return self.norm(hidden), presents

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, past: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """input_ids and position_ids int64 [B,S], attention_mask int64 [B,P+S] (left padding = 0), past: L pairs [B,K,P,D].

        Returns logits [B,S,V] and L present pairs [B,K,P+S,D]. With P = 0 the past is L pairs of empty tensors.
        """
        hidden, presents = self.hidden(input_ids, position_ids, attention_mask, past)
        return self.head(hidden), presents


def parameter_shapes(model_type: type[Model], config: Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of `model_type(config)`."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in model_type(config).named_parameters()}


def convert_weights(config: Config, checkpoint: Checkpoint) -> dict[str, Weight]:
    """Which checkpoint tensors make each parameter: one to one here. Raises what `check_sources` raises."""
    shapes = parameter_shapes(Model, config)
    weights = {name: Weight(sources=(name,), shape=shape) for name, shape in shapes.items()}
    check_sources(config, checkpoint, shapes)
    return weights


def check_sources(config: Config, checkpoint: Checkpoint, sources: Mapping[str, tuple[int, ...]]) -> None:
    """Holds the checkpoint's headers to what the model is made of, `sources`: tensor name -> shape.

    Raises CorruptCheckpoint for a missing, unexpected or wrongly shaped tensor and for one that does not hold floats.
    Tolerated: `rotary_emb.inv_freq` (a constant that old checkpoints carry) and, with tied embeddings, an `lm_head.weight`
    (transformers ignores it too).
    """
    for name, shape in sources.items():
        info = checkpoint.tensors.get(name)
        if info is None:
            raise CorruptCheckpoint(f"{checkpoint.folder}: tensor {name} is missing; fetch the checkpoint again")
        if info.shape != shape:
            raise CorruptCheckpoint(
                f"{info.file}: tensor {name} has shape {list(info.shape)}, config.json asks for {list(shape)}; "
                "config and weights are not of the same model"
            )
        if info.dtype not in DTYPES:
            raise CorruptCheckpoint(f"{info.file}: tensor {name} has dtype {info.dtype}, not one of {', '.join(DTYPES)}")
    for name in checkpoint.tensors:
        tolerated = name.endswith(".rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_embeddings)
        if name not in sources and not tolerated:
            raise CorruptCheckpoint(
                f"{checkpoint.tensors[name].file}: unexpected tensor {name}; config.json describes a model without it"
            )
