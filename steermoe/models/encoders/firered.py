"""FireRedASR-AED's Conformer encoder (Xu et al. 2025) on Kaldi's filter banks, from a converted checkpoint.

transformers has no class for it. Two strided convolutions (4 frames become 1), then layers of half a feed-forward,
self-attention with relative positions (Dai et al. 2019), a gated convolution, half a feed-forward, and a norm. The
published checkpoint is a pickle, which `firered_convert` converts once. Weights keep their published names, without
`encoder.` and with `norm`, `expand`, `project` for `0`, `1`, `4` in the feed-forwards.

Shapes: B batch, T feature frames, M mels, S encoder frames, D width, H heads, K width of a head, P relative
positions S-1 ... -(S-1).
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from steermoe import config
from steermoe.audio.features import FRAMES_PER_SECOND, KaldiFbank
from steermoe.models.encoders.encoder import Encoder, padding_mask
from steermoe.models.packing import valid_frames
from steermoe.models.pretrained import load_frozen

CONTEXT = 6  # frames of zeros after an utterance: the convolutions see that far


class FireRedConfig(PreTrainedConfig):
    """Sizes; the defaults are those of FireRedASR-AED-L."""

    model_type = "firered_conformer"

    num_mel_bins: int = 80
    hidden_size: int = 1280
    num_hidden_layers: int = 16
    num_attention_heads: int = 20
    conv_kernel_size: int = 33
    max_frames: int = 5000


class FireRedConformer(PreTrainedModel):
    """Normalised filter banks (B, T, M) to hidden states (B, S, D), S = ceil(T / 4).

    Attributes:
        cmvn: `mean` and `inverse_std` (M,) of the features; they are not applied here.
    """

    config: FireRedConfig
    config_class = FireRedConfig
    main_input_name = "features"
    _keep_in_fp32_modules_strict: ClassVar = ["cmvn"]

    def __init__(self, config: FireRedConfig) -> None:
        super().__init__(config)
        self.input_preprocessor = Subsampling(config)
        self.layer_stack = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.cmvn = Cmvn(config.num_mel_bins)
        self.post_init()

    def forward(self, features: Tensor, lengths_B: Tensor) -> Tensor:
        """Features are right-padded with zeros."""
        hidden_BSD = self.input_preprocessor(features)
        valid_BS = valid_frames(self.input_preprocessor.lengths(lengths_B), hidden_BSD.shape[1])
        positions_PD = relative_positions(hidden_BSD)
        for layer in self.layer_stack:
            hidden_BSD = layer(hidden_BSD, positions_PD, valid_BS)
        return hidden_BSD


class Cmvn(nn.Module):
    """Mean and inverse standard deviation of every mel band."""

    def __init__(self, mels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(mels))
        self.inverse_std = nn.Parameter(torch.ones(mels))


class Subsampling(nn.Module):
    """Two convolutions with stride 2, without padding."""

    def __init__(self, config: FireRedConfig, channels: int = 32) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, channels, 3, 2), nn.ReLU(), nn.Conv2d(channels, channels, 3, 2), nn.ReLU()
        )
        self.out = nn.Linear(channels * (((config.num_mel_bins - 1) // 2 - 1) // 2), config.hidden_size)

    def forward(self, features_BTM: Tensor) -> Tensor:
        """Frames (B, S, D)."""
        padded_B1TM = nn.functional.pad(features_BTM, (0, 0, 0, CONTEXT))[:, None]
        return self.out(self.conv(padded_B1TM).transpose(1, 2).flatten(2))

    @staticmethod
    def lengths(lengths_B: Tensor) -> Tensor:
        """Return the encoder frames of utterances from their feature frames."""
        return (lengths_B + 3) // 4


class Layer(nn.Module):
    """A Conformer layer."""

    def __init__(self, config: FireRedConfig) -> None:
        super().__init__()
        self.ffn1 = FeedForward(config.hidden_size)
        self.mhsa = Attention(config.hidden_size, config.num_attention_heads)
        self.conv = Convolution(config.hidden_size, config.conv_kernel_size)
        self.ffn2 = FeedForward(config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size)

    def forward(self, hidden_BSD: Tensor, positions_PD: Tensor, valid_BS: Tensor | None = None) -> Tensor:
        """Args: hidden states, `relative_positions` of them, and what of them is valid (None: all)."""
        hidden_BSD = hidden_BSD + 0.5 * self.ffn1(hidden_BSD)
        hidden_BSD = hidden_BSD + self.mhsa(hidden_BSD, positions_PD, valid_BS)
        hidden_BSD = hidden_BSD + self.conv(hidden_BSD, valid_BS)
        hidden_BSD = hidden_BSD + 0.5 * self.ffn2(hidden_BSD)
        return self.layer_norm(hidden_BSD)


class FeedForward(nn.Module):
    """Norm, four times the width, SiLU, and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, width)

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        """What is added to the residual, before it is halved."""
        return self.project(nn.functional.silu(self.expand(self.norm(hidden_BSD))))


