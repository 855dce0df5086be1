"""What every speech encoder offers: a stem, a list of frozen layers, and a finish.

Shapes: B batch, M mels, T feature frames, S encoder frames, D encoder width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

Between = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Encoder(nn.Module, ABC):
    """A frozen encoder. Steering hooks into `layers`; LoRA goes into the linear layers below `model`.

    Attributes:
        model: the wrapped pretrained module; all of its parameters are frozen.
        layers: its layers in order; each is called as `layer(hidden_BSD, *context)`.
        width: D.
        num_mels: M.
        frames_per_second: of the output.
    """

    model: nn.Module
    layers: nn.ModuleList
    width: int
    num_mels: int
    frames_per_second: float

    @abstractmethod
    def stem(self, features_BMT: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What comes before the layers: (hidden_BSD, lengths_B in encoder frames).

        Raises:
            ValueError: the features are longer than the encoder can take, or have another number of mels.
        """

    @abstractmethod
    def context(self, hidden_BSD: torch.Tensor, lengths_B: torch.Tensor) -> tuple[Any, ...]:
        """What every layer takes beside the hidden states: the attention mask, position embeddings."""

    @abstractmethod
    def finish(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        """What comes after the layers: the final norm."""

    @abstractmethod
    def attention(self, number: int) -> nn.Module:
        """The self-attention of a layer, whose output is added to the residual."""

    def forward(
        self,
        features_BMT: torch.Tensor,
        lengths_B: torch.Tensor,
        between: Mapping[int, Between] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-mel features to (hidden_BSD, lengths_B); frames beyond a length are undefined but finite."""
        hidden_BSD, lengths_B = self.stem(features_BMT, lengths_B)
        context = self.context(hidden_BSD, lengths_B)
        for number, layer in enumerate(self.layers):
            hidden_BSD = layer_hidden(layer(hidden_BSD, *context))
            if between and number in between:
                hidden_BSD, lengths_B = between[number](hidden_BSD, lengths_B)
                context = self.context(hidden_BSD, lengths_B)
        return self.finish(hidden_BSD), lengths_B


def layer_hidden(output: Any) -> torch.Tensor:
    """The hidden states in what a layer returns: a tensor, or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output


def valid_frames(lengths_B: torch.Tensor, frames: int) -> torch.Tensor:
    """True where a frame is within its row's length, (B, frames)."""
    return torch.arange(frames, device=lengths_B.device) < lengths_B[:, None]
