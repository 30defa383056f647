"""The integer matrices of an OpenVINO IR: read back as they lie, and asserted on the compiled graph."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alize.artifact.manifest import ModelInfo
from alize.optimize.integer_products import HEAD, describe_forms, require_products
from alize.optimize.openvino_slices import Slices
from alize.optimize.openvino_structure import compile_ir
from alize.optimize.quantisation import Form
from alize.optimize.quantise import SCALES, ZERO_POINTS
from alize.optimize.round_to_integers import Integers, unpack_nibbles

__all__ = ["INTEGER_TYPES", "STACK", "check_integers", "read_integers"]

INTEGER_TYPES = ("i4", "u4", "i8", "u8")
STACK = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(gate_proj|up_proj|down_proj)")
"""The name of all experts' matrices in one, in the tiled form."""

_WANTED = "FullyConnected with integers"
_WANTED_OF_STACKS = "GatherMatmul with integers"


def read_integers(constants: dict[str, Any], name: str, index: int | None = None) -> Integers:
    """A matrix from the IR's Constant nodes by name, of a stack the one at `index`: copies, that stay when the model goes."""
    values, scales = constants[name], constants[name + SCALES]
    zeros = constants.get(name + ZERO_POINTS)
    found = _unpacked(values, index)
    return Integers(
        found,
        torch.from_numpy(np.array(_part(scales, index))).reshape(len(found), -1),  # [out,G]
        None if zeros is None else _unpacked(zeros, index).reshape(len(found), -1),
    )


def _part(node: Any, index: int | None) -> Any:
    """The bytes of a constant, mapped, or of the matrix at `index` of one: nibbles are packed across its whole length."""
    data = node.data.reshape(-1)
    if index is None:
        return data
    size, odd = divmod(data.size, node.shape[0])
    if odd:
        raise ValueError(f"{node.get_friendly_name()}: the matrices of the stack do not begin at whole bytes")
    return data[index * size : (index + 1) * size]


def _unpacked(node: Any, index: int | None) -> torch.Tensor:
    kind, data = node.get_element_type().get_type_name(), torch.from_numpy(np.array(_part(node, index)))
    shape = tuple(node.shape) if index is None else tuple(node.shape)[1:]
    if kind in ("i4", "u4"):
        data = unpack_nibbles(data.view(torch.uint8), int(np.prod(shape)), signed=kind == "i4")
    return data.reshape(shape)


def check_integers(path: Path, info: ModelInfo, *, slices: Slices | None = None) -> dict[str, Any]:
    """Asserts that the CPU plugin multiplies with the integers themselves, in every layer and projection.

    slices: compile these layers at a time. Returns what the manifest's `structure` holds of it. Raises LoweringFailed naming
    layer and projection.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    constants = {node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "Constant"}
    forms = {
        name: _form(constants, name)
        for name, node in constants.items()
        if name + SCALES in constants and node.get_element_type().get_type_name() in INTEGER_TYPES
    }
    head = model.output("logits").get_node().input_value(0).get_node().get_friendly_name()
    products = {node.get_friendly_name() for node in model.get_ops() if node.get_type_name() == "MatMul"}
    executed: dict[str, str] = {}
    for first, stop in slices or ((0, info.layers),):
        layers = None if slices is None else (first, stop, info.layers)
        executed |= dict(_products(compile_ir(path, layers=layers), products))
    count = sum(kind in (_WANTED, _WANTED_OF_STACKS) for kind in executed.values())
    if head in executed:
        executed[HEAD] = executed[head]
    stacks = {name for name in forms if STACK.fullmatch(name)}
    require_products(set(forms) - stacks, executed, wanted=_WANTED, layers=info.layers)
    if stacks:
        require_products(stacks, executed, wanted=_WANTED_OF_STACKS, layers=info.layers)
    return {"integer_products": count, "integers": describe_forms(forms)}


def _form(constants: dict[str, Any], name: str) -> tuple[Form, int]:
    node = constants[name]
    kind, (*rows, columns) = node.get_element_type().get_type_name(), node.shape
    groups = int(np.prod(constants[name + SCALES].shape)) // int(np.prod(rows))
    return Form(int(kind[1:]), columns // groups, name + ZERO_POINTS not in constants), columns


def _products(compiled: Any, products: set[str]) -> Iterator[tuple[str, str]]:
    """Each of the IR's MatMul nodes, and what it runs as."""
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        kind = str(info["layerType"].value)
        if kind in ("FullyConnected", "MatMul", "GatherMatmul"):
            weights = node.input_value(1).get_element_type().get_type_name()
            what = f"{kind} with {'integers' if weights in INTEGER_TYPES else weights}"
            yield from ((name, what) for name in str(info["originalLayersNames"].value).split(",") if name in products)
