"""SparseMoE -> products with weights that are gathered: of the chosen experts when decoding, of all of them in a prefill.

One graph does both, by the shapes alone. With T = B*S tokens, k = top_k and "decoding" meaning S = 1:

                        decoding                        otherwise
    N, R                T*k, 1                          E, T
    experts [N]         the chosen ones, by token       0..E-1
    rows [N,R,M]        each token k times              all tokens for each expert
    shares [N,R]        of the chosen                   of every expert for every token, 0 for most
    answers [N,R,M] = swiglu(rows, Gather(weights, experts)) * shares
    summed as           [T,k,1,M] over k                [1,E,T,M] over E

TensorRT has no operator that a sparse prefill could be made of: NonZero and a Split by computed lengths are refused, its own
mixture of experts is for other GPUs. Over a chunk of tokens all experts are chosen by one or another, so what a dense prefill
costs is arithmetic, E/k times, not weights read. Decoding is where weights are read, and there the chosen ones are.

An If with both forms was tried: the plan held most experts twice, and from three layers on no engine was built.
"""

import onnx_ir as ir
from onnx_ir.passes import common

from alize.errors import LoweringFailed
from alize.optimize.expert_nodes import PARTS, Writer, experts_of, replace_output, sparse_moes, stacks, top_k_of

__all__ = ["experts_gathered"]


def experts_gathered(model: ir.Model) -> int:
    """Replaces every SparseMoE node; what depends on the input's shape alone is computed once for all of them."""
    graph, nodes = model.graph, sparse_moes(model)
    if not nodes:
        raise LoweringFailed("experts_gathered: the graph has no SparseMoE")
    hidden = nodes[0].inputs[0]
    size = hidden.shape[-1] if hidden is not None and hidden.shape is not None else None
    if not isinstance(size, int):
        raise LoweringFailed(f"experts_gathered: {nodes[0].name} has a hidden size of {size}: it has to be static")
    shared = _shared(Writer(graph, next(iter(graph))), nodes[0], size)
    for node in nodes:
        stacks(node)  # refuses what was lowered before
        _replace(Writer(graph, node), node, shared)
    common.TopologicalSortPass()(model)
    return len(nodes)


def _shared(write: Writer, node: ir.Node, size: int) -> dict[str, ir.Value]:
    """Constants, and what follows from B and S: all int64 [1] or [n]."""
    top_k, experts = top_k_of(node), experts_of(node)
    input_ids = next(value for value in write.graph.inputs if value.name == "input_ids")

    def name(part: str) -> str:
        return f"moe.{part}"

    def number(value: int, part: str) -> ir.Value:
        return write.constant([value], name(part))

    def calculate(op_type: str, left: ir.Value, right: ir.Value, part: str) -> ir.Value:
        return write.add(op_type, [left, right], name(part))

    one, k, every = number(1, "one"), number(top_k, "top_k"), number(experts, "experts")
    new = write.add("Shape", [input_ids], name("new"), start=1, end=2)
    tokens = calculate("Mul", write.add("Shape", [input_ids], name("rows"), start=0, end=1), new, "tokens")
    decoding = write.add("Cast", [calculate("Equal", new, one, "is_decoding")], name("decoding"), to=ir.DataType.INT64)
    otherwise = calculate("Sub", one, decoding, "otherwise")

    def either(decoded: ir.Value, filled: ir.Value, part: str) -> ir.Value:
        first = calculate("Mul", decoding, decoded, f"{part}.decoding")
        return calculate("Add", first, calculate("Mul", otherwise, filled, f"{part}.otherwise"), part)

    chosen, pairs = calculate("Mul", tokens, k, "chosen"), calculate("Mul", tokens, every, "pairs")
    scalar = write.constant([], name("scalar_shape"))
    flat = [write.add("Reshape", [value, scalar], f"{value.name}.scalar") for value in (chosen, tokens)]
    zero, step = write.constant(0, name("zero")), write.constant(1, name("step"))
    each = write.add("Range", [zero, flat[0], step], name("each"))
    count, repeats = either(chosen, every, "N"), either(one, tokens, "R")
    width = number(size, "width")
    leading = [either(tokens, one, "tokens_first"), either(k, every, "summed"), repeats, width]
    return {
        "k": k,
        "width_shape": write.constant([-1, size], name("rows_shape")),
        "logits_shape": write.constant([-1, experts], name("logits_shape")),
        "flat_shape": write.constant([-1], name("flat_shape")),
        "everyone": write.constant(list(range(experts)), name("everyone")),
        "axis_0": number(0, "axis_0"),
        "axis_1": one,
        "first": calculate("Mul", otherwise, chosen, "first"),  # the chosen come first, and are what is skipped
        "last_expert": either(chosen, calculate("Add", chosen, every, "all_ids"), "last_expert"),
        "last_share": either(chosen, calculate("Add", chosen, pairs, "all_shares"), "last_share"),
        "last_row": either(chosen, calculate("Add", chosen, tokens, "all_rows"), "last_row"),
        "tokens_of": write.add(
            "Concat",
            [
                calculate("Div", each, write.constant(top_k, name("k")), "token_of_each"),
                write.add("Range", [zero, flat[1], step], name("every_token")),
            ],
            name("tokens_of"),
            axis=0,
        ),
        "rows_each": write.add("Concat", [either(chosen, one, "blocks"), repeats, width], name("rows_each"), axis=0),
        "rows_all": write.add("Concat", [count, repeats, width], name("rows_all"), axis=0),
        "shares_all": write.add("Concat", [count, repeats, one], name("shares_all"), axis=0),
        "answers_all": write.add("Concat", leading, name("answers_all"), axis=0),
    }


