"""The interface of an encoder, of speech or of video: features, a stem, a list of frozen layers, and a finish.

Shapes: B batch, M feature channels, T feature frames, S encoder frames, D encoder width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steermoe import config
from steermoe.audio.features import Features
from steermoe.models.packing import valid_frames

Between = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(hidden_BSD, lengths_B) -> the same with fewer frames; applied between two layers."""


class Encoder(nn.Module, ABC):
    """A frozen encoder. Steering hooks into `layers`; LoRA goes into the linear layers inside them.

    Attributes:
        windows: legal values of `encoder.window`.
        self_attention: the name of a layer's self-attention, whose output (first, if a tuple) joins the residual.
        features: waveform to features, as the model was trained with.
        model: the pretrained module; all of its parameters are frozen.
        layers: its layers in order; each is called as `layer(hidden_BSD, *context)`.
        width: D.
        frames_per_second: of the output.
        max_frames: the longest input that it has positions for, in encoder frames; None: no limit.

    Raises:
        ValueError: the encoder does not support the section's window.
    """

    windows: ClassVar[tuple[str, ...]] = ("unpadded",)
    self_attention: ClassVar[str] = "self_attn"
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
        """The duration of the longest input; None: no limit."""
        return None if self.max_frames is None else self.max_frames / self.frames_per_second

    @property
    def window_seconds(self) -> float:
        """The duration to which every utterance is padded; 0 if it is not."""
        return (self.max_seconds or 0.0) if self.window == "full" else 0.0

    @abstractmethod
    def output_lengths(self, lengths_B: Tensor) -> Tensor:
        """Return the numbers of encoder frames for numbers of feature frames."""

    @abstractmethod
    def embed(self, features_BMT: Tensor, lengths_B: Tensor, padded: bool) -> Tensor:
        """Compute the input of the layers, hidden_BSD, whose valid frames are those of `output_lengths`.

        `features_BMT` have the model's dtype and are zero after each length; `padded`: there are such frames.
        """

    @abstractmethod
    def context(self, hidden_BSD: Tensor, lengths_B: Tensor) -> tuple[Any, ...]:
        """Return the other arguments of every layer: the attention mask, position embeddings."""

    def finish(self, hidden_BSD: Tensor) -> Tensor:
        """Apply what follows the layers: the final norm, if there is one."""
        return hidden_BSD

    def attention(self, layer_number: int) -> nn.Module:
        """Return the self-attention of a layer."""
        return self.layers[layer_number].get_submodule(self.self_attention)

    def stem(self, features_BMT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the input of the layers: hidden_BSD, and the number of frames to attend to in each row.

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
        if not torch.compiler.is_exporting():  # a graph cannot raise errors
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

    def _check(self, frames: int, lengths_B: Tensor, steps_B: Tensor) -> None:
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
        self, features_BMT: Tensor, lengths_B: Tensor, between: Mapping[int, Between] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode features to (hidden_BSD, lengths_B); frames after a length are undefined but finite.

        Args:
            features_BMT, lengths_B: right-padded features and their lengths.
            between: layer number -> what shortens the sequence after that layer. The padding of a full window is
                cut off before it; later layers mask as without a window.

        Raises:
            ValueError: as `stem`; or `between` names a layer that does not exist.
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


def layer_hidden(output: Any) -> Tensor:
    """Return the hidden states in the output of a layer: a tensor, or the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def _longest(hidden_BSD: Tensor, lengths_B: Tensor) -> Tensor:
    """Cut hidden states to the longest row, as a full window has more frames; an exported graph keeps them all."""
    return hidden_BSD if torch.compiler.is_exporting() else hidden_BSD[:, : int(lengths_B.max())]


def padding_mask(hidden_BSD: Tensor, lengths_B: Tensor) -> Tensor | None:
    """Return True where a frame is valid, (B, S), or None if all are: layers then run without a mask."""
    steps = hidden_BSD.shape[1]
    if not torch.compiler.is_exporting() and bool((lengths_B == steps).all()):
        return None
    return valid_frames(lengths_B, steps)
