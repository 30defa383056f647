"""The least that a token can cost: every active weight and the cache are read once, as fast as the memory is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Floor"]

SCALE_BYTES = 2
CACHE_BYTES = 2  # float16


@dataclass(frozen=True)
class Floor:
    """Bytes that one token reads of a Mistral or Mixtral config, its layers in `bits` with a scale for each group (0: each row).

    The head is counted as alize stores it: eight bits, a scale a row. Of the embedding one row is read, of the experts those
    that the router takes. Norms and routers count as float32. So it is the same for every subject, whatever its format adds.
    """

    config: Mapping[str, Any]
    bits: int
    group: int = 0

    @property
    def weight_bytes(self) -> int:
        """Of the weights that one token needs."""
        layer = self._attention() + self._experts()
        return round(self.config["num_hidden_layers"] * layer + self._head())

    def cache_bytes(self, context: int) -> int:
        """Of keys and values of `context` tokens in float16, of a windowed model those of the window."""
        window = self.config.get("sliding_window") or context
        positions = min(context, window)
        return (
            2 * self.config["num_hidden_layers"] * self.config["num_key_value_heads"] * self._head_size * positions * CACHE_BYTES
        )

    def seconds(self, context: int, bandwidth: float) -> float:
        """Of a token behind `context` others, at so many bytes a second."""
        return (self.weight_bytes + self.cache_bytes(context)) / bandwidth

    @property
    def _head_size(self) -> int:
        given = self.config.get("head_dim")
        return given or self.config["hidden_size"] // self.config["num_attention_heads"]

    def _matrix(self, rows: int, columns: int) -> float:
        group = self.group if self.group and columns % self.group == 0 else columns
        return rows * (columns * self.bits / 8 + columns // group * SCALE_BYTES)

    def _attention(self) -> float:
        hidden = self.config["hidden_size"]
        query = self.config["num_attention_heads"] * self._head_size
        key = self.config["num_key_value_heads"] * self._head_size
        return self._matrix(query, hidden) + 2 * self._matrix(key, hidden) + self._matrix(hidden, query) + 2 * 4 * hidden

    def _experts(self) -> float:
        hidden, inner = self.config["hidden_size"], self.config["intermediate_size"]
        one = 2 * self._matrix(inner, hidden) + self._matrix(hidden, inner)
        if "num_local_experts" not in self.config:
            return one
        return self.config["num_experts_per_tok"] * one + self.config["num_local_experts"] * hidden * 4

    def _head(self) -> float:
        hidden, vocabulary = self.config["hidden_size"], self.config["vocab_size"]
        embedding_row = hidden + SCALE_BYTES
        return vocabulary * (hidden + SCALE_BYTES) + embedding_row + 4 * hidden
