"""Ministral (`model_type: ministral`, Ministral 8B): a Mistral in which each layer attends to a window or to everything.

Nothing but the configuration differs: `layer_types` says which layers slide, and all that do share one window.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alize.errors import UnsupportedModel
from alize.models import mistral
from alize.models.config import integer, refuse_unknown
from alize.models.mistral import Layer, Model, convert_weights

__all__ = ["Config", "Layer", "Model", "convert_weights"]


@dataclass(frozen=True, kw_only=True)
class Config(mistral.Config):
    """The numbers that define a Ministral. A key missing from config.json means what it means to transformers."""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "Config":
        """Reads config.json. Raises UnsupportedModel naming what it cannot express, CorruptCheckpoint for a value of no sense."""
        refuse_unknown(config, mistral.USED)
        mistral.only_architecture(config, "MinistralForCausalLM")
        fields = mistral.decoder_fields(config, window=0, rms_norm_eps=1e-6, rope_theta=10000.0)
        return cls(**fields | {"windows": _windows(config, fields["num_layers"])})


def _windows(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """One W a layer: without layer_types every layer has the window (transformers' default is 4096), or none where it is null."""
    none = config.get("sliding_window", 4096) is None
    window = 0 if none else integer(config, "sliding_window", default=4096)
    kinds = config.get("layer_types")
    if kinds is None:
        return (window,) * layers
    sizes = {"full_attention": 0} | ({} if none else {"sliding_attention": window})
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in sizes for kind in kinds):
        raise UnsupportedModel(
            f"config.json: layer_types {kinds!r} with sliding_window {window or None}: "
            f"there must be {layers}, one for each layer, and each {' or '.join(sizes)}"
        )
    return tuple(sizes[kind] for kind in kinds)
