"""Parakeet's Fast Conformer (Rekesh et al. 2023, transformers' ParakeetEncoder) on NeMo's log-mel features."""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoConfig, ParakeetFeatureExtractor
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoder

from steermoe import config
from steermoe.audio.features import LibraryFeatures
from steermoe.models.encoders.encoder import Encoder, padding_mask, valid_frames
from steermoe.models.frozen import load_extractor, load_frozen


class _EncoderOnly(ParakeetEncoder):
    """Loads from a whole Parakeet without a word about its decoder."""

    _keys_to_ignore_on_load_unexpected: ClassVar = [r"^(ctc_head|decoder|encoder_projector|joint)\."]


class Parakeet(Encoder):
    """Parakeet's encoder, frozen.

    Args:
        section: `path` is a folder or hub id in Hugging Face format, of the encoder alone or a whole Parakeet
            (CTC, RNN-T, TDT), with its preprocessor_config.json.

    Raises:
        ValueError: nothing can be loaded from the path, weights are missing in it, or its feature extractor
            is not that of its weights.
    """

    def __init__(self, section: config.Encoder) -> None:
        super().__init__(section)
        self.model: ParakeetEncoder = load_frozen(
            _EncoderOnly, section.path, section.dtype, "encoder", **_encoder_config(section.path)
        )
        self.layers: nn.ModuleList = self.model.layers
        self.width: int = self.model.config.hidden_size
        extractor = load_extractor(ParakeetFeatureExtractor, section.path, "encoder")
        if extractor.feature_size != self.model.config.num_mel_bins:
            raise ValueError(
                f"encoder.path: {section.path!r}: its feature extractor makes {extractor.feature_size} bands, "
                f"its weights take {self.model.config.num_mel_bins}"
            )
        hop = extractor.hop_length
        self.frames_per_second = extractor.sampling_rate / hop / self.model.config.subsampling_factor
        # N // hop frames; a variance takes two.
        self.features = LibraryFeatures(extractor, channels=extractor.feature_size, samples=2 * hop)

    def output_lengths(self, lengths_B: torch.Tensor) -> torch.Tensor:
        """Those of the strided convolutions."""
        return self.model._get_subsampling_output_length(lengths_B).long()

    def embed(self, features_BMT: torch.Tensor, lengths_B: torch.Tensor, padded: bool) -> torch.Tensor:
        """Strided convolutions, zeros behind each utterance after every one of them."""
        valid_BT = valid_frames(lengths_B, features_BMT.shape[2]) if padded else None
        hidden_BSD = self.model.subsampling(features_BMT.transpose(1, 2), valid_BT)
        return hidden_BSD * self.model.input_scale

    def context(self, hidden_BSD: torch.Tensor, lengths_B: torch.Tensor) -> tuple[Any, ...]:
        """Attention mask (B, 1, S, S), from which the layers take that of their convolutions, and positions."""
        positions = self.model.encode_positions(hidden_BSD)
        valid_BS = padding_mask(hidden_BSD, lengths_B)
        if valid_BS is None:
            return None, positions
        return (valid_BS[:, None, :, None] & valid_BS[:, None, None, :]), positions

    def finish(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        """Nothing: every layer ends with a norm."""
        return hidden_BSD

    def attention(self, layer_number: int) -> nn.Module:
        """ParakeetEncoderAttention."""
        return self.layers[layer_number].get_submodule("self_attn")


def _encoder_config(path: str) -> dict[str, Any]:
    """The encoder's part of a whole Parakeet's configuration, which its own class would read past."""
    try:
        whole = AutoConfig.from_pretrained(path)
    except (OSError, ValueError):  # the loading of the weights says what is wrong
        return {}
    return {"config": whole.encoder_config} if "encoder_config" in whole.sub_configs_defaults else {}
