"""w2v-BERT 2.0 (Seamless Communication 2023, transformers' Wav2Vec2BertModel): Conformer layers on filter banks.

Features are Kaldi's filter bank, normalised per utterance and band, two frames stacked; nothing is strided.
"""

from typing import ClassVar

import torch
from transformers import SeamlessM4TFeatureExtractor
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertModel

from steermoe import config
from steermoe.audio.features import FRAMES_PER_SECOND, HOP, WINDOW, LibraryFeatures
from steermoe.models.encoders.wav2vec2 import Wav2Vec2


class _EncoderOnly(Wav2Vec2BertModel):
    """Loads from a CTC checkpoint without a word about its head."""

    _keys_to_ignore_on_load_unexpected: ClassVar = [r"^lm_head\."]


class W2vBert(Wav2Vec2):
    """Wav2Vec2Bert, frozen.

    Args:
        section: as `Wav2Vec2` takes it.

    Raises:
        ValueError: as `Wav2Vec2`; or the feature extractor is not that of the weights.
    """

    def __init__(self, section: config.Encoder) -> None:
        super().__init__(section, _EncoderOnly, SeamlessM4TFeatureExtractor)
        extractor = self.extractor
        found = extractor.num_mel_bins * extractor.stride
        expected = self.model.config.feature_projection_input_dim
        if found != expected:
            raise ValueError(
                f"encoder.path: {section.path!r}: its feature extractor makes {extractor.num_mel_bins} bands x "
                f"{extractor.stride} frames = {found} features, its weights take {expected}"
            )
        self.frames_per_second = FRAMES_PER_SECOND / extractor.stride
        # A variance takes two frames, an output `stride` of them.
        shortest = WINDOW + (max(2, extractor.stride) - 1) * HOP
        self.features = LibraryFeatures(
            extractor, channels=found, samples=shortest, padding=False, pad_to_multiple_of=None
        )

    def output_lengths(self, lengths_B: torch.Tensor) -> torch.Tensor:
        """As many as feature frames."""
        return lengths_B

    def embed(self, features_BMT: torch.Tensor, lengths_B: torch.Tensor, padded: bool) -> torch.Tensor:
        """A norm and a projection of each frame."""
        hidden_BSD, _ = self.model.feature_projection(features_BMT.transpose(1, 2))
        return hidden_BSD

    def finish(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        """Nothing: every layer ends with a norm."""
        return hidden_BSD
