"""The integer matrices of an ONNX Runtime artifact: read back as they lie, and asserted on the executed graph."""

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch

from alize.artifact.manifest import ModelInfo
from alize.optimize.integer_products import describe_forms, require_products
from alize.optimize.matmul_nbits import form_of_product, is_product, read_product
from alize.optimize.quantisation import Form
from alize.optimize.quantise import SCALES, SIGNS, ZERO_POINTS, tensor_name
from alize.optimize.round_to_integers import Integers, unpack_nibbles
from alize.optimize.transpose_weights import SUFFIX

__all__ = ["INTEGER_TYPES", "check_integers", "read_integers"]

INTEGER_TYPES = (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8)


def read_integers(initializers: Mapping[str, ir.Value], stored: str) -> Integers:
    """A matrix [out,in], or a stack [E,out,in], by the name it is stored under, whichever way it lies."""
    if is_product(initializers, stored):
        return read_product(initializers, stored)
    values, scales = _unpacked(initializers[stored]), _unpacked(initializers[stored + SCALES])
    zeros = _unpacked(initializers[stored + ZERO_POINTS]) if stored + ZERO_POINTS in initializers else None
    if stored.endswith(SUFFIX):
        values, scales = torch.t(values), torch.t(scales)
        zeros = None if zeros is None else torch.t(zeros)
    leading = values.shape[:-1]  # [out], or [E,out] of a stack
    zeros = None if zeros is None else zeros.reshape(*leading, -1)
    scales = scales.reshape(*leading, -1)
    if stored + SIGNS in initializers:
        scales = scales * _unpacked(initializers[stored + SIGNS]).reshape(*leading, 1)
    return Integers(values, scales, zeros)


def _unpacked(value: ir.Value) -> torch.Tensor:
    tensor = value.const_value
    assert tensor is not None
    data = torch.frombuffer(bytearray(tensor.tobytes()), dtype=torch.uint8)
    shape = tensor.shape.numpy()
    if tensor.dtype.bitwidth == 4:
        return unpack_nibbles(data, tensor.size, signed=tensor.dtype == ir.DataType.INT4).reshape(shape)
    kinds = {ir.DataType.FLOAT16: torch.float16, ir.DataType.INT8: torch.int8, ir.DataType.UINT8: torch.uint8}
    return data.view(kinds[tensor.dtype]).reshape(shape)


def check_integers(graph: ir.Graph, executed: Mapping[str, str], info: ModelInfo) -> dict[str, Any]:
    """Asserts that every matrix of integers ran as MatMulNBits, by layer and projection.

    executed: name -> operator of each node that ran. Returns what the manifest's `structure` holds of it. Raises
    LoweringFailed naming layer and projection.
    """
    forms = {
        tensor_name(name): _form(graph, name)
        for name, value in graph.initializers.items()
        if tensor_name(name).endswith(".weight") and value.dtype in INTEGER_TYPES
    }
    require_products(set(forms), executed, wanted="MatMulNBits", layers=info.layers)
    return {
        "integer_products": sum(kind == "MatMulNBits" for kind in executed.values()),
        "integers": describe_forms(forms),
    }


def _form(graph: ir.Graph, stored: str) -> tuple[Form, int]:
    if is_product(graph.initializers, stored):
        return form_of_product(graph.initializers, stored)
    values, scales = graph.initializers[stored].shape, graph.initializers[stored + SCALES].shape
    dtype = graph.initializers[stored].dtype
    assert values is not None and scales is not None and dtype is not None
    rows, columns = values.numpy()[:: -1 if stored.endswith(SUFFIX) else 1]
    groups = int(torch.Size(scales.numpy()).numel()) // rows
    return Form(int(dtype.bitwidth), columns // groups, stored + ZERO_POINTS not in graph.initializers), columns
