"""Finds the attentions in a paged OpenVINO graph that alize's own kernels can compute, with their projections around them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alize.artifact.manifest import ModelInfo
from alize.runtimes.openvino_kernels import Product

__all__ = ["Attention", "attentions", "label"]


@dataclass(frozen=True)
class Attention:
    """The projections of query, key, value and output; cosines and sines of the query, and of the key; which layer it is."""

    products: tuple[Product, Product, Product, Product]
    angles: tuple[Any, Any, Any, Any]
    layer: int
    scale: float


def attentions(model: Any, info: ModelInfo, products: Mapping[str, Product]) -> list[Attention]:
    """Those that are what `Attention` says. products: those that the kernels know, by name."""
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "PagedAttentionExtension"]
    return [found for node in nodes if (found := _attention(node, info, products)) is not None]


def _attention(node: Any, info: ModelInfo, products: Mapping[str, Product]) -> Attention | None:
    query, key = (_turned(node.input_value(place)) for place in (0, 1))
    value = _source(node.input_value(2), ("Reshape", "Transpose", "Transpose", "Reshape"))
    end = _reader(node, ("Reshape", "Transpose", "Transpose", "Reshape", "MatMul"))
    if query is None or key is None or value is None or not _plain(node):
        return None
    names = (query[0], key[0], value.get_node().get_friendly_name(), end)
    if not all(name in products for name in names):
        return None
    q, k, v, output = (products[name] for name in names)
    kept, width = info.key_value_heads * info.head_size, info.query_heads * info.head_size
    if [one.integers.get_output_shape(0)[0] for one in (q, k, v)] != [width, kept, kept] or output.form[3] != width:
        return None
    if len({label(one.node.input_value(0)) for one in (q, k, v)}) != 1:
        return None
    layer = int(node.input_value(3).get_node().get_friendly_name().split(".")[1])  # key_cache.7
    scale = float(np.asarray(node.input_value(9).get_node().get_data()).item())
    return Attention((q, k, v, output), (*query[1], *key[1]), layer, scale)


def _plain(attention: Any) -> bool:
    """Whether its scale is a constant, and what is beyond its window says nothing: biases, sinks, evictions."""
    said = [attention.input_value(place).get_node() for place in (9, 11, *range(13, attention.get_input_size()))]
    return all(one.get_type_name() == "Constant" for one in said) and not any(np.any(one.get_data()) for one in said[1:])


def _source(value: Any, kinds: Sequence[str]) -> Any | None:
    """What the first of nodes of these kinds, each the next one's input, reads; None where they are of other kinds."""
    for kind in kinds:
        if value.get_node().get_type_name() != kind:
            return None
        value = value.get_node().input_value(0)
    return value


def _reader(node: Any, kinds: Sequence[str]) -> str:
    """The last of nodes of these kinds that alone read one another."""
    for kind in kinds:
        readers = [target.get_node() for target in node.output(0).get_target_inputs()]
        if [reader.get_type_name() for reader in readers] != [kind]:
            return ""
        node = readers[0]
    return str(node.get_friendly_name())


def _turned(value: Any) -> tuple[str, tuple[Any, Any]] | None:
    """The product whose heads a rotary embedding turns, by halves: [a, b] -> [a cos - b sin, b cos + a sin]; cosines, sines."""
    joined = _source(value, ("Reshape", "Transpose"))
    if joined is None or joined.get_node().get_type_name() != "Concat" or joined.get_node().get_input_size() != 2:
        return None
    known: dict[str, Any] = {}
    one, other = (_terms(part, known) for part in joined.get_node().input_values())
    splits = {known[part].get_node() for term in one for part in term if _kind(known, part) == "VariadicSplit"}
    if len({split.get_friendly_name() for split in splits}) != 1:
        return None
    split = splits.pop()
    if split.get_output_size() != 2:
        return None
    a, b = (label(split.output(half)) for half in (0, 1))
    by = {half: [part for term in other if half in term for part in term if part != half] for half in (a, b)}
    if [len(by[a]), len(by[b])] != [1, 1]:
        return None
    (sine,), (cosine,) = by[a], by[b]
    expected = (
        {tuple(sorted((a, cosine))), tuple(sorted((b, sine, "-1")))},
        {tuple(sorted((b, cosine))), tuple(sorted((a, sine)))},
    )
    halves = split.output(0).get_partial_shape()[-1] == split.output(1).get_partial_shape()[-1]
    source = _source(split.input_value(0), ("Transpose", "Reshape"))
    if (one, other) != expected or not halves or source is None:
        return None
    if _kind(known, sine) != "Unsqueeze" or _kind(known, cosine) != "Unsqueeze":
        return None
    angles = known[cosine].get_node().input_value(0), known[sine].get_node().input_value(0)
    return source.get_node().get_friendly_name(), angles


def _terms(value: Any, known: dict[str, Any]) -> set[tuple[str, ...]]:
    """A sum of products, each as its sorted factors; -1 is a factor by that name."""
    node = value.get_node()
    kind = node.get_type_name()
    if kind in ("Add", "Multiply"):
        left, right = (_terms(part, known) for part in node.input_values())
        return left | right if kind == "Add" else {tuple(sorted(a + b)) for a in left for b in right}
    if kind == "Constant" and node.get_data().size == 1 and node.get_data().item() == -1:
        return {("-1",)}
    known[label(value)] = value
    return {(label(value),)}


def _kind(known: Mapping[str, Any], factor: str) -> str:
    return str(known[factor].get_node().get_type_name()) if factor in known else ""


def label(value: Any) -> str:
    """Of an output, its own."""
    return f"{value.get_node().get_friendly_name()}:{value.get_index()}"
