"""Items to batches, the same way for training and for evaluation."""

from collections.abc import Sequence

import torch
from torch.nn.functional import pad

from steermoe.data.dataset import Item

IGNORED = -100  # target id of padding, which torch's cross-entropy leaves out


def collate(items: Sequence[Item]) -> dict[str, torch.Tensor]:
    """Pad the items of a batch on the right.

    B items, M mels, T frames, P0 tokens before the audio, P behind it, S target tokens: each the longest of
    the batch.

    Returns:
        features (B, M, T) float32, zero behind feature_lengths (B,); prefix_ids (B, P0), 0 behind
        prefix_lengths (B,); prompt_ids (B, P), 0 behind prompt_lengths (B,); target_ids (B, S), -100 behind
        target_lengths (B,), which count the end token; indices (B,). Integers are int64.
    """
    prefixes, prefix_lengths = _padded([item["prefix_ids"] for item in items], 0)
    prompts, prompt_lengths = _padded([item["prompt_ids"] for item in items], 0)
    targets, target_lengths = _padded([item["target_ids"] for item in items], IGNORED)
    lengths = [item["features"].shape[1] for item in items]
    return {
        "features": torch.stack(
            [pad(item["features"], (0, max(lengths) - n)) for item, n in zip(items, lengths, strict=True)]
        ),
        "feature_lengths": torch.tensor(lengths),
        "prefix_ids": prefixes,
        "prefix_lengths": prefix_lengths,
        "prompt_ids": prompts,
        "prompt_lengths": prompt_lengths,
        "target_ids": targets,
        "target_lengths": target_lengths,
        "indices": torch.tensor([item["index"] for item in items]),
    }


def _padded(rows: Sequence[list[int]], filling: int) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = [len(row) for row in rows]
    table = torch.full((len(rows), max(lengths)), filling)
    for row, ids in enumerate(rows):
        table[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    return table, torch.tensor(lengths)
