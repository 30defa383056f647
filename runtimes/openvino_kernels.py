"""Has alize's own kernels compute the products with integer weights of an OpenVINO graph: see runtimes/cpp/kernels.

The weights are read where they lie, in the artifact's mapped file; the engine packs a copy of its own of what it multiplies.
Products of the same input become one node, a gate and what it gates as well: fewer nodes, fewer meetings of the threads.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from alize.runtimes.kernels import asked_for, library

__all__ = ["ROUNDED_TOKENS", "Product", "known_products", "node_factory", "use_kernels"]

ROUNDED_TOKENS = 32
"""Up to so many tokens activations are rounded to 8 bits, and a token gives the same bits alone as among others; more of them are
multiplied in bfloat16 where the processor has AMX."""

_PASSED = ("Convert", "Multiply", "Reshape", "Unsqueeze", "ShapeOf")  # between integers and the matrix that they stand for
_BITS = {"i8": 8, "i4": 4}


@dataclass(frozen=True)
class Product:
    """A MatMul with a matrix of signed integers [N,K], and float16 scales [N] or [N,K/group]."""

    node: Any
    integers: Any
    scales: Any

    @property
    def name(self) -> str:
        return str(self.node.get_friendly_name())

    @property
    def form(self) -> tuple[Any, ...]:
        """What products of one node have in common: the input, bits, columns and groups."""
        source = self.node.input_value(0)
        rows, columns = self.integers.get_output_shape(0)
        groups = int(np.prod(self.scales.get_output_shape(0))) // rows
        return source.get_node().get_friendly_name(), source.get_index(), self.bits, columns, groups

    @property
    def bits(self) -> int:
        return _BITS[self.integers.get_element_type().get_type_name()]

    def numbers(self) -> list[int]:
        """What the operator's `matrices` has of it: where its values and scales lie, rows, columns, group and bits."""
        rows, columns = self.integers.get_output_shape(0)
        places = [np.asarray(constant.data).ctypes.data for constant in (self.integers, self.scales)]
        return [*places, rows, columns, columns // self.form[4], self.bits]


def use_kernels(model: Any, options: Mapping[str, str | int | bool]) -> list[Any]:
    """Replaces, in place, the products that the kernels know, where the options of a configuration ask for it.

    Returns the constants that they read, values and scales of each matrix, which have to be kept as long as what is compiled of
    the model. Raises BackendUnavailable where the kernels cannot be used.
    """
    if not asked_for(options):
        return []
    factory = node_factory(library())
    shared: dict[tuple[Any, ...], list[Product]] = {}
    for product in known_products(model):
        shared.setdefault(product.form, []).append(product)
    taken: set[str] = set()  # the products that are part of another's node
    by_name = {product.name: product for products in shared.values() for product in products}
    for products in shared.values():
        if products[0].name not in taken:
            taken |= _replace(factory, products, by_name)
    rows = _use_rows(factory, model)
    model.validate_nodes_and_infer_types()
    return [*rows, *(constant for product in by_name.values() for constant in (product.integers, product.scales))]


@cache
def node_factory(extension: Path) -> Any:
    """Kept for good: with it goes the extension, and with that the code of the nodes that it made."""
    from openvino.utils.node_factory import NodeFactory

    factory = NodeFactory()
    factory.add_extension(extension)
    return factory


def known_products(model: Any) -> Iterator[Product]:
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and (found := _integers(node.input_value(1).get_node())):
            product = Product(node, *found)
            columns, groups = product.form[3:]
            if groups and columns % 32 == 0 and columns % groups == 0 and (groups == 1 or columns // groups in (32, 64, 128)):
                yield product


def _integers(matrix: Any) -> tuple[Any, Any] | None:
    """The constants that a transposed matrix is computed from, where it is what `Product` says."""
    if matrix.get_type_name() != "Transpose":
        return None
    waiting = [matrix.input_value(0).get_node()]
    found: dict[str, dict[str, Any]] = {"integers": {}, "scales": {}}
    while waiting:
        node = waiting.pop()
        kind = node.get_type_name()
        if kind == "Constant":
            element = node.get_element_type().get_type_name()
            if element in _BITS:
                found["integers"][node.get_friendly_name()] = node
            elif element == "f16":
                found["scales"][node.get_friendly_name()] = node
            elif element not in ("i64", "i32"):  # a shape or an axis
                return None
        elif kind in _PASSED:
            waiting += [value.get_node() for value in node.input_values()]
        else:
            return None
    if len(found["integers"]) != 1 or len(found["scales"]) != 1:
        return None
    return next(iter(found["integers"].values())), next(iter(found["scales"].values()))


def _replace(factory: Any, products: Sequence[Product], by_name: Mapping[str, Product]) -> set[str]:
    """Puts one node in the place of all. Returns the names of products that it computes besides."""
    gated = _gated(products)
    ends = [product.node for product in products] if gated is None else [gated]
    readers = [] if gated is None else _readers(gated)
    last = by_name.get(readers[0].get_friendly_name()) if len(readers) == 1 else None
    if last is not None:
        ends = [last.node]
    form = "apart" if gated is None else "gated" if last is None else "mlp"
    numbers = [number for product in (*products, *([last] if last else [])) for number in product.numbers()]
    node = factory.create(
        "IntegerLinear",
        [products[0].node.input_value(0)],
        {"form": form, "matrices": numbers, "rounded_tokens": ROUNDED_TOKENS},
    )
    node.set_friendly_name(ends[0].get_friendly_name())
    for number, end in enumerate(ends):
        end.output(0).replace(node.output(number))
    return {last.name} if last else set()


def _use_rows(factory: Any, model: Any) -> list[Any]:
    """Puts one node in the place of an embedding of 8 bits with a scale a row. Returns the constants that it reads."""
    for gather in model.get_ordered_ops():
        values = gather.input_value(0).get_node() if gather.get_type_name() == "Gather" else None
        if values is None or values.get_type_name() != "Constant" or values.get_element_type().get_type_name() != "i8":
            continue
        product = _only(_only(gather, "Convert"), "Multiply")
        scales = None if product is None else _scales_of(product, values.get_output_shape(0)[0])
        if scales is None:
            continue
        rows, columns = values.get_output_shape(0)
        places = [np.asarray(constant.data).ctypes.data for constant in (values, scales)]
        node = factory.create("IntegerRows", [gather.input_value(1)], {"matrices": [*places, rows, columns, columns, 8]})
        node.set_friendly_name(product.get_friendly_name())
        product.output(0).replace(node.output(0))
        return [values, scales]
    return []


def _only(node: Any, kind: str) -> Any:
    """The one node of that kind that reads this one, or None."""
    readers = [] if node is None else _readers(node)
    return readers[0] if len(readers) == 1 and readers[0].get_type_name() == kind else None


def _scales_of(product: Any, rows: int) -> Any:
    """The constant f16 [rows] whose chosen elements this Multiply takes times something else, or None."""
    for value in product.input_values():
        node = value.get_node()
        for kind in ("Unsqueeze", "Convert", "Gather"):
            if node.get_type_name() != kind:
                break
            node = node.input_value(0).get_node()
        else:
            half = node.get_type_name() == "Constant" and node.get_element_type().get_type_name() == "f16"
            return node if half and list(node.get_output_shape(0)) == [rows] else None
    return None


def _gated(products: Sequence[Product]) -> Any | None:
    """The Multiply(silu(first), second) that alone reads two products, or None."""
    if len(products) != 2:
        return None
    first, second = (product.node for product in products)
    readers = _readers(second)
    if len(readers) != 1 or readers[0].get_type_name() != "Multiply":
        return None
    silu = next(
        value.get_node()
        for value in readers[0].input_values()
        if value.get_node().get_friendly_name() != second.get_friendly_name()
    )
    return readers[0] if _is_silu(silu, first) and all(_leads_to(reader, silu) for reader in _readers(first)) else None


def _is_silu(node: Any, of: Any) -> bool:
    kind, name = node.get_type_name(), of.get_friendly_name()
    sources = [value.get_node() for value in node.input_values()]
    if kind == "Swish":
        return len(sources) == 1 and sources[0].get_friendly_name() == name
    sigmoids = [source for source in sources if source.get_type_name() == "Sigmoid"]
    return (
        kind == "Multiply"
        and len(sigmoids) == 1
        and {source.get_friendly_name() for source in sources if source is not sigmoids[0]} == {name}
        and sigmoids[0].input_value(0).get_node().get_friendly_name() == name
    )


def _leads_to(node: Any, silu: Any) -> bool:
    """Whether a reader of the gate is the silu, or the sigmoid in it."""
    name = silu.get_friendly_name()
    return node.get_friendly_name() == name or {reader.get_friendly_name() for reader in _readers(node)} == {name}


def _readers(node: Any) -> list[Any]:
    return [target.get_node() for target in node.output(0).get_target_inputs()]
