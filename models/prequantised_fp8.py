"""transformers' fp8 format (FineGrainedFP8Config; the layout of DeepSeek-V3's README_WEIGHTS, and of Ministral 3 per tensor).

    weight[o,i] = float32(stored[o,i]) * float32(weight_scale_inv[o // rows, i // columns])    [rows, columns] = weight_block_size

`stored` is float8_e4m3fn (OCP 8-bit floating point, OFP8: no infinities); with weight_block_size null one scale serves the whole
tensor. `activation_scale`, which the static scheme adds, quantises activations: no weight depends on it, so it is left out.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from alize.models.prequantised_rules import FLOATS, Scheme, refuse
from alize.models.tensor_info import Packed, Rows, TensorInfo

__all__ = ["fp8"]

USED = ("weight_block_size", "activation_scheme", "scale_fmt", "expert_dtype", "modules_to_convert", "fmt")
IGNORED = ("dequantize",)  # how transformers is to load it
STORED = "F8_E4M3"
SCALE, ACTIVATION = "_scale_inv", "activation_scale"
VALUES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()  # torch converts one at a time, slowly
EXACT_IN_BF16 = (2.0**-117, 2.0**119)  # powers of two from, to: 4 significant bits of e4m3 times these are normal bfloat16


def fp8(scheme: Scheme) -> tuple[dict[str, TensorInfo], dict[str, Packed]]:
    """See `prequantised.dequantised`."""
    scheme.only_keys(USED, IGNORED)
    scheme.only("activation_scheme", ("dynamic", "static"), default="dynamic")
    scheme.only("scale_fmt", ("float",), default="float")
    scheme.only("expert_dtype", ("fp8",), default="fp8")
    scheme.only("fmt", ("e4m3",), default="e4m3")
    scheme.only("modules_to_convert", (None, []))
    block = _block_size(scheme)
    matrices = [name for name, info in scheme.stored.items() if info.dtype.startswith("F8_")]
    scheme.check_converted(matrices)
    packed = {name: _matrix(scheme, name, block) for name in matrices}
    used = {name + SCALE for name in packed} | {_activation(name) for name in packed}
    left = {name: info for name, info in scheme.stored.items() if name not in used}
    for name in left:
        if name.endswith((SCALE, "." + ACTIVATION)):
            raise scheme.corrupt(f"{left[name].file.name}: tensor {name} belongs to no fp8 weight")
    return {name: packed[name].info if name in packed else info for name, info in left.items()}, packed


def _block_size(scheme: Scheme) -> tuple[int, int] | None:
    block = scheme.config.get("weight_block_size", [128, 128])
    if block is None:
        return None
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise scheme.corrupt(f"weight_block_size is {block!r}, not two whole numbers of at least 1 (or null: one scale a tensor)")
    return block[0], block[1]


def _activation(name: str) -> str:
    return name.removesuffix("weight") + ACTIVATION


def _matrix(scheme: Scheme, name: str, block: tuple[int, int] | None) -> Packed:
    info = scheme.stored[name]
    if info.dtype != STORED:
        raise refuse(scheme.method, f"tensor {name} is {info.dtype}, only {STORED} is known")
    if len(info.shape) != 2 or not name.endswith(".weight"):
        raise refuse(scheme.method, f"tensor {name} {list(info.shape)} is no matrix of a linear layer")
    if name + SCALE not in scheme.stored:
        other = next((part for part in ("_scale", "_scale_2") if name + part in scheme.stored), None)
        hint = "" if other is None else f" ({name}{other} is of another tool's layout)"
        raise scheme.corrupt(f"{info.file.name}: tensor {name} has no {name}{SCALE}{hint}")
    scale = scheme.stored[name + SCALE]
    if block is None:
        shape: tuple[int, ...] = (1,) if scale.shape == (1,) else ()
        scheme.expect(name + SCALE, shape, FLOATS, "weight_block_size null")
    else:
        grid = -(-info.shape[0] // block[0]), -(-info.shape[1] // block[1])
        scheme.expect(name + SCALE, grid, FLOATS, f"weight_block_size {list(block)} of a {list(info.shape)} weight")
    exact = _powers_of_two(scheme.view(scale))
    size = sum(scheme.stored[part].size for part in (name, name + SCALE, _activation(name)) if part in scheme.stored)
    return Packed(
        TensorInfo(info.shape, "BF16" if exact else "F32", info.file, info.start, size),
        torch.bfloat16 if exact else torch.float32,
        {"weight": info, "scale": scale},
        partial(_unpack, block or info.shape),
    )


def _powers_of_two(scales: Tensor) -> bool:
    """Whether every product with an e4m3 number is a bfloat16: then no more than that is needed to keep it."""
    fractions, _ = torch.frexp(scales.float())
    lowest, highest = EXACT_IN_BF16
    return bool(((fractions == 0.5) & (scales.float() >= lowest) & (scales.float() <= highest)).all())


def _unpack(block: tuple[int, int], parts: Mapping[str, Tensor]) -> Rows:
    octets, scales = parts["weight"].view(torch.uint8).numpy(), parts["scale"].float()
    columns = torch.arange(octets.shape[1]) // block[1]
    scales = scales if scales.dim() == 2 else scales.reshape(1, 1)

    def rows(start: int, stop: int) -> Tensor:
        at = torch.arange(start, stop) // block[0]
        return torch.from_numpy(np.take(VALUES, octets[start:stop])) * scales[at].index_select(1, columns)

    return rows
