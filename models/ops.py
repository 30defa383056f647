"""The custom operators that every model definition is built on.

Letters: B batch, S new tokens, P past tokens, H query heads, K key/value heads, D head size, W window.

The eager bodies below are the specification: short, float32 inside, no fused kernel. Tracing sees each operator as one
node (the fake kernel gives its shapes), so the export writes one node of domain `ai.alize` for it.
"""

import torch
from torch import Tensor

__all__ = ["attention_body", "sliding_window_attention", "visible_keys"]

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
