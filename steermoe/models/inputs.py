"""What a model reads before an answer: the part of the collator's batch that is not the target."""

from collections.abc import Mapping
from typing import NamedTuple, Self

import torch


class Inputs(NamedTuple):
    """A batch of B rows, each right-padded; lengths and ids are int64.

    M feature channels, T feature frames, P0 tokens before video and audio, P behind them. `video_features` are of a
    model with a video branch, and None for every other; their M and T are its own.
    """

    features: torch.Tensor  # (B, M, T) float32
    feature_lengths: torch.Tensor  # (B,)
    prefix_ids: torch.Tensor  # (B, P0)
    prefix_lengths: torch.Tensor  # (B,)
    prompt_ids: torch.Tensor  # (B, P)
    prompt_lengths: torch.Tensor  # (B,)
    video_features: torch.Tensor | None = None  # (B, M, T) float32
    video_lengths: torch.Tensor | None = None  # (B,)

    @classmethod
    def of(cls, batch: Mapping[str, torch.Tensor], device: torch.device | None = None) -> Self:
        """Those of a batch as `steermoe.data.collator.collate` makes it, on a device; None: where they are."""
        return cls(**{name: batch[name].to(device) for name in cls._fields if name in batch})

    def video(self, expected: bool) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Features and lengths of the video, or None.

        Raises:
            ValueError: there is a video and none is expected, or the other way round.
        """
        found = None
        if self.video_features is not None and self.video_lengths is not None:
            found = self.video_features, self.video_lengths
        if expected != (found is not None):
            raise ValueError(
                "video: found none; the model has a video branch: give a video with every recording"
                if expected
                else "video: found one; the model has no video branch: give the audio alone"
            )
        return found
