"""Initialisers of the hub model: tensors that stay in the checkpoint's shards until something writes them out.

The hub keeps each weight in its stored dtype, followed by a Cast to float32 (idle where it is float32 already): what is
computed is float32, what is stored is what the checkpoint holds, bit for bit.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor

from alize.errors import ExportFailed
from alize.models.checkpoint import DTYPES, Checkpoint, Weight

__all__ = ["ONNX_DTYPES", "StreamedWeight", "attach_weights"]

ONNX_DTYPES = {
    torch.float64: ir.DataType.DOUBLE,
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
}


class StreamedWeight(ir.LazyTensor):
    """An initialiser that makes its values anew each time it is asked, and keeps nothing.

    load: reads the mapped shards and converts; called once for each time that the tensor is written out.
    parts: of a stack [E,...] its matrices, of two above each other both, each a weight of its own [out,in].
    """

    def __init__(
        self,
        load: Callable[[], Tensor],
        *,
        dtype: torch.dtype,
        shape: Sequence[int],
        name: str,
        parts: "tuple[StreamedWeight, ...]" = (),
    ) -> None:
        super().__init__(
            lambda: TorchTensor(load(), name=name), dtype=ONNX_DTYPES[dtype], shape=ir.Shape(shape), cache=False, name=name
        )
        self.load = load
        self.parts = parts

    def to(self, dtype: torch.dtype) -> "StreamedWeight":
        """The same weight stored in another float dtype."""
        sizes = self.shape.numpy()
        parts = tuple(part.to(dtype) for part in self.parts)
        return StreamedWeight(lambda: self.load().to(dtype), dtype=dtype, shape=sizes, name=str(self.name), parts=parts)

    def above(self, other: "StreamedWeight", name: str) -> "StreamedWeight":
        """This weight's rows and then the other's, as one weight [out of both,in]."""
        (rows, columns), (more, _), mine, others = self.shape.numpy(), other.shape.numpy(), self.load, other.load
        dtype = next(torch_dtype for torch_dtype, onnx_dtype in ONNX_DTYPES.items() if onnx_dtype == self.dtype)
        return StreamedWeight(
            lambda: torch.cat((mine(), others())), dtype=dtype, shape=(rows + more, columns), name=name, parts=(self, other)
        )

    def transposed(self, name: str) -> "StreamedWeight":
        """[out,in] -> [in,out], stored row by row under another name."""
        rows, columns = self.shape.numpy()
        dtype = next(torch_dtype for torch_dtype, onnx_dtype in ONNX_DTYPES.items() if onnx_dtype == self.dtype)
        load = self.load
        return StreamedWeight(
            lambda: torch.t(load()).contiguous(), dtype=dtype, shape=(columns, rows), name=name, parts=self.parts
        )


def attach_weights(model: ir.Model, checkpoint: Checkpoint, weights: Mapping[str, Weight]) -> None:
    """Gives each initialiser of the traced graph its lazy tensor. In place.

    Raises ExportFailed when graph and checkpoint disagree on what the model's parameters are.
    """
    graph = model.graph
    traced = {name for name, value in graph.initializers.items() if name in weights}
    if missing := weights.keys() - traced:
        raise ExportFailed(f"the traced graph does not use {sorted(missing)[0]} and {len(missing) - 1} more weights")
    for name in sorted(traced):
        value, weight = graph.initializers[name], weights[name]
        tensor = _streamed(checkpoint, name, weight)
        value.const_value, value.type = tensor, ir.TensorType(tensor.dtype)
        value.shape = ir.Shape(weight.shape)
        _cast_uses(graph, value)


def _streamed(checkpoint: Checkpoint, name: str, weight: Weight) -> StreamedWeight:
    dtype = DTYPES[checkpoint.tensors[weight.sources[0]].dtype]
    apart = weight.apart(name)
    parts = tuple(_streamed(checkpoint, *part) for part in apart.items()) if len(weight.shape) > 2 else ()
    return StreamedWeight(partial(checkpoint.read, weight, dtype), dtype=dtype, shape=weight.shape, name=name, parts=parts)


def _cast_uses(graph: ir.Graph, value: ir.Value) -> None:
    """Inserts the Cast to float32: behind a Gather (only the rows looked up are converted), else behind the weight."""
    uses = list(value.uses())
    gathers = [use for use in uses if use.node.op_type == "Gather" and use.idx == 0]
    others = [use for use in uses if use not in gathers]
    for use in gathers:
        output = use.node.outputs[0]
        cast = ir.node("Cast", [output], {"to": ir.DataType.FLOAT}, name=f"{use.node.name}.to_float32")
        ir.convenience.replace_all_uses_with(output, cast.outputs[0])
        cast.replace_input_with(0, output)
        cast.outputs[0].name, cast.outputs[0].shape = f"{output.name}.to_float32", output.shape
        cast.outputs[0].type, output.type = output.type, value.type
        graph.insert_after(use.node, cast)
    if others:
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{value.name}.to_float32")
        cast.outputs[0].name, cast.outputs[0].shape = f"{value.name}.float32", value.shape
        cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        for use in others:
            use.node.replace_input_with(use.idx, cast.outputs[0])
        graph.insert_before(others[0].node, cast)
