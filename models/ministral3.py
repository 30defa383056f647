"""Ministral 3 (`model_type: ministral3`): a Mistral for long contexts. Also the text model of `Mistral3ForConditionalGeneration`.

Its angles are YaRN's (`models/rotary.py`), and the query at position p is scaled as Llama 4 scales its own:

    1 + beta * ln(1 + floor(p / N))       N = original_max_position_embeddings, beta = llama_4_scaling_beta

so that attention stays as sharp as it was trained to be when there is more to attend to: 1 for the first N positions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alize.errors import CorruptCheckpoint, UnsupportedModel
from alize.models import mistral
from alize.models.config import integer, number, refuse_unknown
from alize.models.mistral import Layer, convert_weights
from alize.models.rotary import Angles, Yarn, rotary_angles, yarn_frequencies

__all__ = ["Config", "Layer", "Model", "convert_weights", "query_scale"]

DEFAULTS = {"head_dim": 128, "max_position_embeddings": 262144, "pad_token_id": 11}
ROPE_DEFAULTS = {  # what transformers takes where config.json has no rope parameters at all
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")
ROPE_USED = {*ROPE_DEFAULTS, "type", "beta_fast", "beta_slow", "attention_factor", "truncate"}
ROPE_IGNORED = {"max_position_embeddings"}  # stands there too, and is read from its own place


@dataclass(frozen=True, kw_only=True)
class Config(mistral.Config):
    """The numbers that define a Ministral 3. A key missing from config.json means what it means to transformers."""

    yarn: Yarn
    query_beta: float  # llama_4_scaling_beta, 0 = queries are not scaled

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "Config":
        """Reads config.json. Raises UnsupportedModel naming what it cannot express, CorruptCheckpoint for a value of no sense."""
        refuse_unknown(config, mistral.USED)
        mistral.only_architecture(config, "Ministral3ForCausalLM")
        config = DEFAULTS | dict(config)
        window = mistral.uniform_window(config, default=0)
        plain = {key: value for key, value in config.items() if key not in ROPE_KEYS}
        fields = mistral.decoder_fields(plain, window=window, rms_norm_eps=1e-5, rope_theta=10000.0)
        rope = _rope_parameters(config)
        theta = number(rope, "rope_theta", default=number(config, "rope_theta", default=10000.0))
        beta = rope["llama_4_scaling_beta"]
        return cls(**fields | {"rope_theta": theta}, yarn=_yarn(rope, fields["max_positions"]), query_beta=float(beta))


def _rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_scaling` (old layout) or `rope_parameters`, checked to be YaRN's."""
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = config.get(key)
    if rope is None:
        return dict(ROPE_DEFAULTS)
    if not isinstance(rope, dict):
        raise CorruptCheckpoint(f"config.json: {key} is {rope!r}, not an object; fetch the file again")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "yarn":
        raise UnsupportedModel(f'config.json: {key} has rope_type {kind!r}; only "yarn" can be expressed for a ministral3')
    unknown = sorted(set(rope) - ROPE_USED - ROPE_IGNORED - {"partial_rotary_factor"})
    if unknown or rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UnsupportedModel(f"config.json: {key} = {rope!r} cannot be expressed; {', '.join(sorted(ROPE_USED))} can be set")
    beta = rope.get("llama_4_scaling_beta")
    if not isinstance(beta, int | float) or isinstance(beta, bool) or not 0 <= beta < float("inf"):
        raise CorruptCheckpoint(
            f"config.json: {key} has llama_4_scaling_beta {beta!r}, not a number of at least 0; fetch the file again"
        )
    return rope


def _yarn(rope: Mapping[str, Any], max_positions: int) -> Yarn:
    """Missing parameters are what transformers takes them for: the paper's, or derived from the others."""
    original = integer(rope, "original_max_position_embeddings", default=max_positions)
    factor = number(rope, "factor", default=max_positions / original)
    derived = _temperature(factor, 1.0)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        derived = _temperature(factor, number(rope, "mscale")) / _temperature(factor, number(rope, "mscale_all_dim"))
    truncate = rope.get("truncate", True)
    if not isinstance(truncate, bool):
        raise CorruptCheckpoint(f"config.json: truncate is {truncate!r}, not true or false; fetch the file again")
    return Yarn(
        factor=factor,
        original_max_positions=original,
        beta_fast=number(rope, "beta_fast", default=32.0),
        beta_slow=number(rope, "beta_slow", default=1.0),
        attention_factor=number(rope, "attention_factor", default=derived),
        truncate=truncate,
    )


def _temperature(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def query_scale(position_ids: Tensor, config: Config) -> Tensor:
    """int64 [B,S] -> float32 [B,S]: what each query is multiplied by."""
    times = torch.floor(position_ids.float() / float(config.yarn.original_max_positions))
    return torch.log(times + 1.0) * config.query_beta + 1.0


class Model(mistral.Model):
    """A Ministral 3: a Mistral whose angles carry the queries' scale too."""

    config: Config

    def angles(self, position_ids: Tensor) -> Angles:
        yarn = self.config.yarn
        cos, sin = rotary_angles(position_ids, yarn_frequencies(self.config.head_size, self.config.rope_theta, yarn))
        cos, sin = cos * yarn.attention_factor, sin * yarn.attention_factor
        scale = query_scale(position_ids, self.config).unsqueeze(2)  # [B,S,1]
        return Angles(cos * scale, sin * scale, cos, sin)
