"""What a model reads before an answer: the part of the collator's batch that is not the target."""

from collections.abc import Mapping
from typing import NamedTuple, Self

import torch


class Inputs(NamedTuple):
    """A batch of B rows, each right-padded; lengths and ids are int64.

    M feature channels, T feature frames, P0 tokens before the audio, P behind it.
    """

    features: torch.Tensor  # (B, M, T) float32
    feature_lengths: torch.Tensor  # (B,)
    prefix_ids: torch.Tensor  # (B, P0)
    prefix_lengths: torch.Tensor  # (B,)
    prompt_ids: torch.Tensor  # (B, P)
    prompt_lengths: torch.Tensor  # (B,)

    @classmethod
    def of(cls, batch: Mapping[str, torch.Tensor], device: torch.device | None = None) -> Self:
        """Those of a batch as `steermoe.data.collator.collate` makes it, on a device; None: where they are."""
        return cls(**{name: batch[name].to(device) for name in cls._fields})
