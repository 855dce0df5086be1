"""Attention of short sequences in bfloat16 on a CPU as plain products, which there are faster than torch's kernel.

torch's fused kernel for CPUs multiplies in blocks and keeps no scores, which pays where they would not fit the cache;
forward and backward of 4 x 6 heads of 64 take it 69 ms at 500 frames and 502 ms at 1500, the products 39 and 623 ms.
The scores are rounded to bfloat16, as in the "eager" attention of transformers.

Shapes: B batch, H heads, Q queries, K keys, E width of a head.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import dropout, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

LONGEST = 768  # keys


class ShortAttention(TorchFunctionMode):
    """Within the context, `scaled_dot_product_attention` of such sequences is `attention`; all else is as ever."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called in place of every function of torch's."""
        options = options or {}
        if function is scaled_dot_product_attention and _is_short(*arguments[:2]):
            return attention(*arguments, **options)
        return function(*arguments, **options)


def _is_short(query: torch.Tensor, key: torch.Tensor) -> bool:
    if query.device.type != "cpu" or key.shape[-2] > LONGEST:
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    return dtype is torch.bfloat16


def attention(
    query_BHQE: torch.Tensor,
    key_BHKE: torch.Tensor,
    value_BHKE: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What `torch.nn.functional.scaled_dot_product_attention` computes of the same arguments, (B, H, Q, E).

    A query that may attend to nothing gets the mean of the values.
    """
    if enable_gqa:
        shared = query_BHQE.shape[-3] // key_BHKE.shape[-3]
        key_BHKE, value_BHKE = (each.repeat_interleave(shared, -3) for each in (key_BHKE, value_BHKE))
    factor = query_BHQE.shape[-1] ** -0.5 if scale is None else scale
    scores_BHQK = (query_BHQE * factor) @ key_BHKE.mT
    if is_causal:
        attn_mask = scores_BHQK.new_ones(scores_BHQK.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        # Added, for which the backward pass has nothing to do; filled in, it would have to go over all gradients.
        least = torch.finfo(scores_BHQK.dtype).min
        attn_mask = torch.zeros_like(attn_mask, dtype=scores_BHQK.dtype).masked_fill_(~attn_mask, least)
    if attn_mask is not None:
        scores_BHQK = scores_BHQK + attn_mask
    weights_BHQK = dropout(scores_BHQK.softmax(-1), dropout_p, training=dropout_p > 0)
    return weights_BHQK @ value_BHKE
