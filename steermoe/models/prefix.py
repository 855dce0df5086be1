"""What stands before the audio in every row of a batch is run through the frozen LLM once, not once a row.

Shapes: B batch, P0 tokens of the prefix.
"""

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from steermoe.models.llm import CausalLM


def prefix_cache(llm: CausalLM, prefix_ids: torch.Tensor, prefix_lengths: torch.Tensor) -> Cache | None:
    """Keys and values of the prefix that all rows (B, P0) share, of one pass over one row, for B rows.

    Causality makes them independent of all that follows, so the LLM's outputs behind them are those of whole
    rows. It is made anew for every batch: a forward pass appends to a cache, and one row costs little.

    Returns:
        None where that is not exact, or there is nothing to gain: the prefix is empty, or not the same in
        all rows; weights of the LLM are trained, so that gradients flow through the prefix; or a layer does
        not attend to all that stands before (a sliding window counts the padding that a batch then has
        between prefix and audio). The prefix then belongs into the rows.
    """
    shared = prefix_ids.shape[1] > 0 and bool((prefix_ids == prefix_ids[:1]).all())
    if not shared or int(prefix_lengths.min()) < prefix_ids.shape[1]:
        return None
    if any(parameter.requires_grad for parameter in llm.parameters()):
        return None
    if not attends_to_all(llm):
        return None
    cache = DynamicCache(config=llm.config)
    with torch.no_grad():
        llm.base_model(input_ids=prefix_ids[:1], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(prefix_ids))
    return cache


def attends_to_all(llm: CausalLM) -> bool:
    """Whether every layer attends to all that stands before: none has a window, or a state in place of keys."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=llm.config).layers)
