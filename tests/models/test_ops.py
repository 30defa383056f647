"""The attention operator against a loop that follows its definition word by word."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alize.models import ops
from alize.models.ops import sliding_window_attention, visible_keys


def naive(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    attention_mask: Tensor,
    window: int,
    scale: float,
) -> Tensor:
    keys, values = torch.cat([past_key, key], 2).double(), torch.cat([past_value, value], 2).double()
    batch, heads, count, _ = query.shape
    past, group = past_key.shape[2], heads // key.shape[1]
    output = torch.zeros(query.shape, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for s in range(count):
                i = past + s
                seen = [j for j in range(i + 1) if attention_mask[b, j] == 1 and (window == 0 or i - j < window)]
                scores = [float(query[b, h, s].double() @ keys[b, h // group, j]) * scale for j in seen]
                top = max(scores, default=0.0)
                weights = [math.exp(score - top) for score in scores]
                for j, weight in zip(seen, weights, strict=True):
                    output[b, h, s] += weight / sum(weights) * values[b, h // group, j]
    return output


def inputs(
    *, batch: int, new: int, past: int, kv_heads: int, group: int, size: int, padding: list[int], seed: int
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, kv_heads * group, new, size)] + [(batch, kv_heads, new, size)] * 2 + [(batch, kv_heads, past, size)] * 2
    mask = torch.ones(batch, past + new, dtype=torch.int64)
    for row, count in enumerate(padding):
        mask[row, :count] = 0
    return *(2 * torch.randn(shape, generator=generator) for shape in shapes), mask


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_operator_is_its_definition(data: st.DataObject) -> None:
    batch, new, past = (data.draw(st.integers(low, high)) for low, high in ((1, 3), (1, 6), (0, 6)))
    padding = [data.draw(st.integers(0, past + new)) for _ in range(batch)]  # up to all of a row: it sees no key
    window = data.draw(st.integers(0, past + new + 1))
    kv_heads, group = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    tensors = inputs(
        batch=batch,
        new=new,
        past=past,
        kv_heads=kv_heads,
        group=group,
        size=4,
        padding=padding,
        seed=data.draw(st.integers(0, 99)),
    )
    output, present_key, present_value = sliding_window_attention(*tensors, window, 0.5)
    torch.testing.assert_close(output.double(), naive(*tensors, window, 0.5), rtol=0, atol=2e-6)
    assert torch.equal(present_key, torch.cat([tensors[3], tensors[1]], 2))
    assert torch.equal(present_value, torch.cat([tensors[4], tensors[2]], 2))


@settings(max_examples=100, deadline=None)
@given(window=st.integers(0, 9), past=st.integers(0, 8), new=st.integers(1, 8), padding=st.integers(0, 16))
def test_visibility_rule(window: int, past: int, new: int, padding: int) -> None:
    total = past + new
    mask = torch.ones(1, total, dtype=torch.int64)
    mask[0, : min(padding, total)] = 0
    visible = visible_keys(mask, torch.arange(past, total), torch.arange(total), window)
    for i in range(past, total):
        for j in range(total):
            expected = mask[0, j] == 1 and j <= i and (window == 0 or i - j < window)
            assert visible[0, i - past, j] == expected, (i, j)


@pytest.mark.parametrize("window", [0, 1, 3, 5, 40])
def test_blocks_of_queries_change_nothing(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long sequences are cut into blocks of queries that read only the keys in reach."""
    tensors = inputs(batch=2, new=11, past=7, kv_heads=2, group=2, size=4, padding=[0, 9], seed=1)
    whole = sliding_window_attention(*tensors, window, 0.5)[0]
    monkeypatch.setattr(ops, "QUERY_ROWS", 3)
    torch.testing.assert_close(sliding_window_attention(*tensors, window, 0.5)[0], whole, rtol=0, atol=2e-6)


def test_query_that_sees_no_key_gives_zero() -> None:
    tensors = inputs(batch=2, new=3, past=2, kv_heads=1, group=2, size=4, padding=[4, 0], seed=2)
    output = sliding_window_attention(*tensors, 2, 0.5)[0]
    assert torch.equal(output[0, :, :2], torch.zeros(2, 2, 4))
    assert bool((output[0, :, 2] != 0).all() and (output[1] != 0).all())


def test_output_has_the_dtype_of_the_query_and_sums_in_float32() -> None:
    tensors = inputs(batch=1, new=5, past=3, kv_heads=1, group=2, size=8, padding=[0], seed=3)
    half = tuple(tensor.bfloat16() for tensor in tensors[:5])
    output = sliding_window_attention(*half, tensors[5], 4, 0.5)[0]
    exact = sliding_window_attention(*(tensor.float() for tensor in half), tensors[5], 4, 0.5)[0]
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, exact.bfloat16())  # only the result was rounded


@pytest.mark.parametrize("past", [0, 4])
def test_registration(past: int) -> None:
    """Schema, fake kernel (symbolic shapes too) and no aliasing, as PyTorch itself checks them."""
    tensors = inputs(batch=2, new=3, past=past, kv_heads=2, group=2, size=4, padding=[0, 1], seed=4)
    torch.library.opcheck(
        sliding_window_attention, (*tensors, 2, 0.5), test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    )
