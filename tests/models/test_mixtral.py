"""The mixture of experts: what the operator computes in the odd cases, and the checkpoints that are refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name every PyTorch reader knows
from safetensors.torch import load_file
from torch import Tensor

from alize.errors import AlizeError, CorruptCheckpoint, UnsupportedModel
from alize.models.checkpoint import Checkpoint
from alize.models.ops import choose_experts, sparse_moe
from alize.models.registry import weights_of
from tests.models.oracle import TOLERANCE, Pair, padded_inputs
from tests.tiny import edit_config, edit_tensor, tiny_checkpoint

EXPERTS, HIDDEN, INNER = 4, 8, 12


def weights(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((EXPERTS, INNER, HIDDEN), (EXPERTS, INNER, HIDDEN), (EXPERTS, HIDDEN, INNER))
    gate, up, down = (torch.randn(shape, generator=generator) * 0.3 for shape in shapes)
    return gate, up, down


def one_by_one(hidden: Tensor, logits: Tensor, top_k: int) -> Tensor:
    """The definition, a token at a time, in float64: softmax over all, the first top_k, renormalised."""
    gate, up, down = (weight.double() for weight in weights())
    output = torch.zeros_like(hidden, dtype=torch.float64)
    for b in range(hidden.shape[0]):
        for s in range(hidden.shape[1]):
            shares = logits[b, s].double().softmax(0)
            order = sorted(range(EXPERTS), key=lambda e: (-logits[b, s, e].item(), e))[:top_k]
            x = hidden[b, s].double()
            for e in order:
                answer = down[e] @ (F.silu(gate[e] @ x) * (up[e] @ x))
                output[b, s] += shares[e] / shares[order].sum() * answer
    return output


LOGITS: dict[str, Callable[[int, int], Tensor]] = {
    "random": lambda b, s: torch.randn(b, s, EXPERTS, generator=torch.Generator().manual_seed(1)),
    "all equal": lambda b, s: torch.zeros(b, s, EXPERTS),
    "two equal": lambda b, s: torch.tensor([0.0, 2.0, 2.0, 1.0]).expand(b, s, EXPERTS),
    "all tokens to one pair": lambda b, s: torch.tensor([0.0, -1.0, 5.0, 3.0]).expand(b, s, EXPERTS),
    "far apart": lambda b, s: torch.tensor([-200.0, 0.0, 200.0, -300.0]).expand(b, s, EXPERTS),
}


@pytest.mark.parametrize("top_k", [1, 2, EXPERTS])
@pytest.mark.parametrize(("batch", "new"), [(1, 1), (1, 7), (3, 5)])
@pytest.mark.parametrize("kind", sorted(LOGITS))
def test_operator(kind: str, batch: int, new: int, top_k: int) -> None:
    hidden = torch.randn(batch, new, HIDDEN, generator=torch.Generator().manual_seed(2))
    logits = LOGITS[kind](batch, new)
    found = sparse_moe(hidden, logits, *weights(), top_k)
    torch.testing.assert_close(found.double(), one_by_one(hidden, logits, top_k), rtol=0, atol=1e-6)


def test_of_equal_logits_the_lower_index_is_chosen() -> None:
    logits = torch.zeros(1, 300)
    assert choose_experts(logits, 3).tolist() == [[0, 1, 2]]
    assert choose_experts(torch.tensor([[1.0, 3.0, 3.0, 3.0]]), 2).tolist() == [[1, 2]]


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_ties_are_those_of_transformers(tmp_path: Path, packed: bool) -> None:
    """Two router rows are the same: each token's logits tie exactly, wherever the two experts come first."""
    folder = tiny_checkpoint(tmp_path / "model", experts=4, top_k=1, packed=packed, shards=1)
    for layer in range(3):
        name = f"model.layers.{layer}.{'mlp' if packed else 'block_sparse_moe'}.gate.weight"
        router = load_file(folder / "model.safetensors")[name]
        router[2] = router[1]
        edit_tensor(folder, name, router)
    pair = Pair(folder)
    tokens, (mask, positions) = pair.tokens(2, 19), padded_inputs([0, 0], 19)
    logits, _ = pair.ours(tokens, positions, mask, pair.no_past(2))
    expected = pair.oracle(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE)


def no_expert_2(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def biased_router(folder: Path) -> None:
    edit_tensor(folder, "model.layers.0.block_sparse_moe.gate.bias", torch.zeros(4))


SPOILT: dict[str, tuple[Callable[[Path], None], type[AlizeError], str]] = {
    "fewer experts in the config": (
        lambda folder: edit_config(folder, num_local_experts=3),
        CorruptCheckpoint,
        r"gate\.weight has shape \[4, 32\], config\.json asks for \[3, 32\]",
    ),
    "more experts in the config": (
        lambda folder: edit_config(folder, num_local_experts=5),
        CorruptCheckpoint,
        r"gate\.weight has shape \[4, 32\], config\.json asks for \[5, 32\]",
    ),
    "top_k above E": (
        lambda folder: edit_config(folder, num_experts_per_tok=5),
        UnsupportedModel,
        r"num_experts_per_tok 5 is more than num_local_experts 4",
    ),
    "top_k of none": (lambda folder: edit_config(folder, num_experts_per_tok=0), CorruptCheckpoint, "num_experts_per_tok is 0"),
    "a missing expert": (no_expert_2, CorruptCheckpoint, r"layers\.1\.block_sparse_moe\.experts\.2\.w3\.weight is missing"),
    "a router with a bias": (biased_router, UnsupportedModel, r"block_sparse_moe\.gate\.bias: a router with a bias cannot"),
    "an unknown activation": (lambda folder: edit_config(folder, hidden_act="gelu"), UnsupportedModel, "hidden_act = 'gelu'"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("mixtral") / "model", experts=4, shards=1)


@pytest.mark.parametrize("case", sorted(SPOILT))
def test_what_disagrees_is_refused_by_name(sound: Path, tmp_path: Path, case: str) -> None:
    spoil, error, message = SPOILT[case]
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    assert weights_of(Checkpoint.open(folder))
    spoil(folder)
    with pytest.raises(error, match=message):
        weights_of(Checkpoint.open(folder))
