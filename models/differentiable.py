"""The model's operators as plain PyTorch that gradients flow through: the custom ones and ONNX's have none of their own."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every PyTorch reader knows
import torch.onnx.ops  # it registers ONNX's operators
from torch import Tensor
from torch.overrides import TorchFunctionMode

from alize.models.ops import attention_body, moe_body

__all__ = ["Differentiable"]


class Differentiable(TorchFunctionMode):
    """A context in which layers are computed so that they can be differentiated.

    product: told of each F.linear: (inputs [...,in], weight [out,in], outputs [...,out]), those of experts among them.
    """

    def __init__(self, product: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        super().__init__()
        self._product = product

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _BODIES:
            with self:  # its products too: a mode does not see into an operator by itself
                return _BODIES[func](*args)
        answer = func(*args, **(kwargs or {}))
        if func is F.linear:
            self._product(args[0], args[1], answer)
        return answer


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """What `apply_rotary` computes."""
    cos, sin = cos[:, None], sin[:, None]
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


_BODIES: dict[Any, Callable[..., Any]] = {
    torch.ops.alize.sliding_window_attention.default: attention_body,
    torch.ops.alize.sparse_moe.default: moe_body,
    torch.ops.onnx.RotaryEmbedding.opset23: _rotated,
}
