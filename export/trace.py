"""Traces a model definition into an ONNX graph without allocating one weight.

The module is built under FakeTensorMode and traced by torch.export with dynamic B, S and P; our own custom operators,
RMSNorm and the rotary embedding are one call each in what it gives, and one node each in the ONNX graph.
"""

from typing import Any

import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from alize.errors import ExportFailed
from alize.export.translate import translate
from alize.models.registry import Family

__all__ = ["trace"]

# Sizes that the tracer may not take for constants: all different, none of them 0 or 1.
_EXAMPLE_BATCH, _EXAMPLE_NEW, _EXAMPLE_PAST = 2, 3, 5


def trace(family: Family, config: Any) -> ir.Model:
    """Returns the raw graph of `family.model(config)`: weights are initialisers without data, named as its parameters.

    Inputs input_ids and position_ids [B,S], attention_mask [B,P+S], then key and value [B,K,P,D] of each layer; outputs
    logits [B,S,V], then key and value [B,K,P+S,D] of each layer. Raises ExportFailed naming what could not be traced.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = family.model(config).eval().requires_grad_(False)
        arguments, shapes = _example(config)
        try:
            program = torch.export.export(model, arguments, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise ExportFailed(f"torch.export could not trace {family.model_type}: {error}") from error
    return translate(program)


def _example(config: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    batch, new, past = _EXAMPLE_BATCH, _EXAMPLE_NEW, _EXAMPLE_PAST
    input_ids = torch.zeros(batch, new, dtype=torch.int64)
    position_ids = torch.zeros(batch, new, dtype=torch.int64)
    attention_mask = torch.ones(batch, past + new, dtype=torch.int64)
    cache = torch.zeros(batch, config.num_kv_heads, past, config.head_size)
    caches = [(cache.clone(), cache.clone()) for _ in range(config.num_layers)]
    dynamic = torch.export.Dim.DYNAMIC
    both = {0: dynamic, 1: dynamic}
    pair = ({0: dynamic, 2: dynamic}, {0: dynamic, 2: dynamic})
    return (input_ids, position_ids, attention_mask, caches), (both, both, both, [pair] * config.num_layers)
