"""What validation asks an OpenVINO artifact besides logits: its weights, its residual stream, a mixture of experts alone."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alize.optimize.expert_nodes import matrices_in, single_matrices
from alize.optimize.lower_openvino import MODEL_FILE
from alize.optimize.openvino_integers import INTEGER_TYPES, STACK, read_integers
from alize.optimize.round_to_integers import Integers
from alize.optimize.rounded import IntegerSource

__all__ = ["cut_experts", "residual_stream", "stored_integers", "stored_weights"]

_ACCURACY = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_PRECISION_HINT": "f32"}
_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def stored_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor | Integers]]:
    """Each weight's name and values, [out,in] as in the checkpoint, read from the file one after another."""
    constants = _constants(folder)
    for name, node in constants.items():
        stack = STACK.fullmatch(name)
        if not stack and not name.endswith(".weight"):
            continue
        if _of_integers(node):
            for part, e in _parts(name, stack, node.shape[0]):
                yield from single_matrices(part, read_integers(constants, name, e))
        else:
            dtype = _DTYPES[node.get_element_type().get_type_name()]
            bits = np.asarray(node.get_data())  # numpy has no bfloat16: OpenVINO hands its bits out as float16
            for part, e in _parts(name, stack, len(bits)):
                yield from single_matrices(part, torch.from_numpy((bits if e is None else bits[e]).copy()).view(dtype))


def stored_integers(folder: Path) -> IntegerSource:
    """Reads a matrix of integers by its name whenever it is asked for one."""
    constants = _constants(folder)
    places = {
        single: (rows, name, e)
        for name, node in constants.items()
        if (stack := STACK.fullmatch(name)) or name.endswith(".weight")
        if _of_integers(node)
        for part, e in _parts(name, stack, node.shape[0])
        for single, rows in matrices_in(part, node.shape[-2])
    }

    def source(name: str) -> Integers:
        rows, stored, e = places[name]
        return read_integers(constants, stored, e).rows(rows)

    return source


def _constants(folder: Path) -> dict[str, Any]:
    """The IR's Constant nodes by name; their values are mapped for as long as one of them is there."""
    import openvino

    model = openvino.Core().read_model(folder / MODEL_FILE)
    return {node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "Constant"}


def _of_integers(node: Any) -> bool:
    return node.get_element_type().get_type_name() in INTEGER_TYPES


def _parts(name: str, stack: re.Match[str] | None, experts: int) -> list[tuple[str, int | None]]:
    """The matrices of a stack by their names and places; a matrix by its own, and no place."""
    return [(f"{stack[1]}.{e}.{stack[2]}.weight", e) for e in range(experts)] if stack else [(name, None)]


def residual_stream(folder: Path, tokens: NDArray[np.int64], names: list[str]) -> dict[str, NDArray[np.float32]]:
    """[S,n] of each named point, after one pass over tokens [S] in accuracy mode."""
    import openvino

    core = openvino.Core()
    model = core.read_model(folder / MODEL_FILE)
    model.add_outputs(names)
    compiled = core.compile_model(model, "CPU", _ACCURACY)
    size = len(tokens)
    feeds = {
        "input_ids": tokens[None],
        "position_ids": np.arange(size, dtype=np.int64)[None],
        "attention_mask": np.ones((1, size), np.int64),
        "beam_idx": np.zeros(1, np.int32),
    }
    result = compiled.create_infer_request().infer(feeds)
    return {name: np.array(result[name]).reshape(size, -1) for name in names}


def cut_experts(
    folder: Path, layer: int, hidden: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """One layer's router and experts, cut out of the graph and run by themselves in accuracy mode.

    hidden: float32 [n,M], what the layer's router and experts are given. Returns the router's logits float32 [n,E], the chosen
    experts int64 [n,top_k] and the output float32 [n,M]. Only this layer's weights are read.
    """
    import openvino

    core = openvino.Core()
    names = [f"layers.{layer}.{part}" for part in ("router_logits", "experts", "moe")]
    model = _between(core.read_model(folder / MODEL_FILE), f"layers.{layer}.moe_input", names)
    compiled = core.compile_model(model, "CPU", _ACCURACY)
    given = {"hidden": hidden[None], "input_ids": np.zeros((1, len(hidden)), np.int64)}
    found = compiled.create_infer_request().infer({value.any_name: given[value.any_name] for value in compiled.inputs})
    logits, experts, output = (np.array(found[index]).reshape(len(hidden), -1) for index in range(3))
    return logits, experts.astype(np.int64), output


def _between(model: Any, start: str, ends: list[str]) -> Any:
    """An openvino.Model from the tensor `start`, its input `hidden` [B,S,M], to the tensors `ends`."""
    import openvino
    from openvino import opset13 as ops

    tensors = {name: value for node in model.get_ops() for value in node.outputs() for name in value.get_names()}
    cut = tensors[start]
    hidden = ops.parameter(cut.get_partial_shape(), cut.get_element_type())
    hidden.output(0).get_tensor().set_names({"hidden"})
    for reader in cut.get_target_inputs():
        reader.replace_source_output(hidden.output(0))
    results = [ops.result(tensors[name]) for name in ends]
    reached: dict[str, Any] = {}
    waiting = list(results)
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() not in reached:
            reached[node.get_friendly_name()] = node
            waiting += [value.get_node() for value in node.input_values()]
    inputs = [parameter for parameter in model.get_parameters() if parameter.get_friendly_name() in reached]
    return openvino.Model(results, [hidden, *inputs])
