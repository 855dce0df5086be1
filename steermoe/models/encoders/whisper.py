"""Whisper's encoder (Radford et al. 2022, transformers' WhisperEncoder) on features of any length.

transformers' own forward insists on the full window (30 s) and attends to padding. Here the stem is as long
as its input and masked, and the frozen layers get an attention mask, so that the result for an utterance does
not depend on what it is batched with. On a full window the result is transformers' own.
"""

from typing import ClassVar

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from steermoe import config
from steermoe.models.encoders.encoder import Encoder, valid_frames
from steermoe.models.frozen import load_frozen


class _EncoderOnly(WhisperEncoder):
    """Loads from an encoder's folder, and from a whole Whisper's without a word about its decoder."""

    _keys_to_ignore_on_load_unexpected: ClassVar = [r"^(model\.)?decoder\.", r"^proj_out\."]


class Whisper(Encoder):
    """Whisper's encoder, frozen.

    Args:
        section: `path` is a folder or hub id in Hugging Face format, of the encoder alone or a whole Whisper.

    Raises:
        ValueError: nothing can be loaded from the path, or weights are missing in it.
    """

    frames_per_second = 50.0  # features come at 100 a second, conv2 has stride 2

    def __init__(self, section: config.Encoder) -> None:
        super().__init__()
        self.model: WhisperEncoder = load_frozen(
            _EncoderOnly, section.path, section.dtype, "encoder", key_mapping={r"^(model\.)?encoder\.": ""}
        )
        self.layers: nn.ModuleList = self.model.layers
        self.width: int = self.model.config.d_model
        self.num_mels: int = self.model.config.num_mel_bins

    @property
    def max_frames(self) -> int:
        """The longest input that it has positions for, in encoder frames."""
        return self.model.embed_positions.num_embeddings

    def stem(self, features_BMT: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two convolutions and the positions; T feature frames become ceil(T / 2)."""
        _, mels, frames = features_BMT.shape
        if mels != self.num_mels:
            raise ValueError(f"features: found {mels} mels, the encoder takes {self.num_mels}")
        steps = (frames + 1) // 2
        if steps > self.max_frames:
            raise ValueError(
                f"features: found {steps / self.frames_per_second:.2f} s of audio, the encoder takes at most "
                f"{self.max_frames / self.frames_per_second:.2f} s; split the audio"
            )
        features_BMT = features_BMT.to(self.model.conv1.weight.dtype)
        padding_B1T = ~valid_frames(lengths_B, frames)[:, None]
        padded = bool(padding_B1T.any())
        if padded:
            features_BMT = features_BMT.masked_fill(padding_B1T, 0)
        hidden_BDT = nn.functional.gelu(self.model.conv1(features_BMT))
        if padded:  # conv2 must see zeros behind an utterance, as it does at the end of a batch
            hidden_BDT = hidden_BDT.masked_fill(padding_B1T, 0)
        hidden_BDS = nn.functional.gelu(self.model.conv2(hidden_BDT))
        return hidden_BDS.transpose(1, 2) + self.model.embed_positions.weight[:steps], (lengths_B + 1) // 2

    def context(self, hidden_BSD: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor | None]:
        """The attention mask in the form that the attention implementation takes; None without padding."""
        steps = hidden_BSD.shape[1]
        if bool((lengths_B == steps).all()):
            return (None,)
        valid_BS = valid_frames(lengths_B, steps)
        mask = create_bidirectional_mask(self.model.config, hidden_BSD, attention_mask=valid_BS)
        return (mask,)  # pyright: ignore[reportReturnType]

    def attention(self, number: int) -> nn.Module:
        """WhisperAttention."""
        attention = self.layers[number].self_attn
        assert isinstance(attention, nn.Module)
        return attention

    def finish(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        """The final layer norm."""
        return self.model.layer_norm(hidden_BSD)
