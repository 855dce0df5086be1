"""What every encoder, of speech or of video, offers: features, a stem, a list of frozen layers, and a finish.

Shapes: B batch, M feature channels, T feature frames, S encoder frames, D encoder width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from steermoe import config
from steermoe.audio.features import Features

Between = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(hidden_BSD, lengths_B) -> the same of fewer frames; applied between two layers."""


class Encoder(nn.Module, ABC):
    """A frozen encoder. Steering hooks into `layers`; LoRA goes into the linear layers inside them.

    Attributes:
        windows: legal values of `encoder.window`.
        features: waveform to features, as the model was trained with.
        model: the wrapped pretrained module; all of its parameters are frozen.
        layers: its layers in order; each is called as `layer(hidden_BSD, *context)`.
        width: D.
        frames_per_second: of the output.
        max_frames: the longest input that it has positions for, in encoder frames; None: no limit.

    Args:
        section: its configuration.

    Raises:
        ValueError: the section's window means nothing to this encoder.
    """

    windows: ClassVar[tuple[str, ...]] = ("unpadded",)
    features: Features
    model: nn.Module
    layers: nn.ModuleList
    width: int
    frames_per_second: float
    max_frames: int | None = None

    def __init__(self, section: config.Encoder | config.VideoEncoder) -> None:
        super().__init__()
        if section.window not in self.windows:
            raise ValueError(
                f"encoder.window: found {section.window!r}; legal for this encoder: {', '.join(self.windows)}"
            )
        self.window = section.window

    @property
    def max_seconds(self) -> float | None:
        """The longest input; None: no limit."""
        return None if self.max_frames is None else self.max_frames / self.frames_per_second

    @property
    def window_seconds(self) -> float:
        """Seconds that every utterance is padded to, and costs at least; 0 where it is as long as its audio."""
        return (self.max_seconds or 0.0) if self.window == "full" else 0.0

    @abstractmethod
    def output_lengths(self, lengths_B: torch.Tensor) -> torch.Tensor:
        """Encoder frames of utterances of so many feature frames."""

    @abstractmethod
    def embed(self, features_BMT: torch.Tensor, lengths_B: torch.Tensor, padded: bool) -> torch.Tensor:
        """What comes before the layers: hidden_BSD, its first frames those of `output_lengths`.

        `features_BMT` are of the model's type, and zero behind each length; `padded`: whether there are such.
        """

    @abstractmethod
    def context(self, hidden_BSD: torch.Tensor, lengths_B: torch.Tensor) -> tuple[Any, ...]:
        """What every layer takes beside the hidden states: the attention mask, position embeddings."""

    @abstractmethod
    def finish(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        """What comes after the layers: the final norm."""

    @abstractmethod
    def attention(self, layer_number: int) -> nn.Module:
        """The self-attention of a layer: what it returns (first, if a tuple) is added to the residual."""

    def stem(self, features_BMT: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What comes before the layers: (hidden_BSD, lengths_B in encoder frames to be attended to).

        Raises:
            ValueError: the features are longer than the encoder can take, too short for a single frame, or
                have another number of channels.
        """
        _, channels, frames = features_BMT.shape
        if channels != self.features.channels:
            raise ValueError(
                f"features: found {channels} channels, the encoder takes {self.features.channels}"
            )
        steps_B = self.output_lengths(lengths_B)
        if not torch.compiler.is_exporting():  # a graph cannot refuse anything
            self._check(frames, lengths_B, steps_B)
        features_BMT = features_BMT.to(next(self.model.parameters()).dtype)
        padding_B1T = ~valid_frames(lengths_B, frames)[:, None]
        padded = torch.compiler.is_exporting() or bool(padding_B1T.any())
        if padded:
            features_BMT = features_BMT.masked_fill(padding_B1T, 0)
        hidden_BSD = self.embed(features_BMT, lengths_B, padded)
        if self.window == "full":
            return hidden_BSD, torch.full_like(steps_B, hidden_BSD.shape[1])
        return hidden_BSD, steps_B

    def _check(self, frames: int, lengths_B: torch.Tensor, steps_B: torch.Tensor) -> None:
        longest = int(self.output_lengths(torch.tensor(frames)))
        if self.max_frames is not None and longest > self.max_frames:
            raise ValueError(
                f"features: found {longest / self.frames_per_second:.2f} s of audio, the encoder takes at "
                f"most {self.max_seconds:.2f} s; `steermoe transcribe` and its Recognizer split it at silences"
            )
        if int(steps_B.min()) < 1:
            raise ValueError(
                f"features: found an utterance of {int(lengths_B.min())} feature frames, too short for a "
                "single frame of the encoder; leave it out, or pad it with silence"
            )

    def forward(
        self,
        features_BMT: torch.Tensor,
        lengths_B: torch.Tensor,
        between: Mapping[int, Between] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features to (hidden_BSD, lengths_B); frames beyond a length are undefined but finite.

        Args:
            features_BMT: right-padded features.
            lengths_B: how many of their frames are valid.
            between: layer number -> what shortens the sequence after that layer. What a full window holds
                beyond the utterances is cut off before it; the later layers mask as without a window.

        Raises:
            ValueError: as `stem`; or `between` names a layer that there is not.
        """
        between = between or {}
        if wrong := [number for number in between if number not in range(len(self.layers))]:
            raise ValueError(f"between: found layers {wrong}, the encoder has 0 to {len(self.layers) - 1}")
        hidden_BSD, attended_B = self.stem(features_BMT, lengths_B)
        lengths_B = self.output_lengths(lengths_B)
        context = self.context(hidden_BSD, attended_B)
        for number, layer in enumerate(self.layers):
            hidden_BSD = layer_hidden(layer(hidden_BSD, *context))
            if number in between:
                hidden_BSD, lengths_B = between[number](_longest(hidden_BSD, lengths_B), lengths_B)
                context = self.context(hidden_BSD, lengths_B)
        return self.finish(_longest(hidden_BSD, lengths_B)), lengths_B


def layer_hidden(output: Any) -> torch.Tensor:
    """The hidden states in what a layer returns: a tensor, or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output


def _longest(hidden_BSD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """As many frames as the longest row has: a full window has more. A graph keeps them all."""
    return hidden_BSD if torch.compiler.is_exporting() else hidden_BSD[:, : int(lengths_B.max())]


def valid_frames(lengths_B: torch.Tensor, frames: int) -> torch.Tensor:
    """True where a frame is within its row's length, (B, frames)."""
    return torch.arange(frames, device=lengths_B.device) < lengths_B[:, None]


def padding_mask(hidden_BSD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor | None:
    """True where a frame is valid, (B, S); None if all are (not in a graph): layers then run without a mask."""
    steps = hidden_BSD.shape[1]
    if not torch.compiler.is_exporting() and bool((lengths_B == steps).all()):
        return None
    return valid_frames(lengths_B, steps)
