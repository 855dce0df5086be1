"""Whisper's encoder (Radford et al. 2022, transformers' WhisperEncoder) on features of any length.

transformers' own forward requires the full window (30 s) and attends to padding. Here the stem is as long as its
input and masked, and the frozen layers get an attention mask, so that the result for an utterance does not depend on
its batch. On a full window the result is transformers' own. With `window: full` every utterance is padded with
silence to a full window, as in Whisper's training.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from steermoe import config
from steermoe.audio.features import LogMel
from steermoe.models.encoders.encoder import Encoder, padding_mask
from steermoe.models.packing import valid_frames
from steermoe.models.pretrained import load_frozen

TAIL = 2  # with a full window, features include the frames after the end that still see the last samples
SILENCE = -1.5  # LogMel of zeros: the logarithm of 1e-10, scaled
RANGE = 2.0  # LogMel of 80 dB, which is cut off below the loudest frame


class _EncoderOnly(WhisperEncoder):
    """Loads from an encoder's folder, and silently from a whole Whisper's."""

    _keys_to_ignore_on_load_unexpected: ClassVar = [r"^(model\.)?decoder\.", r"^proj_out\."]


class Whisper(Encoder):
    """Whisper's encoder, frozen.

    Args:
        section: `path` is a folder or hub id in Hugging Face format, of the encoder alone or a whole Whisper.

    Raises:
        ValueError: nothing can be loaded from the path, or weights are missing in it.
    """

    windows: ClassVar = ("unpadded", "full")
    frames_per_second = 50.0  # features come at 100 a second, conv2 has stride 2

    def __init__(self, section: config.Encoder) -> None:
        super().__init__(section)
        self.model: WhisperEncoder = load_frozen(
            _EncoderOnly, section.path, section.dtype, "encoder", key_mapping={r"^(model\.)?encoder\.": ""}
        )
        self.layers: nn.ModuleList = self.model.layers
        self.width: int = self.model.config.d_model
        self.max_frames: int = self.model.embed_positions.num_embeddings
        self.tail = TAIL if section.window == "full" else 0
        self.features = LogMel(self.model.config.num_mel_bins, self.tail)

    def output_lengths(self, lengths_B: Tensor) -> Tensor:
        """Return half of the feature frames, rounded up."""
        return (lengths_B - self.tail + 1) // 2

    def embed(self, features_BMT: Tensor, lengths_B: Tensor, padded: bool) -> Tensor:
        """Apply two convolutions and add the positions."""
        if self.window == "full":
            features_BMT, padded = self._full(features_BMT, lengths_B), False
        frames = features_BMT.shape[2]
        hidden_BDT = nn.functional.gelu(self.model.conv1(features_BMT))
        if padded:  # conv2 must see zeros after an utterance, as at the end of a batch
            hidden_BDT = hidden_BDT.masked_fill(~valid_frames(lengths_B, frames)[:, None], 0)
        hidden_BDS = nn.functional.gelu(self.model.conv2(hidden_BDT))
        return hidden_BDS.transpose(1, 2) + self.model.embed_positions.weight[: (frames + 1) // 2]

    def context(self, hidden_BSD: Tensor, lengths_B: Tensor) -> tuple[Tensor | None]:
        """Return the attention mask in the form of the attention implementation; None without padding."""
        mask = padding_mask(hidden_BSD, lengths_B)
        if mask is not None:
            mask = create_bidirectional_mask(self.model.config, hidden_BSD, attention_mask=mask)
        return (mask,)  # pyright: ignore[reportReturnType]

    def finish(self, hidden_BSD: Tensor) -> Tensor:
        """Apply the final layer norm."""
        return self.model.layer_norm(hidden_BSD)

    def _full(self, features_BMT: Tensor, lengths_B: Tensor) -> Tensor:
        """Pad features to the whole window with the value of silence in the scale of each utterance."""
        window = 2 * self.max_frames
        features_BMT = nn.functional.pad(features_BMT, (0, window - features_BMT.shape[2]))
        after_B1T = ~valid_frames(lengths_B, window)[:, None]
        loudest_B11 = features_BMT.masked_fill(after_B1T, -torch.inf).amax((1, 2), keepdim=True)
        return torch.where(after_B1T, (loudest_B11 - RANGE).clamp(min=SILENCE), features_BMT)
