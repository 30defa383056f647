"""Has alize's own kernels compute whole attentions of a paged OpenVINO graph: see runtimes/cpp/kernels/integer_attention.hpp.

Projections, rotary embedding, cache and output projection of a layer become one node. What a step knows of its rows, and where
the caches lie, does not go through the graph but through a table of addresses: the engine infers a node's shapes anew at each
run, which takes longer the more inputs there are. All attentions of a graph are replaced, or none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo
from alize.runtimes.kernels import asked_for, library
from alize.runtimes.openvino_attention_pattern import Attention, attentions, label
from alize.runtimes.openvino_kernels import ROUNDED_TOKENS, known_products, node_factory
from alize.runtimes.openvino_memory import Block
from alize.runtimes.processor import processor_name

__all__ = ["AttentionTable", "use_attention"]

_BLOCK = 32  # tokens
_STEP, _LAYER = 5, 3  # numbers of a step, and of each layer behind them
_READ_BY_ATTENTION = [
    "past_lens",
    "subsequence_begins",
    "block_indices",
    "block_indices_begins",
    "max_context_len",
    "key_cache",
    "value_cache",
]


class AttentionTable:
    """What the nodes of one graph read besides their inputs. `constants` of it have to be kept as long as what was compiled."""

    def __init__(self, info: ModelInfo, constants: Sequence[Any] = ()) -> None:
        self.constants = list(constants)
        self._sizes = [info.key_value_heads, _BLOCK, info.head_size]
        self._numbers = np.zeros(_STEP + _LAYER * info.layers, np.int64)
        self._numbers[0] = _BLOCK
        self._kept: dict[str, Any] = {}  # what the addresses are of

    @property
    def address(self) -> int:
        return int(self._numbers.ctypes.data)

    def blocks(self, layers: Sequence[int]) -> dict[str, Block]:
        """Of the caches of some layers."""
        from openvino import Type

        return {name: (Type.f16, self._sizes) for layer in layers for name in (f"key_cache.{layer}", f"value_cache.{layer}")}

    def set_tensor(self, name: str, tensor: Any) -> None:
        """A cache that `blocks` names."""
        what, layer = name.split(".")
        self._set(_STEP + _LAYER * int(layer) + (what == "value_cache"), name, tensor.data)

    def set_step(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Takes what the engine's own attention would be fed. Returns the rest."""
        rest = dict(feeds)
        del rest["max_context_len"]
        past = rest.pop("past_lens")
        self._numbers[1] = len(past)
        for place, (name, values) in enumerate(
            (("past", past), ("begins", rest.pop("subsequence_begins")), ("block_begins", rest.pop("block_indices_begins")))
        ):
            self._set(2 + place, name, values)
        for layer in range((len(self._numbers) - _STEP) // _LAYER):
            blocks = rest.pop(f"block_indices.{layer}", None)
            self._set(_STEP + _LAYER * layer + 2, f"blocks.{layer}", rest["block_indices"] if blocks is None else blocks)
        rest.pop("block_indices", None)
        return rest

    def _set(self, place: int, name: str, values: NDArray[Any]) -> None:
        self._kept[name] = values
        self._numbers[place] = values.ctypes.data


def use_attention(model: Any, info: ModelInfo, options: Mapping[str, str | int | bool]) -> AttentionTable | None:
    """Replaces, in place, the attentions of a paged graph, where a configuration asks for the kernels and they pay.

    They do on processors with AMX, with a cache of float16 and everything else in float32. Call it before `use_kernels`. Raises
    BackendUnavailable where the kernels cannot be used.
    """
    wanted = {"attention": "paged", "kv_cache_precision": "f16", "inference_precision": "f32"}
    if not asked_for(options) or any(options.get(name) != value for name, value in wanted.items()):
        return None
    if "amx_bf16" not in processor_name() or info.head_size % 32:
        return None
    library()
    found = attentions(model, info, {product.name: product for product in known_products(model)})
    if len(found) != info.layers:
        return None
    table = AttentionTable(
        info, [part for one in found for product in one.products for part in (product.integers, product.scales)]
    )
    angles: dict[tuple[str, ...], Any] = {}
    for one in found:
        _replace(one, _joined(one.angles, angles), info, table.address)
    for parameter in model.get_parameters():
        if parameter.get_friendly_name().split(".")[0] in _READ_BY_ATTENTION:
            model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()
    return table


def _replace(one: Attention, angles: Any, info: ModelInfo, table: int) -> None:
    query, _, _, output = one.products
    attributes = {
        "matrices": [number for product in one.products for number in product.numbers()],
        "sizes": [info.query_heads, info.key_value_heads, info.head_size, info.windows[one.layer], one.layer],
        "scale": one.scale,
        "step_table": table,
        "rounded_tokens": ROUNDED_TOKENS,
    }
    node = node_factory(library()).create("IntegerAttention", [query.node.input_value(0), angles], attributes)
    node.set_friendly_name(output.name)
    output.node.output(0).replace(node.output(0))


def _joined(parts: Sequence[Any], known: dict[tuple[str, ...], Any]) -> Any:
    """float32 [T,1,2*D], one node for all layers that turn by the same angles."""
    from openvino import opset13 as ops

    key = tuple(map(label, parts))
    if key not in known:
        known[key] = ops.concat(list(parts), -1)
    return known[key]
