"""Layers that can be differentiated compute what layers compute, and their gradients are right."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from alize.models.checkpoint import Checkpoint
from alize.models.differentiable import Differentiable
from alize.models.session import TorchEngine
from tests.tiny import KINDS, tiny_checkpoint


@pytest.mark.parametrize("kind", ["v0.1", "nemo", "ministral3-windowed", "mixtral"])
def test_gradients_are_what_the_layer_does(kind: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path, **KINDS[kind]))
    model = TorchEngine(checkpoint).model.requires_grad_(False)
    config, layer = model.config, model.layers[0]
    hidden = torch.randn(2, 9, config.hidden_size, generator=torch.Generator().manual_seed(0))
    empty = torch.empty(2, config.num_kv_heads, 0, config.head_size)
    rest = (model.angles(torch.arange(9).expand(2, -1)), torch.ones(2, 9, dtype=torch.int64), (empty, empty))
    heard: list[tuple[int, ...]] = []

    def listen(inputs: Tensor, weight: Tensor, outputs: Tensor) -> None:
        assert torch.equal(torch.nn.functional.linear(inputs, weight), outputs)
        heard.append(tuple(weight.shape))

    moving = hidden.clone().requires_grad_()
    with Differentiable(listen):
        answer, _ = layer(moving, *rest)
    torch.testing.assert_close(answer.detach(), layer(hidden, *rest)[0], rtol=1e-5, atol=1e-5)
    assert len(heard) == (7 if not config.num_experts else 5 + 3 * config.num_experts)
    towards, step = torch.randn_like(answer), 1e-3 * torch.randn_like(hidden)
    (gradient,) = torch.autograd.grad(answer, moving, towards)
    ahead, behind = (layer(hidden + sign * step, *rest)[0].double() for sign in (1, -1))
    measured = ((ahead - behind) * towards).sum() / 2
    torch.testing.assert_close((gradient * step).sum().double(), measured, rtol=0.02, atol=1e-3)
