"""Routers: which experts steer a frame, `router(hidden_BSD, layer) -> gates_BSN`.

Shapes: B batch, S encoder frames, D encoder width, L steered layers, N experts.
"""

import torch
from torch import nn

from steermoe import config
from steermoe.models.registry import choose


class SharedRouter(nn.Module):
    """One Linear(D, L*N) for all layers (paper, section 2), of which layer l computes its own N outputs only.

    Args:
        section: the configuration of steering.
        layers: L.
        width: D.
    """

    def __init__(self, section: config.Steering, layers: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, layers * section.num_experts)
        self.num_experts = section.num_experts

    def forward(self, hidden_BSD: torch.Tensor, layer: int) -> torch.Tensor:
        """Softmax gates; `layer` counts the steered layers from 0."""
        rows = slice(layer * self.num_experts, (layer + 1) * self.num_experts)
        return nn.functional.linear(hidden_BSD, self.linear.weight[rows], self.linear.bias[rows]).softmax(-1)


def make_router(section: config.Steering, layers: int, width: int) -> nn.Module:
    """The router that the section names.

    Raises:
        ValueError: there is no such router.
    """
    return choose(ROUTERS, section.router, "steering.router")(section, layers, width)


ROUTERS: dict[str, type[nn.Module]] = {"shared": SharedRouter}
