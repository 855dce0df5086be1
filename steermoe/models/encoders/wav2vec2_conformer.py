"""wav2vec 2.0 with Conformer layers (Wang et al. 2021, transformers' Wav2Vec2ConformerModel) on raw waveforms.

transformers masks attention, but not the convolutions inside the layers, and trains on a normalisation over
time; both let padding into an utterance's result. Here they do not.
"""

import math
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Wav2Vec2FeatureExtractor
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerModel

from steermoe import config
from steermoe.audio.features import LibraryFeatures
from steermoe.audio.io import RATE
from steermoe.models.encoders.wav2vec2 import Wav2Vec2


class _EncoderOnly(Wav2Vec2ConformerModel):
    """Loads from a pretraining or CTC checkpoint without a word about its heads."""

    _keys_to_ignore_on_load_unexpected: ClassVar = [r"^(lm_head|project_hid|project_q|quantizer)\."]


class Wav2Vec2Conformer(Wav2Vec2):
    """Wav2Vec2Conformer, frozen, with relative, rotary or no positions.

    Args:
        section: as `Wav2Vec2` takes it.
    """

    def __init__(self, section: config.Encoder) -> None:
        super().__init__(section, _EncoderOnly, Wav2Vec2FeatureExtractor)
        self.frames_per_second = RATE / math.prod(self.model.config.conv_stride)
        shortest = _receptive_field(self.model.config)
        self.features = LibraryFeatures(self.extractor, channels=1, samples=shortest)
        for layer in self.layers:
            _MaskedConvolution(layer, layer.get_submodule("conv_module.depthwise_conv"))

    def output_lengths(self, lengths_B: torch.Tensor) -> torch.Tensor:
        """Those of the convolutions, which have no padding."""
        for kernel, stride in zip(self.model.config.conv_kernel, self.model.config.conv_stride, strict=True):
            lengths_B = (lengths_B - kernel) // stride + 1
        return lengths_B.clamp(min=0)

    def embed(self, features_BMT: torch.Tensor, lengths_B: torch.Tensor, padded: bool) -> torch.Tensor:
        """The convolutions over samples and the projection."""
        waveforms_BT = features_BMT[:, 0]
        if padded and self.model.config.feat_extract_norm == "group":
            # Its normalisation runs over time: each utterance goes through on its own.
            rows = [row[:length][None] for row, length in zip(waveforms_BT, lengths_B.tolist(), strict=True)]
            extracted = [self.model.feature_extractor(row)[0].T for row in rows]
            extracted_BSC = pad_sequence(extracted, batch_first=True)
        else:
            extracted_BSC = self.model.feature_extractor(waveforms_BT).transpose(1, 2)
        hidden_BSD, _ = self.model.feature_projection(extracted_BSC)
        return hidden_BSD

    def finish(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        """The final layer norm."""
        return self.model.encoder.layer_norm(hidden_BSD)


class _MaskedConvolution:
    """Hooks that zero what lies behind the utterances where a layer's own depthwise convolution begins.

    The layer's forward has no argument for it: `layer(hidden_BSD, mask, positions, valid_BS)` is called as
    `layer(hidden_BSD, mask, positions)`, and `valid_BS` waits here. Every call sets it anew, so that
    recomputed layers (gradient checkpointing) and those after a shortening see their own.
    """

    def __init__(self, layer: nn.Module, convolution: nn.Module) -> None:
        self.valid_BS: torch.Tensor | None = None
        layer.register_forward_pre_hook(self._take)
        convolution.register_forward_pre_hook(self._mask)

    def _take(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self.valid_BS = args[3] if len(args) > 3 else None  # transformers' own forward has none
        return args[:3]

    def _mask(self, convolution: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (hidden_BDS,) = args
        if self.valid_BS is None:
            return (hidden_BDS,)
        return (hidden_BDS.masked_fill(~self.valid_BS[:, None], 0),)


def _receptive_field(settings: Any) -> int:
    """Samples that the first frame sees."""
    samples = 1
    for kernel, stride in zip(reversed(settings.conv_kernel), reversed(settings.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples
