"""FunctionProto bodies of the `ai.alize` operators, in standard operators of opset 23 only.

A body is the specification of its operator: any ONNX engine of opset 23 that inlines it runs the hub model with no kernel of
ours. A lowering replaces the node by what its target does best, and validation holds it to what the body says.
"""

import onnx.parser
import onnx_ir as ir

__all__ = ["DOMAIN", "IR_VERSION", "OPSET", "VERSION", "function_bodies"]

DOMAIN = "ai.alize"
VERSION = 1
OPSET = 23
IR_VERSION = 11  # the one that came with opset 23

# i and j are indices on the concatenated axis 0..P+S-1, new token s has i = P+s. Shapes as in the operator's contract:
# query[B,H,S,D], key/value[B,K,S,D], past_*[B,K,P,D], attention_mask[B,P+S].
_SLIDING_WINDOW_ATTENTION = """
<domain: "ai.alize", opset_import: ["" : 23]>
SlidingWindowAttention <window, scale>
  (query, key, value, past_key, past_value, attention_mask) => (output, present_key, present_value)
{
  present_key = Concat <axis = 2> (past_key, key)
  present_value = Concat <axis = 2> (past_value, value)
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  new_1d = Shape <start = 2, end = 3> (query)
  total_1d = Shape <start = 1, end = 2> (attention_mask)
  new = Squeeze (new_1d)
  total = Squeeze (total_1d)
  past = Sub (total, new)
  j = Range (zero, total, one)
  i_row = Range (past, total, one)
  column = Constant <value_ints = [1]> ()
  i = Unsqueeze (i_row, column)
  distance = Sub (i, j)
  causal = GreaterOrEqual (distance, zero)
  window_size = Constant <value_int: int = @window> ()
  unlimited = Equal (window_size, zero)
  near = Less (distance, window_size)
  in_window = Or (unlimited, near)
  reachable = And (causal, in_window)
  middle = Constant <value_ints = [1, 2]> ()
  real_row = Cast <to = 9> (attention_mask)
  real = Unsqueeze (real_row, middle)
  visible = And (reachable, real)
  attended = Attention <scale: float = @scale> (query, present_key, present_value, visible)
  visible_count = Cast <to = 7> (visible)
  last = Constant <value_ints = [-1]> ()
  sees_count = ReduceMax <keepdims = 1> (visible_count, last)
  sees = Cast <to = 9> (sees_count)
  nothing = Constant <value_float = 0.0> ()
  output = Where (sees, attended, nothing)
}
"""

# hidden[B,S,M], router_logits[B,S,E], gate_proj and up_proj[E,I,M], down_proj[E,M,I]. As a specification has to be, it is plain:
# every expert sees every token, and the weight of those that were not chosen is 0. The lowerings compute the chosen ones only.
_SPARSE_MOE = """
<domain: "ai.alize", opset_import: ["" : 23]>
SparseMoE <top_k>
  (hidden, router_logits, gate_proj, up_proj, down_proj) => (output)
{
  last = Constant <value_ints = [-1]> ()
  top_k_1d = Constant <value_ints: ints = [1]> ()
  top_k_size = Constant <value_int: int = @top_k> ()
  k = Mul (top_k_1d, top_k_size)
  probabilities = Softmax <axis = -1> (router_logits)
  chosen, experts = TopK <axis = -1, largest = 1, sorted = 1> (probabilities, k)
  sum = ReduceSum <keepdims = 1> (chosen, last)
  shares = Div (chosen, sum)
  zero = Constant <value_float = 0.0> ()
  nothing = Mul (router_logits, zero)
  weights = ScatterElements <axis = -1> (nothing, experts, shares)
  expert_axis = Constant <value_ints = [0]> ()
  by_expert = Transpose <perm = [2, 0, 1]> (weights)
  column = Constant <value_ints = [-1]> ()
  weight = Unsqueeze (by_expert, column)
  flat_shape = Constant <value_ints = [1, -1]> ()
  width = Shape <start = 2, end = 3> (hidden)
  rows_shape = Concat <axis = 0> (flat_shape, width)
  rows = Reshape (hidden, rows_shape)
  gate_columns = Transpose <perm = [0, 2, 1]> (gate_proj)
  gate = MatMul (rows, gate_columns)
  gate_sigmoid = Sigmoid (gate)
  gate_silu = Mul (gate, gate_sigmoid)
  up_columns = Transpose <perm = [0, 2, 1]> (up_proj)
  up = MatMul (rows, up_columns)
  inner = Mul (gate_silu, up)
  down_columns = Transpose <perm = [0, 2, 1]> (down_proj)
  answers = MatMul (inner, down_columns)
  experts_1d = Shape <start = 0, end = 1> (gate_proj)
  hidden_shape = Shape (hidden)
  answers_shape = Concat <axis = 0> (experts_1d, hidden_shape)
  answers_by_token = Reshape (answers, answers_shape)
  weighted = Mul (answers_by_token, weight)
  output = ReduceSum <keepdims = 0> (weighted, expert_axis)
}
"""


def function_bodies() -> list[ir.Function]:
    """The operators' bodies, parsed anew so that each hub model owns its copy."""
    return [ir.serde.deserialize_function(onnx.parser.parse_function(text)) for text in (_SLIDING_WINDOW_ATTENTION, _SPARSE_MOE)]
