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
        target_lengths (B,), which count the end token; indices (B,). Where the items have videos,
        video_features and video_lengths as features. Integers are int64.
    """
    prefixes, prefix_lengths = _padded([item["prefix_ids"] for item in items], 0)
    prompts, prompt_lengths = _padded([item["prompt_ids"] for item in items], 0)
    targets, target_lengths = _padded([item["target_ids"] for item in items], IGNORED)
    features, feature_lengths = _stacked([item["features"] for item in items])
    videos = [item["video"] for item in items if "video" in item]
    seen = dict(zip(("video_features", "video_lengths"), _stacked(videos), strict=True)) if videos else {}
    return {
        "features": features,
        "feature_lengths": feature_lengths,
        "prefix_ids": prefixes,
        "prefix_lengths": prefix_lengths,
        "prompt_ids": prompts,
        "prompt_lengths": prompt_lengths,
        "target_ids": targets,
        "target_lengths": target_lengths,
        "indices": torch.tensor([item["index"] for item in items]),
    } | seen


def _stacked(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (M, T), each of its own T, as (B, M, T), and each T."""
    lengths = [row.shape[1] for row in rows]
    padded = [pad(row, (0, max(lengths) - n)) for row, n in zip(rows, lengths, strict=True)]
    return torch.stack(padded), torch.tensor(lengths)


def _padded(rows: Sequence[list[int]], filling: int) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = [len(row) for row in rows]
    table = torch.full((len(rows), max(lengths)), filling)
    for row, ids in enumerate(rows):
        table[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    return table, torch.tensor(lengths)
