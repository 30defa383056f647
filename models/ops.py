"""The custom operators that every model definition is built on.

Letters: B batch, S new tokens, P past tokens, H query heads, K key/value heads, D head size, W window, M hidden size,
I expert size, E experts.

The eager bodies below are the specification: short, float32 inside, no fused kernel. Tracing sees each operator as one
node (the fake kernel gives its shapes), so the export writes one node of domain `ai.alize` for it.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the name every PyTorch reader knows
from torch import Tensor

__all__ = ["attention_body", "choose_experts", "moe_body", "sliding_window_attention", "sparse_moe", "visible_keys"]

QUERY_ROWS = 128  # scores are held for this many queries at a time: H * QUERY_ROWS * (P + S) floats, whatever S is


@torch.library.custom_op("alize::sliding_window_attention", mutates_args=())
def sliding_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    attention_mask: Tensor,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal grouped-query attention over a cache, each query seeing at most the last `window` positions (0 = all).

    query [B,H,S,D], key and value [B,K,S,D], past_key and past_value [B,K,P,D], attention_mask int64 [B,P+S] with its
    zeros contiguous on the left -> output [B,H,S,D], present_key and present_value [B,K,P+S,D]. Scores and softmax are
    float32; the output has the query's dtype. A query that sees no key gives 0.
    """
    return attention_body(query, key, value, past_key, past_value, attention_mask, window, scale)


@sliding_window_attention.register_fake
def _shapes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    attention_mask: Tensor,  # noqa: ARG001 - a fake kernel has its operator's signature
    window: int,  # noqa: ARG001
    scale: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    present_key = torch.cat([past_key, key], dim=2)
    present_value = torch.cat([past_value, value], dim=2)
    return torch.empty_like(query, memory_format=torch.contiguous_format), present_key, present_value


def visible_keys(attention_mask: Tensor, rows: Tensor, columns: Tensor, window: int) -> Tensor:
    """Which keys each query sees.

    attention_mask: [B, len(columns)], 1 = a real token; rows: the queries' indices i, columns: the keys' indices j, both on
    the concatenated axis 0..P+S-1. Returns bool [B, len(rows), len(columns)]: mask = 1, j <= i, and i - j < window unless
    window is 0.
    """
    distance = rows[:, None] - columns[None, :]
    visible = distance >= 0
    if window > 0:
        visible = visible & (distance < window)
    return visible[None] & (attention_mask == 1)[:, None, :]


def attention_body(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    attention_mask: Tensor,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `sliding_window_attention` computes, in plain PyTorch."""
    present_key = torch.cat([past_key, key], dim=2)
    present_value = torch.cat([past_value, value], dim=2)
    past, total = past_key.shape[2], present_key.shape[2]
    index = torch.arange(total, device=query.device)
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    for start in range(past, total, QUERY_ROWS):
        stop = min(start + QUERY_ROWS, total)
        first = max(0, start - window + 1) if window > 0 else 0  # no query of this block sees an earlier key
        keys, values = present_key[:, :, first:stop], present_value[:, :, first:stop]
        visible = visible_keys(attention_mask[:, first:stop], index[start:stop], index[first:stop], window)
        rows = slice(start - past, stop - past)
        output[:, :, rows] = _attend(query[:, :, rows], keys, values, visible, scale)
    return output, present_key, present_value


def _attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float) -> Tensor:
    """query [B,H,s,D], key and value [B,K,t,D], visible bool [B,s,t] -> float32 [B,H,s,D]; query head h reads h // (H/K)."""
    batch, heads, rows, size = query.shape
    groups = key.shape[1]
    grouped = query.reshape(batch, groups, -1, size).float()  # [B,K,H/K*s,D]: the heads that share a key lie together
    scores = torch.matmul(grouped, key.float().transpose(2, 3)) * scale  # [B,K,H/K*s,t]
    seen = visible[:, None, None]  # [B,1,1,s,t]
    scores = scores.reshape(batch, groups, heads // groups, rows, -1)
    weights = torch.softmax(scores.masked_fill(~seen, torch.finfo(torch.float32).min), dim=-1)
    weights = (weights * seen).flatten(2, 3)  # where nothing is seen softmax is uniform, and the output has to be 0
    output = torch.matmul(weights, value.float())  # [B,K,H/K*s,D]
    return output.reshape(batch, heads, rows, size)


@torch.library.custom_op("alize::sparse_moe", mutates_args=())
def sparse_moe(
    hidden: Tensor, router_logits: Tensor, gate_proj: Tensor, up_proj: Tensor, down_proj: Tensor, top_k: int
) -> Tensor:
    """A mixture of SwiGLU experts (Jiang et al. 2024, arXiv:2401.04088): each token goes through its top_k experts only.

    hidden [B,S,M], router_logits [B,S,E], gate_proj and up_proj [E,I,M], down_proj [E,M,I] -> output [B,S,M]. An expert is
    down(silu(gate(x)) * up(x)); its weight is the softmax over all E logits in float32, renormalised over the chosen top_k.
    Of equal logits the lower index is chosen.
    """
    return moe_body(hidden, router_logits, gate_proj, up_proj, down_proj, top_k)


@sparse_moe.register_fake
def _moe_shape(
    hidden: Tensor,
    router_logits: Tensor,  # noqa: ARG001 - a fake kernel has its operator's signature
    gate_proj: Tensor,  # noqa: ARG001
    up_proj: Tensor,  # noqa: ARG001
    down_proj: Tensor,  # noqa: ARG001
    top_k: int,  # noqa: ARG001
) -> Tensor:
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


def choose_experts(router_logits: Tensor, top_k: int) -> Tensor:
    """[...,E] -> int64 [...,top_k]: the experts of the largest logits, largest first, of equal ones the lower index first."""
    return torch.sort(router_logits.float(), dim=-1, descending=True, stable=True).indices[..., :top_k]


def moe_body(
    hidden: Tensor,
    router_logits: Tensor,
    gate_proj: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    top_k: int,
    chosen: Tensor | None = None,
) -> Tensor:
    """What `sparse_moe` computes, in plain PyTorch. chosen: int64 [B,S,top_k], experts to use in place of the router's."""
    rows = hidden.flatten(0, 1)  # [B*S,M]
    logits = router_logits.flatten(0, 1).float()
    experts = choose_experts(logits, top_k) if chosen is None else chosen.flatten(0, 1)
    weights = torch.softmax(logits.gather(1, experts), dim=-1)  # of all E, renormalised: the sum over all E cancels out
    output = torch.zeros_like(rows, dtype=torch.float32)
    for expert in sorted(set(experts.flatten().tolist())):
        row, slot = (experts == expert).nonzero(as_tuple=True)
        x = rows[row]
        inner = F.silu(F.linear(x, gate_proj[expert])) * F.linear(x, up_proj[expert])  # [n,I]
        answer = F.linear(inner, down_proj[expert])  # [n,M]
        output.index_add_(0, row, answer.float() * weights[row, slot, None])
    return output.to(hidden.dtype).reshape(hidden.shape)