class Attention(nn.Module):
    """Multi-head self-attention with relative positions; query, key and value have a norm each, no biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.layer_norm_q, self.layer_norm_k, self.layer_norm_v = (nn.LayerNorm(width) for _ in range(3))
        self.w_qs, self.w_ks, self.w_vs, self.linear_pos, self.fc = (
            nn.Linear(width, width, bias=False) for _ in range(5)
        )
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, width // heads))

    def forward(self, hidden_BSD: Tensor, positions_PD: Tensor, valid_BS: Tensor | None) -> Tensor:
        """What is added to the residual, (B, S, D)."""
        query_BSHK = self.w_qs(self.layer_norm_q(hidden_BSD)).unflatten(-1, (self.heads, -1))
        key_BSHK = self.w_ks(self.layer_norm_k(hidden_BSD)).unflatten(-1, (self.heads, -1))
        value_BSHK = self.w_vs(self.layer_norm_v(hidden_BSD)).unflatten(-1, (self.heads, -1))
        position_PHK = self.linear_pos(positions_PD).unflatten(-1, (self.heads, -1))
        bias_BHSP = torch.einsum("bshk,phk->bhsp", query_BSHK + self.pos_bias_v, position_PHK)
        bias_BHSS = _of_distance(bias_BHSP) / math.sqrt(key_BSHK.shape[-1])
        if valid_BS is not None:
            bias_BHSS = bias_BHSS.masked_fill(~valid_BS[:, None, None], -torch.inf)
        mixed_BHSK = nn.functional.scaled_dot_product_attention(
            (query_BSHK + self.pos_bias_u).transpose(1, 2),
            key_BSHK.transpose(1, 2),
            value_BSHK.transpose(1, 2),
            attn_mask=bias_BHSS,
        )
        return self.fc(mixed_BHSK.transpose(1, 2).flatten(2))


class Convolution(nn.Module):
    """Norm, pointwise to four times the width, gate, depthwise over time, norm, SiLU, pointwise back."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.pre_layer_norm = nn.LayerNorm(width)
        self.pointwise_conv1 = nn.Conv1d(width, 4 * width, 1, bias=False)
        self.depthwise_conv = nn.Conv1d(
            2 * width, 2 * width, kernel, padding=(kernel - 1) // 2, groups=2 * width, bias=False
        )
        self.batch_norm = nn.LayerNorm(2 * width)  # the checkpoint's name; it is no batch norm
        self.pointwise_conv2 = nn.Conv1d(2 * width, width, 1, bias=False)

    def forward(self, hidden_BSD: Tensor, valid_BS: Tensor | None) -> Tensor:
        """What is added to the residual, (B, S, D)."""
        hidden_BSD = self.pre_layer_norm(hidden_BSD)
        if valid_BS is not None:  # without biases, zeros stay zeros up to the depthwise convolution
            hidden_BSD = hidden_BSD.masked_fill(~valid_BS[..., None], 0)
        hidden_BDS = nn.functional.glu(self.pointwise_conv1(hidden_BSD.transpose(1, 2)), dim=1)
        hidden_BSD = self.batch_norm(self.depthwise_conv(hidden_BDS).transpose(1, 2))
        return self.pointwise_conv2(nn.functional.silu(hidden_BSD).transpose(1, 2)).transpose(1, 2)


def relative_positions(hidden_BSD: Tensor) -> Tensor:
    """Sine and cosine, interleaved, of the distances S-1 ... -(S-1): (P, D), in the type of the input."""
    steps, width = hidden_BSD.shape[1:]
    distances_P = torch.arange(steps - 1, -steps, -1, device=hidden_BSD.device, dtype=torch.float32)
    exponents = torch.arange(0, width, 2, device=hidden_BSD.device, dtype=torch.float32)
    angles = distances_P[:, None] * torch.exp(exponents * -(math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(hidden_BSD.dtype)


def _of_distance(scores_BHSP: Tensor) -> Tensor:
    """From scores by distance to scores by key, (B, H, S, S): [s, t] is the score at distance s - t.

    Each row is shifted by one more than that above (Dai et al. 2019, appendix B).
    """
    steps, positions = scores_BHSP.shape[2:]
    shifted = nn.functional.pad(scores_BHSP, (1, 0)).flatten(2)[..., steps:]
    return shifted.unflatten(-1, (steps, positions))[..., :steps]


class FireRed(Encoder):
    """FireRedASR-AED's encoder, frozen.

    Args:
        section: `path` is a folder that `firered_convert` wrote.

    Raises:
        ValueError: nothing can be loaded from the path, or weights are missing in it.
    """

    self_attention = "mhsa"
    frames_per_second = FRAMES_PER_SECOND / 4

    def __init__(self, section: config.Encoder) -> None:
        super().__init__(section)
        self.model: FireRedConformer = load_frozen(FireRedConformer, section.path, section.dtype, "encoder")
        self.layers: nn.ModuleList = self.model.layer_stack
        self.width: int = self.model.config.hidden_size
        self.max_frames: int = self.model.config.max_frames
        cmvn = self.model.cmvn
        self.features = KaldiFbank(self.model.config.num_mel_bins, cmvn.mean, cmvn.inverse_std)

    def output_lengths(self, lengths_B: Tensor) -> Tensor:
        """Return a quarter of the feature frames, rounded up."""
        return self.model.input_preprocessor.lengths(lengths_B)

    def embed(self, features_BMT: Tensor, lengths_B: Tensor, padded: bool) -> Tensor:
        """Apply two convolutions with stride 2, which see zeros after each utterance."""
        return self.model.input_preprocessor(features_BMT.transpose(1, 2))

    def context(self, hidden_BSD: Tensor, lengths_B: Tensor) -> tuple[Any, ...]:
        """Return positions, and which frames are valid."""
        return relative_positions(hidden_BSD), padding_mask(hidden_BSD, lengths_B)
