"""Quantised twins of tiny checkpoints, packed here with plain integers, and the floats that they stand for.

Nothing of alize's is used: the packing is written from the formats' definitions (docs/checkpoints.md names them).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import edit_config, tiny_checkpoint, write_json

INDEX = "model.safetensors.index.json"
AWQ_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)  # the outputs that a word holds, from its lowest nibble to its highest

Integers = NDArray[np.int64]
Quantise = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]
"""A matrix [out,in] -> its parts by the format's names, and the floats that they stand for, float32 [out,in]."""


@dataclass(frozen=True)
class Twins:
    """Two folders: `quantised`, and `floats` with the same numbers as plain matrices (float32, the rest as it was)."""

    quantised: Path
    floats: Path


def twins(folder: Path, quantise: Quantise, config: dict[str, Any], *, head: bool = False, **options: Any) -> Twins:
    """options: of `tiny_checkpoint`. head: lm_head is quantised too."""
    source = tiny_checkpoint(folder / "source", **options)
    tensors = read_all(source)
    packed, floats = {}, {}
    for name, tensor in tensors.items():
        if name.endswith(("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight")) or (head and name == "lm_head.weight"):
            parts, floats[name] = quantise(tensor.float())
            packed |= {name.removesuffix("weight") + part: value for part, value in parts.items()}
        else:
            packed[name] = floats[name] = tensor
    made = Twins(folder / "quantised", folder / "floats")
    for place, content in ((made.quantised, packed), (made.floats, floats)):
        place.mkdir()
        for path in source.glob("*.json"):
            if path.name != INDEX:
                (place / path.name).write_bytes(path.read_bytes())
        write_all(place, content)
    edit_config(made.quantised, quantization_config=config)
    return made


def read_all(folder: Path) -> dict[str, Tensor]:
    return {name: tensor.clone() for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def write_all(folder: Path, tensors: dict[str, Tensor]) -> None:
    """In two shards, tensors in turn: the parts of a matrix are in different files."""
    weight_map = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        part = {name: tensor.contiguous() for name, tensor in tensors.items() if weight_map[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    write_json(folder / INDEX, {"metadata": {}, "weight_map": weight_map})


def edit_all(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Changes, adds or removes tensors of a folder in place."""
    tensors = read_all(folder)
    change(tensors)
    write_all(folder, tensors)


def edit_quantization(folder: Path, **changes: Any) -> None:
    """Changes keys of quantization_config; ... (Ellipsis) removes one."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"] | changes
    edit_config(folder, quantization_config={key: value for key, value in config.items() if value is not ...})


def gptq(
    *,
    bits: int = 4,
    group_size: int = 16,
    act_order: bool = False,
    sym: bool = False,
    v2: bool = False,
    dtype: Any = torch.float16,
) -> Quantise:
    """act_order: the groups' members are scattered over the inputs."""

    def quantise(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        inputs = weight.shape[1]
        group = np.arange(inputs) // (inputs if group_size == -1 else group_size)
        if act_order:
            group = np.random.default_rng(inputs).permutation(group)
        scales, zeros, integers = _affine(weight.numpy(), group, bits=bits, sym=sym, lowest=1, dtype=dtype)
        parts = {
            "qweight": _pack(integers.T, bits, axis=0),
            "qzeros": _pack(zeros.T - (0 if v2 else 1), bits, axis=1),
            "scales": scales.T,
            "g_idx": torch.from_numpy(group.astype(np.int32)),
        }
        return parts, scales.float()[:, group] * torch.from_numpy(integers - zeros[:, group]).float()

    return quantise


def awq(*, group_size: int = 8) -> Quantise:
    def quantise(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        inputs = weight.shape[1]
        group = np.arange(inputs) // (inputs if group_size == -1 else group_size)
        scales, zeros, integers = _affine(weight.numpy(), group, bits=4, sym=False, lowest=0, dtype=torch.float16)
        parts = {
            "qweight": _pack(integers.T, 4, axis=1, order=AWQ_NIBBLES),
            "qzeros": _pack(zeros.T, 4, axis=1, order=AWQ_NIBBLES),
            "scales": scales.T,
        }
        return parts, scales.float()[:, group] * torch.from_numpy(integers - zeros[:, group]).float()

    return quantise


def fp8(
    *, block: tuple[int, int] | None = (16, 16), dtype: torch.dtype = torch.float32, powers: bool = False, static: bool = False
) -> Quantise:
    """block None: one scale a tensor. dtype: of the scales. powers: scales are powers of two. static: with activation scales."""

    def quantise(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        rows, columns = block or tuple(weight.shape)
        tiles = [[tile.abs().max() / 448 for tile in band.split(columns, 1)] for band in weight.split(rows, 0)]
        scale = torch.tensor(tiles)
        scale = (torch.exp2(torch.ceil(torch.log2(scale))) if powers else scale).to(dtype)
        spread = scale.float().repeat_interleave(rows, 0)[: len(weight)].repeat_interleave(columns, 1)[:, : weight.shape[1]]
        stored = (weight / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        parts = {"weight": stored, "weight_scale_inv": scale if block else scale.reshape(())}
        return parts | ({"activation_scale": torch.tensor(0.37)} if static else {}), stored.float() * spread

    return quantise


def _affine(
    weight: NDArray[np.float32], group: Integers, *, bits: int, sym: bool, lowest: int, dtype: torch.dtype
) -> tuple[Tensor, Integers, Integers]:
    """Scales (of `dtype`) and zero points [out,groups], integers [out,in]. lowest: the smallest zero point."""
    highest, count = 2**bits - 1, group.max() + 1
    low = np.stack([weight[:, group == g].min(1) for g in range(count)], 1)
    high = np.stack([weight[:, group == g].max(1) for g in range(count)], 1)
    steps = 2 * np.maximum(-low, high) / (highest - 1) if sym else (np.maximum(high, 0) - np.minimum(low, 0)) / highest
    scales = torch.from_numpy(np.maximum(steps, 1e-4)).to(dtype)
    width = scales.float().numpy()
    zeros = np.full(width.shape, (highest + 1) // 2) if sym else np.clip(np.rint(-low / width), lowest, highest).astype(np.int64)
    integers = np.clip(np.rint(weight / width[:, group]) + zeros[:, group], 0, highest).astype(np.int64)
    return scales, zeros, integers


def _pack(integers: Integers, bits: int, *, axis: int, order: Sequence[int] | None = None) -> Tensor:
    """Words of 32 bits along an axis; the lowest bits hold the first integer, or the one that `order` names first."""
    order = order or range(32 // bits)
    matrix = integers if axis == 1 else integers.T
    words = [
        [
            sum(int(row[start + at]) << (bits * place) for place, at in enumerate(order))
            for start in range(0, len(row), len(order))
        ]
        for row in matrix
    ]
    signed = torch.from_numpy(np.array(words, dtype=np.uint32).view(np.int32))
    return signed if axis == 1 else signed.T
