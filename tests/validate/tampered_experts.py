"""Ways to get a mixture of experts wrong that no comparison of weights can see: every stored value is right."""

from collections.abc import Callable

import onnx_ir as ir

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
from alize.optimize.passes import constant
from tests.validate.tampering import Tamper


def swap_experts(hub: ir.Model) -> None:
    """Layer 1 asks expert 3 where expert 1 was chosen, and the other way round."""
    for _, weight in stacks(sparse_moes(hub)[1]).values():
        parts = list(weight.parts)
        parts[1], parts[3] = parts[3], parts[1]
        weight.parts = tuple(parts)


def no_renormalisation(hub: ir.Model) -> None:
    """Layer 1 weights its chosen experts by their probabilities among all E, which do not sum to 1."""
    node = sparse_moes(hub)[1]

    def probability_of_the_chosen(write: Writer, logits: ir.Value) -> ir.Value:
        probabilities = write.add("Softmax", [logits], "tampered.probabilities", axis=-1)
        top_k, last = write.constant([top_k_of(node)], "tampered.k"), write.constant([-1], "tampered.last")
        largest, _ = write.add_all("TopK", [probabilities, top_k], ["tampered.largest", "tampered.chosen"], axis=-1)
        return write.add("ReduceSum", [largest, last], "tampered.whole", keepdims=1)

    _scale(hub, node, probability_of_the_chosen)


def double_expert(layer: int, expert: int) -> Tamper:
    """The layer's answer counts twice for every token that chose this expert."""

    def apply(hub: ir.Model) -> None:
        node = sparse_moes(hub)[layer]

        def two_where_chosen(write: Writer, logits: ir.Value) -> ir.Value:
            top_k, last = write.constant([top_k_of(node)], "tampered.k"), write.constant([-1], "tampered.last")
            _, chosen = write.add_all("TopK", [logits, top_k], ["tampered.largest", "tampered.chosen"], axis=-1)
            same = write.add("Equal", [chosen, write.constant(expert, "tampered.expert")], "tampered.same")
            count = write.add("Cast", [same], "tampered.count", to=ir.DataType.FLOAT)
            once = write.add("ReduceSum", [count, last], "tampered.once", keepdims=1)
            return write.add("Exp", [write.add("Mul", [once, _number(write, 0.6931472)], "tampered.power")], "tampered.factor")

        _scale(hub, node, two_where_chosen)

    return apply


def lift_expert(layer: int, expert: int, by: float) -> Tamper:
    """The router's choice sees this expert's logit larger than it is."""

    def apply(hub: ir.Model) -> None:
        node = sparse_moes(hub)[layer]
        logits = node.inputs[1]
        assert logits is not None
        write = Writer(hub.graph, node)
        lifts = [by if e == expert else 0.0 for e in range(experts_of(node))]
        lifted = write.add("Add", [logits, _numbers(write, lifts)], "tampered.logits")
        lifted.shape, lifted.type = logits.shape, logits.type
        node.replace_input_with(1, lifted)

    return apply


def dense_experts(hub: ir.Model) -> None:
    """Layer 0 runs every expert on every token and weights the answers of those not chosen by 0."""
    node, graph = sparse_moes(hub)[0], hub.graph
    write, count = Writer(graph, node), experts_of(node)
    hidden, logits = node.inputs[0], node.inputs[1]
    assert hidden is not None
    assert logits is not None
    weights = stacks(node)
    rows = write.add("Reshape", [logits, write.constant([-1, count], "dense.shape")], "dense.logits")
    top_k = write.constant([top_k_of(node)], "dense.k")
    largest, experts = write.add_all("TopK", [rows, top_k], ["dense.largest", "layers.0.experts"], axis=-1)
    shares = write.add("Softmax", [largest], "dense.chosen_shares", axis=-1)
    nothing = write.add("Sub", [rows, rows], "dense.nothing")
    spread = write.add("ScatterElements", [nothing, experts, shares], "dense.shares", axis=1)
    columns = write.add_all("Split", [spread], [f"dense.share.{e}" for e in range(count)], axis=1, num_outputs=count)
    states = write.add("Reshape", [hidden, write.constant([-1, int(hidden.shape[2])], "dense.rows_shape")], "dense.rows")  # type: ignore[index]
    matrices, (gate_up, down), answers = apart_matrices(weights), APART, []
    for e, column in enumerate(columns):
        both = linear(write, states, matrices[gate_up][e], f"layers.0.experts.{e}.{gate_up}")
        gate, up = write.add_all("Split", [both], [f"dense.gate.{e}", f"dense.up.{e}"], axis=-1, num_outputs=2)
        silu = write.add("Mul", [gate, write.add("Sigmoid", [gate], f"dense.sigmoid.{e}")], f"dense.silu.{e}")
        inner = write.add("Mul", [silu, up], f"dense.inner.{e}")
        answer = linear(write, inner, matrices[down][e], f"layers.0.experts.{e}.{down}")
        answers.append(write.add("Mul", [answer, column], f"dense.answer.{e}"))
    shape = write.add("Shape", [hidden], "dense.hidden_shape")
    replace_output(graph, node, write.add("Reshape", [write.add("Sum", answers, "dense.sum"), shape], "dense.output"))
    for value, _ in weights.values():
        for use in list(value.uses()):
            graph.remove(use.node, safe=True)
        del graph.initializers[str(value.name)]


def _scale(hub: ir.Model, node: ir.Node, factor: Callable[[Writer, ir.Value], ir.Value]) -> None:
    """Multiplies a layer's answer by a factor [B,S,1] made of its router's logits."""
    answer, logits = node.outputs[0], node.inputs[1]
    assert logits is not None
    write = Writer(hub.graph, next(use.node for use in answer.uses()))
    scaled = write.add("Mul", [answer, factor(write, logits)], "tampered.answer")
    scaled.shape, scaled.type, name = answer.shape, answer.type, answer.name
    for use in [use for use in answer.uses() if use.node is not scaled.producer()]:
        use.node.replace_input_with(use.idx, scaled)
    answer.name, scaled.name = f"{name}.untampered", name


def _number(write: Writer, value: float) -> ir.Value:
    node = constant(value, "tampered.number", dtype=ir.DataType.FLOAT)
    write.graph.insert_before(write.place, node)
    return node.outputs[0]


def _numbers(write: Writer, values: list[float]) -> ir.Value:
    node = ir.node("Constant", [], {"value": ir.tensor(values, dtype=ir.DataType.FLOAT)}, name="tampered.numbers")
    write.graph.insert_before(write.place, node)
    return node.outputs[0]
