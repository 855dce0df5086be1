"""Attention as plain products: torch's own function is the reference."""

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from steermoe.models.attention import LONGEST, ShortAttention, attention

CAUSAL = torch.ones(7, 7, dtype=torch.bool).tril()
SEEN = torch.ones(2, 1, 1, 9, dtype=torch.bool)
SEEN[0, ..., 5:] = False


def heads(count: int, length: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, count, length, 16, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize(
    ("keys", "shared", "options"),
    [
        (9, 1, {}),
        (9, 1, {"scale": 0.5}),
        (9, 1, {"attn_mask": SEEN}),
        (9, 1, {"attn_mask": torch.zeros(2, 1, 1, 9, dtype=torch.float64).masked_fill(~SEEN, -1e4)}),
        (7, 1, {"is_causal": True}),
        (7, 1, {"attn_mask": CAUSAL}),
        (7, 2, {"is_causal": True, "enable_gqa": True}),
    ],
)
def test_values_and_gradients_are_those_of_torch(keys: int, shared: int, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    inputs = heads(4, 7), heads(4 // shared, keys), heads(4 // shared, keys)
    outer = torch.randn(2, 4, 7, 16, dtype=torch.float64)
    found = []
    for way in (attention, scaled_dot_product_attention):
        out = way(*inputs, **options)
        found.append([out, *torch.autograd.grad(out, inputs, outer)])
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference)


def test_dropout_leaves_out_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    query, key = heads(4, 7), heads(4, 9)
    value = torch.ones(2, 4, 9, 16, dtype=torch.float64)
    out = torch.stack([attention(query, key, value, dropout_p=0.3) for _ in range(200)])
    assert out.std() > 0.1 and abs(out.mean() - 1) < 0.01


@pytest.mark.parametrize(
    ("dtype", "keys", "replaced"),
    [(torch.bfloat16, 9, True), (torch.bfloat16, LONGEST + 1, False), (torch.float32, 9, False)],
)
def test_only_short_sequences_in_bfloat16_go_that_way(dtype: torch.dtype, keys: int, replaced: bool) -> None:
    torch.manual_seed(0)
    inputs = heads(4, 7, dtype), heads(4, keys, dtype), heads(4, keys, dtype)
    with ShortAttention():
        found = scaled_dot_product_attention(*inputs)
    expected = (attention if replaced else scaled_dot_product_attention)(*inputs)
    assert torch.equal(found, expected)
    assert not torch.equal(attention(*inputs), scaled_dot_product_attention(*inputs))


def test_autocast_counts_as_bfloat16() -> None:
    torch.manual_seed(0)
    query, key, value = (heads(4, each, torch.float32).detach() for each in (7, 9, 9))
    with torch.autocast("cpu", torch.bfloat16), ShortAttention():
        found = scaled_dot_product_attention(query, key, value)
        assert found.dtype is torch.bfloat16 and torch.equal(found, attention(query, key, value))
    exact = scaled_dot_product_attention(query, key, value)
    assert float((found - exact).abs().max()) < 0.02
