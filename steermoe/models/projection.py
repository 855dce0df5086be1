"""Projections from audio tokens into the LLM's embedding space.

Shapes: B batch, A audio tokens, D' width after down-sampling, H width of the LLM.
"""

import torch
from torch import nn

from steermoe import config
from steermoe.models.registry import choose


class LinearProjection(nn.Linear):
    """One Linear(D', H).

    It starts so that inputs of unit rms come out with the rms of the LLM's token embeddings: weights of
    standard deviation rms / sqrt(D'), bias zero. Without that, audio is many times louder than text at first.

    Args:
        section: the configuration of the bridge.
        width: D'.
        embeddings: the LLM's token embeddings, (tokens, H).
    """

    def __init__(self, section: config.Bridge, width: int, embeddings: torch.Tensor) -> None:
        super().__init__(width, embeddings.shape[1])
        rms = embeddings.detach().float().square().mean().sqrt().item()
        nn.init.normal_(self.weight, std=rms / width**0.5)
        nn.init.zeros_(self.bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Audio tokens (B, A, D') of any floating type to (B, A, H)."""
        return super().forward(input.to(self.weight.dtype))


def make_projection(section: config.Bridge, width: int, embeddings: torch.Tensor) -> nn.Module:
    """The projection that the section names.

    Raises:
        ValueError: there is no such projection.
    """
    return choose(PROJECTIONS, section.projection, "bridge.projection")(section, width, embeddings)


PROJECTIONS: dict[str, type[nn.Module]] = {"linear": LinearProjection}
