"""Conformer encoders of transformers: wav2vec 2.0 on waveforms, w2v-BERT 2.0 and Parakeet on filter banks.

Shapes: B batch, M feature channels, T feature frames, S encoder frames, D encoder width.
"""

import math
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    ParakeetFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
)
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoder
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertModel
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerModel

from steermoe import config
from steermoe.audio.features import FRAMES_PER_SECOND, HOP, WINDOW, LibraryFeatures
from steermoe.audio.io import RATE
from steermoe.models.encoders.encoder import Encoder, padding_mask
from steermoe.models.packing import valid_frames
from steermoe.models.pretrained import load_extractor, load_frozen


class _Wav2Vec2ConformerOnly(Wav2Vec2ConformerModel):  # loads silently from a checkpoint with heads
    _keys_to_ignore_on_load_unexpected: ClassVar = [r"^(lm_head|project_hid|project_q|quantizer)\."]


class _Wav2Vec2BertOnly(Wav2Vec2BertModel):
    _keys_to_ignore_on_load_unexpected: ClassVar = [r"^lm_head\."]


class _ParakeetOnly(ParakeetEncoder):
    _keys_to_ignore_on_load_unexpected: ClassVar = [r"^(ctc_head|decoder|encoder_projector|joint)\."]


class _Wav2Vec2(Encoder):
    """What both wav2vec 2.0 encoders share: loading, and the arguments of the layers.

    Args:
        section: `path` is a folder or hub id in Hugging Face format, with its preprocessor_config.json.
        kind, extractor: classes of the model and its feature extractor.

    Raises:
        ValueError: nothing can be loaded from the path, weights are missing in it, or it has an adapter.
    """

    def __init__(self, section: config.Encoder, kind: Any, extractor: Any) -> None:
        super().__init__(section)
        self.model: Any = load_frozen(kind, section.path, section.dtype, "encoder")
        if self.model.config.add_adapter:
            raise ValueError(
                f"encoder.path: {section.path!r} has add_adapter, layers after the encoder that shorten its "
                "output for a task of their own; use the checkpoint without them"
            )
        self.extractor = load_extractor(extractor, section.path, "encoder")
        self.layers: nn.ModuleList = self.model.encoder.layers
        self.width: int = self.model.config.hidden_size

    def context(self, hidden_BSD: Tensor, lengths_B: Tensor) -> tuple[Any, ...]:
        """Return attention mask, positions, and what is valid for the convolutions (B, S)."""
        mask, valid_BS = None, padding_mask(hidden_BSD, lengths_B)
        if valid_BS is not None:
            mask = create_bidirectional_mask(self.model.config, hidden_BSD, attention_mask=valid_BS)
        embed = self.model.encoder.embed_positions
        # A copy: transformers keeps the last one, and one from inference mode is of no use in training.
        positions = None if embed is None else embed(hidden_BSD).clone()
        return mask, positions, valid_BS


class Wav2Vec2Conformer(_Wav2Vec2):
    """wav2vec 2.0 with Conformer layers (Wang et al. 2021) on raw waveforms, with any kind of positions.

    transformers masks attention, but not the convolutions inside the layers, and normalises over time; both let
    padding affect an utterance. Here they do not.
    """

    def __init__(self, section: config.Encoder) -> None:
        super().__init__(section, _Wav2Vec2ConformerOnly, Wav2Vec2FeatureExtractor)
        kernels, strides = self.model.config.conv_kernel, self.model.config.conv_stride
        self.frames_per_second = RATE / math.prod(strides)
        shortest = 1  # samples that the first frame sees
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            shortest = (shortest - 1) * stride + kernel
        self.features = LibraryFeatures(self.extractor, channels=1, samples=shortest)
        for layer in self.layers:
            _MaskedConvolution(layer, layer.get_submodule("conv_module.depthwise_conv"))

    def output_lengths(self, lengths_B: Tensor) -> Tensor:
        """Return the lengths after the convolutions, which have no padding."""
        for kernel, stride in zip(self.model.config.conv_kernel, self.model.config.conv_stride, strict=True):
            lengths_B = (lengths_B - kernel) // stride + 1
        return lengths_B.clamp(min=0)

    def embed(self, features_BMT: Tensor, lengths_B: Tensor, padded: bool) -> Tensor:
        """Apply the convolutions over samples and the projection."""
        waveforms_BT = features_BMT[:, 0]
        if padded and self.model.config.feat_extract_norm == "group":
            # The normalisation runs over time: each utterance passes on its own.
            rows = [row[:length][None] for row, length in zip(waveforms_BT, lengths_B.tolist(), strict=True)]
            extracted = [self.model.feature_extractor(row)[0].T for row in rows]
            extracted_BSC = pad_sequence(extracted, batch_first=True)
        else:
            extracted_BSC = self.model.feature_extractor(waveforms_BT).transpose(1, 2)
        hidden_BSD, _ = self.model.feature_projection(extracted_BSC)
        return hidden_BSD

    def finish(self, hidden_BSD: Tensor) -> Tensor:
        """Apply the final layer norm."""
        return self.model.encoder.layer_norm(hidden_BSD)


