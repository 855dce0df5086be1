"""Down-sampling of encoder frames to audio tokens: (hidden_BSD, lengths_B) -> (tokens_BAE, lengths_B).

Windows of K adjacent frames become A = ceil(S / K) tokens; frames beyond a row's length add nothing.
Shapes: B batch, S encoder frames, A audio tokens, K factor, D encoder width, E width of a token.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from steermoe import config
from steermoe.models.packing import valid_frames


class Downsampler(nn.Module, ABC):
    """Base class; a subclass may set `frames_per_token`, by which a token is wider than a frame.

    Attributes:
        factor: K.
        width: E.
    """

    def __init__(self, section: config.Projector, frame_width: int) -> None:
        super().__init__()
        self.factor = section.downsample_factor
        self.width = frame_width * self.frames_per_token(section.downsample_factor)

    @staticmethod
    def frames_per_token(factor: int) -> int:
        """Return E / D."""
        return 1

    def forward(self, hidden_BSD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Turn frames into audio tokens; return them and their lengths."""
        frames = hidden_BSD.shape[1]
        hidden_BSD = hidden_BSD.masked_fill(~valid_frames(lengths_B, frames)[..., None], 0)
        missing = -frames % self.factor
        if torch.compiler.is_exporting() or missing:  # an exported graph always pads, if only by zero
            hidden_BSD = nn.functional.pad(hidden_BSD, (0, 0, 0, missing))
        tokens_BAE = self.pool(hidden_BSD.unflatten(1, (-1, self.factor)), lengths_B)
        return tokens_BAE, (lengths_B + self.factor - 1) // self.factor

    @abstractmethod
    def pool(self, windows_BAKD: Tensor, lengths_B: Tensor) -> Tensor:
        """Turn windows, zero beyond each row's length in frames, into tokens (B, A, E)."""


class Average(Downsampler):
    """The mean over the valid frames of each window; E = D."""

    def pool(self, windows_BAKD: Tensor, lengths_B: Tensor) -> Tensor:
        """Average a window that ends in padding over its valid frames."""
        starts_A = torch.arange(windows_BAKD.shape[1], device=lengths_B.device) * self.factor
        frames_BA = (lengths_B[:, None] - starts_A).clamp(1, self.factor)
        return windows_BAKD.sum(2) / frames_BA[..., None].to(windows_BAKD.dtype)


class Concat(Downsampler):
    """The frames of each window side by side, zeros beyond the end; E = K * D."""

    @staticmethod
    def frames_per_token(factor: int) -> int:
        """A token holds all frames of its window."""
        return factor

    def pool(self, windows_BAKD: Tensor, lengths_B: Tensor) -> Tensor:
        """Put the first frame of a window first."""
        return windows_BAKD.flatten(2)


class Max(Downsampler):
    """The largest value per channel over the valid frames of each window; E = D."""

    def pool(self, windows_BAKD: Tensor, lengths_B: Tensor) -> Tensor:
        """Ignore padding; a window of padding alone is zero."""
        tokens = windows_BAKD.shape[1]
        valid_BAK = valid_frames(lengths_B, tokens * self.factor).unflatten(1, (-1, self.factor))
        largest_BAD = windows_BAKD.masked_fill(~valid_BAK[..., None], -torch.inf).amax(2)
        return largest_BAD.masked_fill(~valid_BAK.any(2)[..., None], 0)


class Convolution(Downsampler):
    """A trained convolution with kernel and stride K, initially the average: K * D * D + D parameters; E = D."""

    def __init__(self, section: config.Projector, frame_width: int) -> None:
        super().__init__(section, frame_width)
        self.linear = nn.Linear(self.factor * frame_width, frame_width)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(frame_width).repeat(1, self.factor) / self.factor)
            self.linear.bias.zero_()

    def pool(self, windows_BAKD: Tensor, lengths_B: Tensor) -> Tensor:
        """Convolve; with stride = kernel this is one matrix over the concatenated frames of a window."""
        tokens_BAD = self.linear(windows_BAKD.flatten(2).to(self.linear.weight.dtype))
        return tokens_BAD.to(windows_BAKD.dtype)


class Identity(Downsampler):
    """No down-sampling: every frame is an audio token."""

    def forward(self, hidden_BSD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the arguments."""
        return hidden_BSD, lengths_B

    def pool(self, windows_BAKD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return windows of one frame as they are."""
        return windows_BAKD.flatten(1, 2)


def make_downsampler(section: config.Projector, frame_width: int, layers: int) -> Downsampler:
    """Build the down-sampler that the section names, for frames of width D from an encoder with `layers` layers.

    Raises:
        ValueError: `projector.downsample_after_layer` does not suit it.
    """
    downsampler = DOWNSAMPLERS[section.downsample](section, frame_width)
    after = section.downsample_after_layer
    if after is not None and after >= layers:
        raise ValueError(
            f"projector.downsample_after_layer: found {after}, the encoder has layers 0 to {layers - 1}"
        )
    if after is not None and downsampler.width != frame_width:
        raise ValueError(
            f"projector.downsample_after_layer: found {after} with projector.downsample {section.downsample!r}, "
            f"whose tokens are {downsampler.width} wide, but the following layers take {frame_width}; use null, "
            "or another down-sampler"
        )
    return downsampler


DOWNSAMPLERS: dict[str, type[Downsampler]] = {
    "average": Average,
    "max": Max,
    "concat": Concat,
    "conv": Convolution,
    "none": Identity,
}
