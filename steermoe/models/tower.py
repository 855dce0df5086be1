"""A branch: frozen encoder -> steering -> down-sampling -> projection, from features to tokens that the LLM reads.

Shapes: B batch, M feature channels, T feature frames, S encoder frames, D encoder width, A tokens of the branch,
P prompt tokens, H width of the LLM.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import nn

from steermoe import config
from steermoe.models.downsample import make_downsampler
from steermoe.models.encoders.encoder import Encoder
from steermoe.models.projection import Projection, make_projection
from steermoe.models.seeds import seeded
from steermoe.models.steering import Steering

Heard = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(features_BMT, lengths_B) -> (hidden_BSD, lengths_B)."""


class Branch(nn.Module):
    """What one kind of input goes through.

    Attributes:
        encoder: the frozen encoder; with LoRA, the trained adapters lie inside it.
        steering: the trained steering, or None where there is none.
        downsample, projection: the projector; the projection is trained.
        features: from what is recorded to features, as the encoder wants them.
        heard: what stands in for the encoder's forward pass while nothing inside it is trained; or None.

    Args:
        encoder: as loaded.
        steering, projector: their sections; steering None: the encoder stays as it is.
        embeddings: of the LLM's tokens, (V, H), for projections that start from them.
        seed: of the initialisation.
        part: begins the names of the generators, so that branches of a model start differently.

    Raises:
        ValueError: a setting does not fit the encoder.
    """

    projection: Projection

    def __init__(
        self,
        encoder: Encoder,
        steering: config.Steering | None,
        projector: config.Projector,
        embeddings: torch.Tensor,
        seed: int,
        part: str = "",
    ) -> None:
        super().__init__()
        self.encoder, self.features, self.projector = encoder, encoder.features, projector
        self.downsample = make_downsampler(projector, encoder.width, len(encoder.layers))
        # A generator state for each part: every variant with the same seed starts from the same projection.
        with seeded(seed, f"{part}projection"):
            self.projection = make_projection(projector, self.downsample.width, embeddings)
        self.steering: Steering | None = None
        if steering is not None:
            layers = encoder.layers
            if steering.hook_point == "attention":
                layers = [encoder.attention(number) for number in range(len(layers))]
            with seeded(seed, f"{part}steering"):
                self.steering = Steering(steering, layers, encoder.width)
        self.heard: Heard | None = None
        self._lengths: dict[int, torch.Tensor] = {}  # valid lengths, by the width of hidden states

    def trained_parts(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters: projection (with what down-sampling trains); vectors (with the scales), router."""
        parts = {"projection": [*self.downsample.parameters(), *self.projection.parameters()]}
        if self.steering is not None:
            scales = [p for p in (self.steering.scales,) if isinstance(p, nn.Parameter)]
            parts["vectors"] = [self.steering.vectors, *scales]
            parts["router"] = list(self.steering.router.parameters())
        return parts

    def train(self, mode: bool = True) -> Self:
        """Switch what is trained; the frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def encode(
        self,
        features_BMT: torch.Tensor,
        lengths_B: torch.Tensor,
        prompt_BPH: torch.Tensor | None = None,
        prompt_lengths_B: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features to tokens in the LLM's embedding space: (tokens_BAH, lengths_B).

        Args:
            features_BMT, lengths_B: what is heard.
            prompt_BPH, prompt_lengths_B: the embedded prompt, which only aligners need.

        Raises:
            ValueError: the features are longer than the encoder takes, or an aligner gets no prompt.
        """
        pooled_BAD, lengths_B = self.hear(features_BMT, lengths_B)
        if prompt_BPH is None or prompt_lengths_B is None:
            if self.projection.reads_prompt:
                raise ValueError(
                    f"projector.projection {self.projector.projection} reads the prompt: none given"
                )
            prompt_BPH, prompt_lengths_B = pooled_BAD.new_zeros(lengths_B.shape[0], 0, 1), lengths_B * 0
        return self.projection(pooled_BAD, prompt_BPH, prompt_lengths_B), lengths_B

    def hear(self, features_BMT: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features to steered and down-sampled frames, and their lengths; `lengths_of` knows those before."""
        self._lengths.clear()
        if self.steering is not None:
            self.steering.start()
        after = self.projector.downsample_after_layer
        between = None if after is None else {after: self._shorten}
        if self.heard is not None:
            hidden_BSD, lengths_B = self.heard(features_BMT, lengths_B)
        else:
            hidden_BSD, lengths_B = self.encoder(features_BMT, lengths_B, between)
        self._remember(hidden_BSD, lengths_B)
        if self.steering is not None:
            hidden_BSD = self.steering.post(hidden_BSD)
        return (hidden_BSD, lengths_B) if between else self.downsample(hidden_BSD, lengths_B)

    def _shorten(
        self, hidden_BSD: torch.Tensor, lengths_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._remember(hidden_BSD, lengths_B)
        return self.downsample(hidden_BSD, lengths_B)

    def _remember(self, hidden_BSD: torch.Tensor, lengths_B: torch.Tensor) -> None:
        if not torch.compiler.is_exporting():  # a width that is a symbol can be no key
            self._lengths[hidden_BSD.shape[1]] = lengths_B

    def lengths_of(self, width: int) -> torch.Tensor:
        """Valid lengths (B,) of the hidden states of a width, somewhere in the encoder, that were heard last.

        An unknown width is that of a full window: its rows are as long as when they left it.
        """
        return self._lengths.get(width, next(iter(self._lengths.values())))

    def routing_losses(self) -> torch.Tensor | float:
        """The weighted losses on the routing of the batch that was heard last; 0 without steering."""
        return 0.0 if self.steering is None else self.steering.losses(self.lengths_of)