def _replace(write: Writer, node: ir.Node, shared: dict[str, ir.Value]) -> None:
    layer = str(node.name).removesuffix(".moe")
    hidden, logits, gate, up, down = node.inputs
    assert hidden is not None and logits is not None and gate is not None and up is not None and down is not None
    experts, shares = _choose(write, layer, logits, top_k_of(node), shared)
    rows = write.add("Reshape", [hidden, shared["width_shape"]], f"{layer}.moe_rows")  # [T,M]
    places = write.add(
        "Slice", [shared["tokens_of"], shared["first"], shared["last_row"], shared["axis_0"]], f"{layer}.expert_tokens"
    )
    taken = write.add("Gather", [rows, places], f"{layer}.expert_rows", axis=0)
    blocks = write.add("Reshape", [taken, shared["rows_each"]], f"{layer}.expert_blocks", allowzero=1)
    given = write.add("Expand", [blocks, shared["rows_all"]], f"{layer}.expert_inputs")  # [N,R,M]

    def times(inputs: ir.Value, weight: ir.Value, part: str) -> ir.Value:
        turned = write.add("Transpose", [weight], f"{layer}.experts.{part}.turned", perm=[0, 2, 1])  # [E,in,out]
        gathered = write.add("Gather", [turned, experts], f"{layer}.experts.{part}.gathered", axis=0)  # [N,in,out]
        return write.add("MatMul", [inputs, gathered], f"{layer}.experts.{part}")

    product = times(given, gate, PARTS[0])
    silu = write.add("Mul", [product, write.add("Sigmoid", [product], f"{layer}.experts.sigmoid")], f"{layer}.experts.silu")
    inner = write.add("Mul", [silu, times(given, up, PARTS[1])], f"{layer}.experts.inner")
    weighted = write.add("Mul", [times(inner, down, PARTS[2]), shares], f"{layer}.expert_answers")  # [N,R,M]
    parted = write.add("Reshape", [weighted, shared["answers_all"]], f"{layer}.expert_answers_by_token", allowzero=1)
    summed = write.add("ReduceSum", [parted, shared["axis_1"]], f"{layer}.expert_sum", keepdims=0)
    shape = write.add("Shape", [hidden], f"{layer}.moe_shape")
    replace_output(write.graph, node, write.add("Reshape", [summed, shape], f"{layer}.moe_output"))


def _choose(write: Writer, layer: str, logits: ir.Value, top_k: int, shared: dict[str, ir.Value]) -> tuple[ir.Value, ir.Value]:
    """experts int64 [N] and shares float32 [N,R,1]: the softmax over all E, renormalised, is that over the chosen."""
    flat = write.add("Reshape", [logits, shared["logits_shape"]], f"{layer}.router_rows")  # [T,E]
    names = [f"{layer}.expert_logits", f"{layer}.experts"]
    largest, experts = write.add_all("TopK", [flat, shared["k"]], names, axis=-1, largest=1, sorted=1)
    experts.type, experts.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([None, top_k])
    shares = write.add("Softmax", [largest], f"{layer}.expert_shares", axis=-1)  # [T,k]
    nothing = write.add("Sub", [flat, flat], f"{layer}.no_shares")
    spread = write.add("ScatterElements", [nothing, experts, shares], f"{layer}.shares_by_token", axis=1)
    by_expert = write.add("Transpose", [spread], f"{layer}.shares_by_expert", perm=[1, 0])  # [E,T]

    def either(chosen: ir.Value, every: ir.Value, last: str, name: str) -> ir.Value:
        row = write.add("Reshape", [chosen, shared["flat_shape"]], f"{name}.chosen")
        both = write.add("Concat", [row, every], f"{name}.both", axis=0)
        return write.add("Slice", [both, shared["first"], shared[last], shared["axis_0"]], name)

    ids = either(experts, shared["everyone"], "last_expert", f"{layer}.expert_ids")
    pairs = write.add("Reshape", [by_expert, shared["flat_shape"]], f"{layer}.shares_flat")
    parts = either(shares, pairs, "last_share", f"{layer}.shares_taken")
    return ids, write.add("Reshape", [parts, shared["shares_all"]], f"{layer}.shares", allowzero=1)
