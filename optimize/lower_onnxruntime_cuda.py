"""Hub ONNX -> a graph for ONNX Runtime's CUDA provider: model.onnx and model.onnx.data, computed in float16.

Attention is GroupQueryAttention with the window as an attribute and without a bias, which the provider's kernel refuses: masks
are padded on the right only. Integers are multiplied with by MatMulNBits. Types that its kernels take were read in
https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md; none of it was run on a GPU yet.
"""

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from alize.optimize.expert_forms import NO_OPTIONS, expert_form, expert_pass
from alize.optimize.experts_apart import experts_apart
from alize.optimize.group_query_attention import group_query_attention_unbiased
from alize.optimize.half_precision import half_precision
from alize.optimize.lower_onnxruntime import MODEL_FILE, check_structure
from alize.optimize.matmul_nbits import matmul_nbits
from alize.optimize.passes import Pass, drop_functions, run, write
from alize.optimize.quantise import float_part, integer_part
from alize.optimize.rotary_before_split import rotary_before_split
from alize.optimize.rounded import Rounded
from alize.optimize.store_weights import store_weights
from alize.optimize.transpose_weights import transpose_weights

__all__ = ["MODEL_FILE", "check_structure", "lower", "passes"]


def passes(weights: str, experts: str = "", rounded: Rounded | None = None) -> tuple[Pass, ...]:
    """The lowering, in order; see `lower_onnxruntime.passes`."""
    integers = integer_part(weights, rounded)
    return (
        *expert_pass(experts, {"apart": experts_apart}),
        store_weights(float_part(weights)),
        rotary_before_split,
        *((*integers, matmul_nbits) if integers else (transpose_weights,)),
        group_query_attention_unbiased,
        half_precision("fp16"),
        drop_functions,
    )


def lower(
    hub: ir.Model,
    folder: Path,
    *,
    weights: str,
    options: Mapping[str, str] = NO_OPTIONS,
    rounded: Rounded | None = None,
) -> tuple[str, ...]:
    """See `lower_onnxruntime.lower`."""
    done = run(hub, passes(weights, expert_form(hub, options), rounded))
    write(hub, folder / MODEL_FILE)
    return tuple(done)
