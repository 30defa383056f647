"""SparseMoE -> one matrix multiplication for each expert and part, over the rows that chose it and no others.

Every token's row is taken once for each expert that it chose, the rows are sorted by expert and split by how many each got,
each expert multiplies its own, and the answers go back to their tokens:

    experts [T,k] = TopK(logits)    weights [T,k] = Softmax(of these)       T = B*S rows, k = top_k
    order [T*k] = argsort(experts)  place [T*k] = argsort(order), its inverse
    Split(Gather(rows, order / k), how often each expert was chosen) -> MatMul by gate_up_proj of each, [2*I,M]
    Concat -> Split into gate and up -> silu(gate) * up, once for all -> Split -> MatMul by down_proj of each
    Concat -> Gather(place) -> [T,k,M], weighted, summed over k

An expert that nobody chose gets 0 rows: both engines skip such a multiplication, and check_structure holds them to it.
Weights are matrices of their own, so they are stored, transposed and quantised like any other; gate and up of an expert are one:
they multiply the same rows, and a multiplication costs when it is skipped, too. The order within an expert's
rows does not matter. Sorting by TopK costs one node where cumulative sums cost several: at one token it is nodes that cost.
"""

import onnx_ir as ir
from onnx_ir.passes import common

from alize.errors import LoweringFailed
from alize.export.weights import StreamedWeight
from alize.optimize.expert_nodes import (
    APART,
    Writer,
    apart_matrices,
    experts_of,
    linear,
    replace_output,
    sparse_moes,
    stacks,
    top_k_of,
)

__all__ = ["experts_apart"]


def experts_apart(model: ir.Model) -> int:
    """Replaces every SparseMoE node; what depends on the input's shape alone is computed once for all of them."""
    graph, nodes = model.graph, sparse_moes(model)
    if not nodes:
        raise LoweringFailed("experts_apart: the graph has no SparseMoE")
    shared = _shared(graph, nodes[0])
    for node in nodes:
        weights = stacks(node)
        _replace(Writer(graph, node), node, shared, apart_matrices(weights))
        _drop_stacks(graph, [value for value, _ in weights.values()])
    common.TopologicalSortPass()(model)
    return len(nodes)


def _shared(graph: ir.Graph, node: ir.Node) -> dict[str, ir.Value]:
    """Constants, the number of chosen rows T*k and the shape [B,S,M], before the first node of the graph."""
    hidden = node.inputs[0]
    size = hidden.shape[-1] if hidden is not None and hidden.shape is not None else None
    if not isinstance(size, int):
        raise LoweringFailed(f"experts_apart: {node.name} has a hidden size of {size}: it has to be static")
    top_k = top_k_of(node)
    write = Writer(graph, next(iter(graph)))
    constants: dict[str, int | list[int] | list[list[int]]] = {
        "rows_shape": [-1, size],
        "logits_shape": [-1, experts_of(node)],
        "flat_shape": [-1],
        "chosen_shape": [-1, top_k, size],
        "ids": [[expert] for expert in range(experts_of(node))],
        "top_k": [top_k],
        "k": top_k,
        "size": [size],
        "axis_1": [1],
        "axis_2": [2],
    }
    values = {name: write.constant(value, f"experts.{name}") for name, value in constants.items()}
    input_ids = next(value for value in graph.inputs if value.name == "input_ids")
    shape = write.add("Shape", [input_ids], "experts.input_shape")
    tokens = write.add("ReduceProd", [shape], "experts.tokens", keepdims=1)
    values["count"] = write.add("Mul", [tokens, values["top_k"]], "experts.count")
    values["hidden_shape"] = write.add("Concat", [shape, values["size"]], "experts.hidden_shape", axis=0)
    return values


