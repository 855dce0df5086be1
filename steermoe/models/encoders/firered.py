"""FireRedASR-AED's encoder (Xu et al. 2025) on Kaldi's filter banks, from a converted checkpoint.

The published checkpoint is a pickle: `firered_convert` turns it, once, into what is read here.
"""

from typing import Any

import torch
from torch import nn

from steermoe import config
from steermoe.audio.features import FRAMES_PER_SECOND, KaldiFbank
from steermoe.models.encoders.encoder import Encoder, padding_mask
from steermoe.models.encoders.firered_conformer import FireRedConformer, relative_positions
from steermoe.models.frozen import load_frozen


class FireRed(Encoder):
    """FireRedASR-AED's encoder, frozen.

    Args:
        section: `path` is a folder that `firered_convert` wrote.

    Raises:
        ValueError: nothing can be loaded from the path, or weights are missing in it.
    """

    frames_per_second = FRAMES_PER_SECOND / 4

    def __init__(self, section: config.Encoder) -> None:
        super().__init__(section)
        self.model: FireRedConformer = load_frozen(FireRedConformer, section.path, section.dtype, "encoder")
        self.layers: nn.ModuleList = self.model.layer_stack
        self.width: int = self.model.config.hidden_size
        self.max_frames: int = self.model.config.max_frames
        cmvn = self.model.cmvn
        self.features = KaldiFbank(self.model.config.num_mel_bins, cmvn.mean, cmvn.inverse_std)

    def output_lengths(self, lengths_B: torch.Tensor) -> torch.Tensor:
        """A quarter of the feature frames, rounded up."""
        return self.model.input_preprocessor.lengths(lengths_B)

    def embed(self, features_BMT: torch.Tensor, lengths_B: torch.Tensor, padded: bool) -> torch.Tensor:
        """Two convolutions with stride 2, which see zeros behind each utterance."""
        return self.model.input_preprocessor(features_BMT.transpose(1, 2))

    def context(self, hidden_BSD: torch.Tensor, lengths_B: torch.Tensor) -> tuple[Any, ...]:
        """Positions, and what is valid."""
        return relative_positions(hidden_BSD), padding_mask(hidden_BSD, lengths_B)

    def finish(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        """Nothing: every layer ends with a norm."""
        return hidden_BSD

    def attention(self, layer_number: int) -> nn.Module:
        """The layer's `mhsa`."""
        return self.layers[layer_number].get_submodule("mhsa")