class _MaskedConvolution:
    """Hooks that zero what follows the utterances before a layer's depthwise convolution.

    The layer's forward has no argument for it, so `layer(hidden_BSD, mask, positions, valid_BS)` is called as
    `layer(hidden_BSD, mask, positions)`, and `valid_BS` is kept here. Every call sets it anew, so that recomputed
    layers (gradient checkpointing) and those after a shortening get their own.
    """

    def __init__(self, layer: nn.Module, convolution: nn.Module) -> None:
        self.valid_BS: Tensor | None = None
        layer.register_forward_pre_hook(self._take)
        convolution.register_forward_pre_hook(self._mask)

    def _take(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self.valid_BS = args[3] if len(args) > 3 else None  # transformers' own forward passes none
        return args[:3]

    def _mask(self, convolution: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        (hidden_BDS,) = args
        if self.valid_BS is None:
            return (hidden_BDS,)
        return (hidden_BDS.masked_fill(~self.valid_BS[:, None], 0),)


class W2vBert(_Wav2Vec2):
    """w2v-BERT 2.0 (Seamless Communication 2023): Conformer layers on Kaldi's filter banks, two frames stacked."""

    def __init__(self, section: config.Encoder) -> None:
        super().__init__(section, _Wav2Vec2BertOnly, SeamlessM4TFeatureExtractor)
        bands, stride = self.extractor.num_mel_bins, self.extractor.stride
        expected = self.model.config.feature_projection_input_dim
        if bands * stride != expected:
            raise ValueError(
                f"encoder.path: {section.path!r}: its feature extractor makes {bands} bands x {stride} frames = "
                f"{bands * stride} features, its weights take {expected}"
            )
        self.frames_per_second = FRAMES_PER_SECOND / stride
        # A variance takes two frames, an output `stride` of them.
        shortest = WINDOW + (max(2, stride) - 1) * HOP
        self.features = LibraryFeatures(
            self.extractor, channels=expected, samples=shortest, padding=False, pad_to_multiple_of=None
        )

    def output_lengths(self, lengths_B: Tensor) -> Tensor:
        """Return the number of feature frames."""
        return lengths_B

    def embed(self, features_BMT: Tensor, lengths_B: Tensor, padded: bool) -> Tensor:
        """Normalise and project each frame."""
        hidden_BSD, _ = self.model.feature_projection(features_BMT.transpose(1, 2))
        return hidden_BSD


class Parakeet(Encoder):
    """Parakeet's Fast Conformer (Rekesh et al. 2023) on NeMo's log-mel features.

    Args:
        section: `path` is a folder or hub id in Hugging Face format, of the encoder alone or a whole Parakeet
            (CTC, RNN-T, TDT), with its preprocessor_config.json.

    Raises:
        ValueError: nothing can be loaded from the path, weights are missing in it, or its feature extractor
            does not fit its weights.
    """

    def __init__(self, section: config.Encoder) -> None:
        super().__init__(section)
        options: dict[str, Any] = {}
        try:  # the encoder's part of a whole Parakeet's configuration, which its own class ignores
            whole = AutoConfig.from_pretrained(section.path)
            if "encoder_config" in whole.sub_configs_defaults:
                options = {"config": whole.encoder_config}
        except (OSError, ValueError):
            pass  # loading the weights reports what is wrong
        self.model: ParakeetEncoder = load_frozen(
            _ParakeetOnly, section.path, section.dtype, "encoder", **options
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

    def output_lengths(self, lengths_B: Tensor) -> Tensor:
        """Return the lengths after the strided convolutions."""
        return self.model._get_subsampling_output_length(lengths_B).long()

    def embed(self, features_BMT: Tensor, lengths_B: Tensor, padded: bool) -> Tensor:
        """Apply strided convolutions, with zeros after each utterance following every one of them."""
        valid_BT = valid_frames(lengths_B, features_BMT.shape[2]) if padded else None
        hidden_BSD = self.model.subsampling(features_BMT.transpose(1, 2), valid_BT)
        return hidden_BSD * self.model.input_scale

    def context(self, hidden_BSD: Tensor, lengths_B: Tensor) -> tuple[Any, ...]:
        """Return attention mask (B, 1, S, S), from which layers derive that of their convolutions, and positions."""
        positions = self.model.encode_positions(hidden_BSD)
        valid_BS = padding_mask(hidden_BSD, lengths_B)
        if valid_BS is None:
            return None, positions
        return (valid_BS[:, None, :, None] & valid_BS[:, None, None, :]), positions
