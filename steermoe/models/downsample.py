"""Down-sampling the encoder's frames to audio tokens: (hidden_BSD, lengths_B) -> (audio_BAD', lengths_B).

Windows of K frames side by side, A = ceil(S / K) of them, to which frames beyond a row's length add nothing.
Shapes: B batch, S encoder frames, A audio tokens, K kernel, D encoder width, D' width after.
"""

from abc import ABC, abstractmethod

import torch
from torch import nn

from steermoe import config
from steermoe.models.encoders.encoder import valid_frames
from steermoe.registry import choose


class Downsampler(nn.Module, ABC):
    """What every down-sampler has.

    Attributes:
        kernel: K.
        width: D'.

    Args:
        section: the configuration of the projector.
        frame_width: D.
    """

    width: int

    def __init__(self, section: config.Projector, frame_width: int) -> None:
        super().__init__()
        self.kernel = section.downsample_factor
        self.width = frame_width * self.frames_a_token(section.downsample_factor)

    @staticmethod
    @abstractmethod
    def frames_a_token(kernel: int) -> int:
        """D' / D."""

    @abstractmethod
    def forward(self, hidden_BSD: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames to audio tokens, and their lengths."""


class Average(Downsampler):
    """The mean over the valid frames of each window; D' = D."""

    @staticmethod
    def frames_a_token(kernel: int) -> int:
        """A token is as wide as a frame."""
        return 1

    def forward(self, hidden_BSD: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A window that ends within an utterance's padding is averaged over what is not padding."""
        windows_BAKD = _windows(hidden_BSD, lengths_B, self.kernel)
        tokens = windows_BAKD.shape[1]
        starts_A = torch.arange(tokens, device=lengths_B.device) * self.kernel
        frames_BA = (lengths_B[:, None] - starts_A).clamp(1, self.kernel)
        mean_BAD = windows_BAKD.sum(2) / frames_BA[..., None].to(hidden_BSD.dtype)
        return mean_BAD, _ceil_div(lengths_B, self.kernel)


class Concat(Downsampler):
    """The frames of each window side by side, zeros beyond the end; D' = K * D."""

    @staticmethod
    def frames_a_token(kernel: int) -> int:
        """A token holds all frames of its window."""
        return kernel

    def forward(self, hidden_BSD: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first frame of a window comes first."""
        return _windows(hidden_BSD, lengths_B, self.kernel).flatten(2), _ceil_div(lengths_B, self.kernel)


class Max(Average):
    """The largest value, per channel, over the valid frames of each window; D' = D."""

    def forward(self, hidden_BSD: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Padding never wins; a window of nothing but padding is zero."""
        windows_BAKD = _windows(hidden_BSD, lengths_B, self.kernel)
        tokens = windows_BAKD.shape[1]
        valid_BAK = valid_frames(lengths_B, tokens * self.kernel).unflatten(1, (-1, self.kernel))
        largest_BAD = windows_BAKD.masked_fill(~valid_BAK[..., None], -torch.inf).amax(2)
        return largest_BAD.masked_fill(~valid_BAK.any(2)[..., None], 0), _ceil_div(lengths_B, self.kernel)


class Convolution(Average):
    """A trained convolution of kernel and stride K; D' = D. K * D * D + D parameters.

    It starts as the average over a full window.
    """

    def __init__(self, section: config.Projector, frame_width: int) -> None:
        super().__init__(section, frame_width)
        self.linear = nn.Linear(section.downsample_factor * frame_width, frame_width)
        with torch.no_grad():
            self.linear.weight.copy_(
                torch.eye(frame_width).repeat(1, section.downsample_factor) / section.downsample_factor
            )
            self.linear.bias.zero_()

    def forward(self, hidden_BSD: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """With stride = kernel it is one matrix over the frames of a window side by side."""
        windows_BAE = _windows(hidden_BSD, lengths_B, self.kernel).flatten(2)
        tokens_BAD = self.linear(windows_BAE.to(self.linear.weight.dtype))
        return tokens_BAD.to(hidden_BSD.dtype), _ceil_div(lengths_B, self.kernel)


class Identity(Average):
    """No down-sampling: every frame is an audio token."""

    def forward(self, hidden_BSD: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What comes in."""
        return hidden_BSD, lengths_B


def _windows(hidden_BSD: torch.Tensor, lengths_B: torch.Tensor, kernel: int) -> torch.Tensor:
    """Windows (B, A, K, D) with zeros beyond each length."""
    frames = hidden_BSD.shape[1]
    hidden_BSD = hidden_BSD.masked_fill(~valid_frames(lengths_B, frames)[..., None], 0)
    missing = -frames % kernel
    if torch.compiler.is_exporting() or missing:  # a graph pads always, if by nothing
        hidden_BSD = nn.functional.pad(hidden_BSD, (0, 0, 0, missing))
    return hidden_BSD.unflatten(1, (-1, kernel))


def _ceil_div(lengths_B: torch.Tensor, kernel: int) -> torch.Tensor:
    return (lengths_B + kernel - 1) // kernel


def make_downsampler(section: config.Projector, frame_width: int, layers: int) -> Downsampler:
    """The down-sampler that the section names, for frames of width D from an encoder of so many layers.

    Raises:
        ValueError: there is no such down-sampler, or it cannot stand where `projector.downsample_after_layer` says.
    """
    downsampler = choose(DOWNSAMPLERS, section.downsample, "projector.downsample")(section, frame_width)
    if section.downsample_after_layer is not None and section.downsample_after_layer >= layers:
        raise ValueError(
            f"projector.downsample_after_layer: found {section.downsample_after_layer}, the encoder has layers 0 to {layers - 1}"
        )
    if section.downsample_after_layer is not None and downsampler.width != frame_width:
        raise ValueError(
            f"projector.downsample_after_layer: found {section.downsample_after_layer} with projector.downsample {section.downsample!r}, whose tokens are "
            f"{downsampler.width} wide, but the layers behind take {frame_width}; use null, or another "
            "down-sampler"
        )
    return downsampler


DOWNSAMPLERS: dict[str, type[Downsampler]] = {
    "average": Average,
    "max": Max,
    "concat": Concat,
    "conv": Convolution,
    "none": Identity,
}