def _replace(write: Writer, node: ir.Node, shared: dict[str, ir.Value], weights: dict[str, tuple[StreamedWeight, ...]]) -> None:
    layer = str(node.name).removesuffix(".moe")
    experts, shares = _choose(write, node, layer, shared)
    order, place, counts = _sort(write, experts, layer, shared)
    hidden = node.inputs[0]
    assert hidden is not None
    rows = write.add("Reshape", [hidden, shared["rows_shape"]], f"{layer}.moe_rows")
    token = write.add("Div", [order, shared["k"]], f"{layer}.expert_tokens")
    sorted_rows = write.add("Gather", [rows, token], f"{layer}.expert_rows", axis=0)
    answers = _swiglu(write, sorted_rows, counts, weights, layer)
    back = write.add("Gather", [answers, place], f"{layer}.expert_answers", axis=0)
    chosen = write.add("Reshape", [back, shared["chosen_shape"]], f"{layer}.expert_answers_by_token")
    column = write.add("Unsqueeze", [shares, shared["axis_2"]], f"{layer}.expert_shares_column")
    weighted = write.add("Mul", [chosen, column], f"{layer}.expert_answers_weighted")
    summed = write.add("ReduceSum", [weighted, shared["axis_1"]], f"{layer}.expert_sum", keepdims=0)
    output = write.add("Reshape", [summed, shared["hidden_shape"]], f"{layer}.moe_output")
    replace_output(write.graph, node, output)


def _choose(write: Writer, node: ir.Node, layer: str, shared: dict[str, ir.Value]) -> tuple[ir.Value, ir.Value]:
    """experts int64 [T,k] and their weights float32 [T,k]: the softmax over all E, renormalised, is that over the chosen."""
    logits = node.inputs[1]
    assert logits is not None
    flat = write.add("Reshape", [logits, shared["logits_shape"]], f"{layer}.router_rows")
    names = [f"{layer}.expert_logits", f"{layer}.experts"]
    largest, experts = write.add_all("TopK", [flat, shared["top_k"]], names, axis=-1, largest=1, sorted=1)
    experts.type, experts.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([None, top_k_of(node)])
    return experts, write.add("Softmax", [largest], f"{layer}.expert_shares", axis=-1)


def _sort(write: Writer, experts: ir.Value, layer: str, shared: dict[str, ir.Value]) -> tuple[ir.Value, ir.Value, ir.Value]:
    """order and place int64 [T*k], counts int64 [E]."""
    flat = write.add("Reshape", [experts, shared["flat_shape"]], f"{layer}.experts_flat")
    mine = write.add("Equal", [flat, shared["ids"]], f"{layer}.expert_is_chosen")
    ones = write.add("Cast", [mine], f"{layer}.expert_ones", to=ir.DataType.INT64)
    counts = write.add("ReduceSum", [ones, shared["axis_1"]], f"{layer}.expert_counts", keepdims=0)
    ascending = {"axis": 0, "largest": 0, "sorted": 1}
    names = [f"{layer}.experts_sorted", f"{layer}.expert_order"]
    _, order = write.add_all("TopK", [flat, shared["count"]], names, **ascending)
    names = [f"{layer}.expert_order_sorted", f"{layer}.expert_place"]
    _, place = write.add_all("TopK", [order, shared["count"]], names, **ascending)
    return order, place, counts


def _swiglu(
    write: Writer, rows: ir.Value, counts: ir.Value, weights: dict[str, tuple[StreamedWeight, ...]], layer: str
) -> ir.Value:
    """rows [T*k,M], sorted by expert -> answers [T*k,M] in the same order."""
    gate_up, down = APART

    def multiply(whole: ir.Value, part: str) -> ir.Value:
        names = [f"{layer}.experts.{expert}.{part}" for expert in range(len(weights[part]))]
        products = [
            linear(write, own, weight, name) for own, weight, name in zip(pieces[whole], weights[part], names, strict=True)
        ]
        return write.add("Concat", products, f"{layer}.experts.{part}", axis=0)

    def split(whole: ir.Value, name: str) -> list[ir.Value]:
        names = [f"{layer}.experts.{expert}.{name}" for expert in range(len(weights[gate_up]))]
        return write.add_all("Split", [whole, counts], names, axis=0)

    pieces = {rows: split(rows, "rows")}
    halves = [f"{layer}.experts.gate", f"{layer}.experts.up"]
    gate, up = write.add_all("Split", [multiply(rows, gate_up)], halves, axis=-1, num_outputs=2)
    silu = write.add("Mul", [gate, write.add("Sigmoid", [gate], f"{layer}.experts.sigmoid")], f"{layer}.experts.silu")
    inner = write.add("Mul", [silu, up], f"{layer}.experts.inner")
    pieces[inner] = split(inner, "inner_rows")
    return multiply(inner, down)


def _drop_stacks(graph: ir.Graph, stacked: list[ir.Value]) -> None:
    """The initialisers [E,rows,columns] and the Casts behind them, which nothing reads any more."""
    for value in stacked:
        for use in list(value.uses()):
            graph.remove(use.node, safe=True)
        del graph.initializers[str(value.name)]
