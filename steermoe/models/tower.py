"""A tower: frozen encoder -> steering -> down-sampling -> projection, from features to tokens that the LLM reads.

Shapes: B batch, M feature channels, T feature frames, S encoder frames, D encoder width, A tokens of the tower,
P prompt tokens, H width of the LLM.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from steermoe import config
from steermoe.models.downsample import make_downsampler
from steermoe.models.encoders.encoder import Encoder
from steermoe.models.pretrained import LOCK
from steermoe.models.projectors import Projection, make_projection
from steermoe.models.steering import Steering

Frames = tuple[Tensor, Tensor]
"""(hidden_BSD, lengths_B)."""


@contextmanager
def seeded(seed: int, part: str) -> Iterator[None]:
    """Draw a part's initial values from a generator of its own: they do not depend on which other parts there are."""
    with LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + zlib.crc32(part.encode()))
        yield


class Tower(nn.Module):
    """The path of one modality, audio or video.

    Attributes:
        encoder: the frozen encoder; LoRA, if any, is inside it.
        steering: the trained steering, or None.
        downsample, projection: the projector; the projection is trained.
        features: from a recording to the encoder's features.
        encode_override: replaces the encoder's forward pass while nothing inside it is trained, as a cache does; or
            None.

    Args:
        encoder: as loaded.
        steering, projector: their sections; steering None leaves the encoder unsteered.
        embeddings: of the LLM's tokens, (V, H), which set the projection's initial scale.
        seed: of the initialisation.
        part: prefix of the generators' names, so that the towers of a model start differently.

    Raises:
        ValueError: a setting does not suit the encoder.
    """

    projection: Projection

    def __init__(
        self,
        encoder: Encoder,
        steering: config.Steering | None,
        projector: config.Projector,
        embeddings: Tensor,
        seed: int,
        part: str = "",
    ) -> None:
        super().__init__()
        self.encoder, self.features, self.projector = encoder, encoder.features, projector
        self.downsample = make_downsampler(projector, encoder.width, len(encoder.layers))
        with seeded(seed, f"{part}projection"):
            self.projection = make_projection(projector, self.downsample.width, embeddings)
        self.steering: Steering | None = None
        if steering is not None:
            layers = encoder.layers
            if steering.hook_point == "attention":
                layers = [encoder.attention(number) for number in range(len(layers))]
            with seeded(seed, f"{part}steering"):
                self.steering = Steering(steering, layers, encoder.width)
        self.encode_override: Callable[[Tensor, Tensor], Frames] | None = None
        self._lengths: dict[int, Tensor] = {}  # valid lengths, by the width of hidden states

    def trained_parts(self) -> dict[str, list[nn.Parameter]]:
        """Return the trained parameters: projection and down-sampling, vectors and scales, router."""
        parts = {"projection": [*self.downsample.parameters(), *self.projection.parameters()]}
        if self.steering is not None:
            scales = [p for p in (self.steering.scales,) if isinstance(p, nn.Parameter)]
            parts["vectors"] = [self.steering.vectors, *scales]
            parts["router"] = list(self.steering.router.parameters())
        return parts

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of the trained parts; the frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def encode(
        self,
        features_BMT: Tensor,
        lengths_B: Tensor,
        prompt_BPH: Tensor | None = None,
        prompt_lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Turn features into tokens in the LLM's embedding space: (tokens_BAH, lengths_B).

        Args:
            features_BMT, lengths_B: right-padded features and their lengths.
            prompt_BPH, prompt_lengths_B: the embedded prompt, which only aligners need.

        Raises:
            ValueError: the features are longer than the encoder takes, or an aligner gets no prompt.
        """
        pooled_BAE, lengths_B = self.encode_frames(features_BMT, lengths_B)
        if prompt_BPH is None or prompt_lengths_B is None:
            if self.projection.reads_prompt:
                raise ValueError(
                    f"projector.projection: {self.projector.projection} reads the prompt, but none is given"
                )
            prompt_BPH, prompt_lengths_B = pooled_BAE.new_zeros(lengths_B.shape[0], 0, 1), lengths_B * 0
        return self.projection(pooled_BAE, prompt_BPH, prompt_lengths_B), lengths_B

    def encode_frames(self, features_BMT: Tensor, lengths_B: Tensor) -> Frames:
        """Turn features into steered and down-sampled frames, and their lengths."""
        self._lengths.clear()
        if self.steering is not None:
            self.steering.reset_losses()
        after = self.projector.downsample_after_layer
        between = None if after is None else {after: self._shorten}
        if self.encode_override is not None:
            hidden_BSD, lengths_B = self.encode_override(features_BMT, lengths_B)
        else:
            hidden_BSD, lengths_B = self.encoder(features_BMT, lengths_B, between)
        self._remember(hidden_BSD, lengths_B)
        if self.steering is not None:
            hidden_BSD = self.steering.post(hidden_BSD)
        return (hidden_BSD, lengths_B) if between else self.downsample(hidden_BSD, lengths_B)

    def _shorten(self, hidden_BSD: Tensor, lengths_B: Tensor) -> Frames:
        self._remember(hidden_BSD, lengths_B)
        return self.downsample(hidden_BSD, lengths_B)

    def _remember(self, hidden_BSD: Tensor, lengths_B: Tensor) -> None:
        if not torch.compiler.is_exporting():  # a symbolic width cannot be a key
            self._lengths[hidden_BSD.shape[1]] = lengths_B

    def frame_lengths(self, width: int) -> Tensor:
        """Return the valid lengths (B,) of hidden states of this width in the last batch that was encoded.

        An unknown width is that of a full window, whose rows have the lengths with which they leave the encoder.
        """
        return self._lengths.get(width, next(iter(self._lengths.values())))

    def routing_losses(self) -> Tensor | float:
        """Return the weighted losses on the routing of the last batch; 0 without steering."""
        return 0.0 if self.steering is None else self.steering.losses(self.frame_lengths)
