"""SlidingWindowAttention -> OpenVINO's ScaledDotProductAttention, in the one form that its passes and kernels recognise.

    past -> Concat(past, current) -> [Unsqueeze -> Broadcast -> Reshape] -> ScaledDotProductAttention(q, k, v, mask, scale)

`openvino_stateful` puts ReadValue and Gather before the Concat; the CPU plugin then fuses the whole of it into one stateful
node a layer. The mask of a windowed layer is written as

    Greater(key index, Add(query index, Constant(-W))) -> four BitwiseAnd -> Broadcast -> Select -> Slice

because that is what the engine's own paged-attention pass (which openvino_genai runs on any model it opens) takes for a
window; from any other mask it drops the window in silence. Masks are shared: one for each window size of the model.

Where some layers have a window and others see everything, a runtime may forget in the first what it keeps in the second. So
there a windowed mask is as wide as its own layers' cache, and takes so many columns from the end of attention_mask.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alize.errors import LoweringFailed

__all__ = ["HIDDEN_SCORE", "attention_conversion"]

# Added to the score of a key that is not visible. Finite: a padding row that sees no key gives an average, not NaN, and
# what it gives is never read (its own key is hidden from every real token).
HIDDEN_SCORE = float(np.finfo(np.float32).min)


def attention_conversion(windows: Sequence[int]) -> Callable[[Any], list[Any]]:
    """The conversion that `openvino.frontend.onnx.ConversionExtension` calls for each node; masks are kept between calls.

    windows: of each layer, 0 = full attention.
    """
    masks: dict[int, Any] = {}
    mixed = 0 in windows and any(windows)

    def convert(context: Any) -> list[Any]:
        from openvino import opset13 as ops

        query, key, value, past_key, past_value, padding = (context.get_input(index) for index in range(6))
        window = context.get_attribute("window")
        scale = context.get_attribute("scale")
        present_key = ops.concat([past_key, key], 2)
        if window not in masks:
            masks[window] = _mask(query, _last_columns(padding, present_key) if mixed and window else padding, window)
        present_value = ops.concat([past_value, value], 2)
        attended = ops.scaled_dot_product_attention(
            query,
            _repeat_heads(present_key, query, key),
            _repeat_heads(present_value, query, value),
            masks[window],
            ops.constant(np.float32(scale)),
            causal=False,
        )
        return [attended.output(0), present_key.output(0), present_value.output(0)]

    return convert


def _repeat_heads(present: Any, query: Any, current: Any) -> Any:
    """[B,K,T,D] -> [B,H,T,D], each key/value head repeated for the H/K query heads that read it."""
    from openvino import opset13 as ops

    heads, kv_heads = _static(query, 1), _static(current, 1)
    if heads == kv_heads:
        return present
    shape = ops.shape_of(present, "i64")
    axis0 = ops.constant(np.int64(0))
    leading = ops.gather(shape, ops.constant(np.array([0, 1], np.int64)), axis0)
    trailing = ops.gather(shape, ops.constant(np.array([2, 3], np.int64)), axis0)
    repeats = ops.constant(np.array([heads // kv_heads], np.int64))
    repeated = ops.broadcast(
        ops.unsqueeze(present, ops.constant(np.int64(2))),
        ops.concat([leading, repeats, trailing], 0),
        broadcast_spec="BIDIRECTIONAL",
    )
    merged = ops.constant(np.array([0, heads, -1, _static(current, 3)], np.int64))
    return ops.reshape(repeated, merged, special_zero=True)


def _static(value: Any, axis: int) -> int:
    dimension = value.get_partial_shape()[axis]
    if dimension.is_dynamic:
        raise LoweringFailed(f"openvino_attention: axis {axis} of {value.get_partial_shape()} is dynamic; heads must be static")
    return int(dimension.get_length())


def _last_columns(padding: Any, present_key: Any) -> Any:
    """[B,P+S] -> [B,T]: attention_mask for the T = present_key.shape[2] positions that these layers still have, the latest."""
    from openvino import opset13 as ops

    number = ops.gather(ops.shape_of(present_key, "i64"), ops.constant(np.array([2], np.int64)), ops.constant(np.int64(0)))
    last, step, axis = (ops.constant(np.array([value], np.int64)) for value in (np.iinfo(np.int64).max, 1, 1))
    return ops.slice(padding, ops.negative(number), last, step, axis)


def _mask(query: Any, padding: Any, window: int) -> Any:
    """float32 [B,1,S,T]: 0 where a query sees a key, HIDDEN_SCORE where it doesn't."""
    from openvino import opset13 as ops

    zero, one = ops.constant(np.int64(0)), ops.constant(np.int64(1))
    new = ops.gather(ops.shape_of(query, "i64"), ops.constant(np.int64(2)), zero)
    padding_shape = ops.shape_of(padding, "i64")
    total = ops.gather(padding_shape, one, zero)
    keys = ops.unsqueeze(ops.range(zero, total, one, "i64"), ops.constant(np.array([0, 1, 2], np.int64)))  # [1,1,1,T]
    queries = ops.unsqueeze(
        ops.range(ops.subtract(total, new), total, one, "i64"), ops.constant(np.array([0, 1, 3], np.int64))
    )  # [1,1,S,1]
    causal = ops.less_equal(keys, queries)
    real = ops.unsqueeze(ops.convert(padding, "boolean"), ops.constant(np.array([1, 2], np.int64)))  # [B,1,1,T]
    always = ops.constant(np.array(True))
    if window:
        near = ops.greater(keys, ops.add(queries, ops.constant(np.int64(-window))))
        visible = ops.bitwise_and(ops.bitwise_and(always, near), causal)
    else:
        visible = ops.bitwise_and(always, causal)
    visible = ops.bitwise_and(ops.bitwise_and(always, visible), real)
    batch = ops.gather(padding_shape, ops.constant(np.array([0], np.int64)), zero)
    single = ops.constant(np.array([1], np.int64))
    shape = ops.concat([batch, single, ops.unsqueeze(new, zero), ops.unsqueeze(total, zero)], 0)
    scores = ops.select(
        ops.broadcast(visible, shape, broadcast_spec="BIDIRECTIONAL"),
        ops.constant(np.float32(0)),
        ops.constant(np.float32(HIDDEN_SCORE)),
    )
    start, step, axis = (ops.constant(np.array([number], np.int64)) for number in (0, 1, 3))
    return ops.slice(scores, start, ops.unsqueeze(total, zero), step, axis)
