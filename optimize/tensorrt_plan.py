"""What is in a plan, read off its printable text: a machine without a GPU can open one in no other way.

TensorRT-RTX writes the program that it compiled the graph to as text, one line for each kernel: its kind and name, and the
ONNX nodes that it computes (`layers="[ONNX Layer: layers.0.self_attn]"`). The text is no documented format: where it is not
found, LoweringFailed says so, and nothing is assumed.
"""

import mmap
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alize.errors import LoweringFailed

__all__ = ["ATTENTION", "Kernel", "check_attention", "check_weights", "count_kernels", "read_kernels"]

ATTENTION = {"decode": "_gemv_mha", "prefill": "_gemm_mha"}
"""What the fused attention kernels' names begin with."""

_PROGRAM = 24_000_000  # bytes of kernels and their text, at most

_KERNEL = re.compile(rb"\n\s*(function|fully_connected|runtime_fusion)=\{ name=\"?([\w+.]+)\"?")
_LAYERS = re.compile(rb'layers="([^"]*)"')
_LAYER = re.compile(rb"\[ONNX Layer: ([^\]]+)\]")
_LONGEST = 1 << 16  # bytes of one kernel's text


@dataclass(frozen=True)
class Kernel:
    """kind: function, fully_connected (a matrix product) or runtime_fusion (one that is fused with what follows, on the device).

    nodes: names of the ONNX nodes that it computes.   bounded: whether it is told which keys are seen by no query of a block,
    so that it can skip them.
    """

    kind: str
    name: str
    nodes: tuple[str, ...]
    bounded: bool


def read_kernels(plan: Path) -> list[Kernel]:
    """In the order that they run. Raises LoweringFailed."""
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        places = [match.start() for match in _KERNEL.finditer(text)]
        found = [
            _kernel(text[place : min(end, place + _LONGEST)]) for place, end in zip(places, [*places, len(text)][1:], strict=True)
        ]
    if not found:
        raise LoweringFailed(f"{plan.name} lists no kernels: this version of TensorRT writes plans that alize cannot look into")
    return found


def _kernel(text: bytes) -> Kernel:
    head, layers = _KERNEL.match(text), _LAYERS.search(text)
    assert head is not None
    nodes = _LAYER.findall(layers[1]) if layers else []
    bounded = b"lb_var1=" in text or (b"lb_var2=" in text and b"lb_var3=" in text)
    return Kernel(head[1].decode(), head[2].decode(), tuple(node.decode() for node in nodes), bounded)


def check_attention(kernels: Sequence[Kernel], layers: int) -> None:
    """Asserts that each layer's attention is one fused kernel when it decodes and one otherwise, and that both skip keys that
    the mask hides. Raises LoweringFailed naming the layer."""
    for layer in range(layers):
        node = f"layers.{layer}.self_attn"
        mine = [kernel for kernel in kernels if node in kernel.nodes]
        for phase, prefix in ATTENTION.items():
            fused = [kernel for kernel in mine if kernel.name.startswith(prefix)]
            if len(fused) != 1:
                others = ", ".join(sorted({kernel.name for kernel in mine})) or "nothing of its name"
                raise LoweringFailed(
                    f"layer {layer}, {phase}: {len(fused)} fused attention kernels in the plan, not one: {others}"
                )
            if not fused[0].bounded:
                raise LoweringFailed(f"layer {layer}, {phase}: {fused[0].name} reads every key, hidden or not")


def check_weights(plan: Path, stored: int) -> None:
    """Asserts that a plan is about as large as the weights that it was built from: a matrix of integers that was unpacked would
    make it 2 or 4 times that. stored: their bytes."""
    size = plan.stat().st_size
    limit = int(stored * 1.2) + _PROGRAM
    if size > limit:
        raise LoweringFailed(
            f"{plan.name} has {size} bytes for {stored} of weights, more than {limit}: some are stored twice or unpacked"
        )


def count_kernels(kernels: Sequence[Kernel]) -> dict[str, Any]:
    """How many kernels, and of them attention and matrix products: for the manifest."""
    kinds = Counter(kernel.kind for kernel in kernels)
    return {
        "kernels": len(kernels),
        "fused_attention_nodes": sum(kernel.name.startswith(tuple(ATTENTION.values())) for kernel in kernels),
        "matrix_products": kinds["fully_connected"] + kinds["runtime_fusion"],
    }
