"""Routers: `router(hidden_BSD, layer, vectors_ND) -> logits_BSN`, the affinity of each frame to each expert.

"Layer" counts the steered hook points from 0; gating.py turns logits into gates.
Shapes: B batch, S encoder frames, D encoder width, L steered layers, N experts of a layer, G groups, C stages.
Each router states its number of parameters for the same N in all layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax

from steermoe import config


class Router(nn.Module, ABC):
    """Base class."""

    def __init__(self, section: config.Steering, experts: Sequence[int], width: int) -> None:
        super().__init__()
        bounds = list(accumulate(experts, initial=0))
        self.rows = [slice(start, end) for start, end in pairwise(bounds)]  # of each layer, in flat tables
        self.total = bounds[-1]

    @abstractmethod
    def forward(self, hidden_BSD: Tensor, layer: int, vectors_ND: Tensor | None = None) -> Tensor:
        """Return logits (B, S, N); `vectors_ND` are the layer's expert vectors, scale included."""


class Shared(Router):
    """One Linear(D, L*N) (paper, section 2), of which layer l computes its own N outputs: L*N*(D + 1).

    No weight serves two layers: a Linear(D, N) for each layer would be the same function.
    """

    def __init__(self, section: config.Steering, experts: Sequence[int], width: int) -> None:
        super().__init__(section, experts, width)
        self.linear = nn.Linear(width, self.total)

    def forward(self, hidden_BSD: Tensor, layer: int, vectors_ND: Tensor | None = None) -> Tensor:
        """Return the layer's slice of the outputs."""
        rows = self.rows[layer]
        return linear(hidden_BSD, self.linear.weight[rows], self.linear.bias[rows])


class Mixed(Router):
    """One Linear(D, N) for all layers, then a matrix (N, N) for each: N*(D + 1) + L*N*N.

    About L times smaller than `shared`. The matrices start as identities. Where layers have different numbers
    of experts, the Linear has as many outputs as the largest.
    """

    def __init__(self, section: config.Steering, experts: Sequence[int], width: int) -> None:
        super().__init__(section, experts, width)
        self.linear = nn.Linear(width, max(experts))
        self.mixing = nn.ParameterList([nn.Parameter(torch.eye(count, max(experts))) for count in experts])

    def forward(self, hidden_BSD: Tensor, layer: int, vectors_ND: Tensor | None = None) -> Tensor:
        """Return the common logits, mixed by the layer's matrix."""
        return linear(self.linear(hidden_BSD), self.mixing[layer])


class Hierarchical(Router):
    """Gates between G groups, times gates within each group: L*(G + N)*(D + 1).

    Group vectors would add nothing: gates within a group sum to one, so its experts' vectors can hold them.
    """

    def __init__(self, section: config.Steering, experts: Sequence[int], width: int) -> None:
        super().__init__(section, experts, width)
        assert section.groups is not None
        self.groups = section.groups
        self.between = nn.Linear(width, len(experts) * self.groups)
        self.within = nn.Linear(width, self.total)

    def forward(self, hidden_BSD: Tensor, layer: int, vectors_ND: Tensor | None = None) -> Tensor:
        """Return logarithms of the products, whose softmax is the products."""
        groups, rows = slice(layer * self.groups, (layer + 1) * self.groups), self.rows[layer]
        between_BSG = linear(hidden_BSD, self.between.weight[groups], self.between.bias[groups])
        within_BSN = linear(hidden_BSD, self.within.weight[rows], self.within.bias[rows])
        within_BSGK = log_softmax(within_BSN.unflatten(-1, (self.groups, -1)), -1)
        return (log_softmax(between_BSG, -1)[..., None] + within_BSGK).flatten(-2)


class Progressive(Router):
    """C stages of N/C experts; a stage reads the frame and what earlier stages add.

    The gates of a stage sum to 1/C. L*N*(D + 1) parameters for the frame and L*N*(C - 1)/C*D for the earlier
    stages' sum, which is not formed: its product with a stage's weights is the earlier gates times a small matrix.
    """

    def __init__(self, section: config.Steering, experts: Sequence[int], width: int) -> None:
        super().__init__(section, experts, width)
        assert section.stages is not None
        self.stages = section.stages
        self.linear = nn.Linear(width, self.total)
        later = [count - count // self.stages for count in experts]
        self.added = nn.ParameterList([nn.Parameter(torch.empty(count, width)) for count in later])
        for weights in self.added:
            nn.init.uniform_(weights, -(width**-0.5), width**-0.5)  # as nn.Linear does

    def forward(self, hidden_BSD: Tensor, layer: int, vectors_ND: Tensor | None = None) -> Tensor:
        """Return logarithms of the stages' gates, whose softmax over all N is these divided by C."""
        assert vectors_ND is not None
        rows = self.rows[layer]
        frame_BSN = linear(hidden_BSD, self.linear.weight[rows], self.linear.bias[rows])
        size = len(vectors_ND) // self.stages
        seen_NN = vectors_ND @ self.added[layer].T / self.stages  # (of any stage, of a later stage)
        logits = [log_softmax(frame_BSN[..., :size], -1)]
        for stage in range(1, self.stages):
            before, own = stage * size, slice((stage - 1) * size, stage * size)
            added_BSK = torch.cat(logits, -1).exp() @ seen_NN[:before, own]
            logits.append(log_softmax(frame_BSN[..., before : before + size] + added_BSK, -1))
        return torch.cat(logits, -1)


class Static(Router):
    """No routing: the same learned mixture for every frame, L*N. The ablation of "dynamic"."""

    def __init__(self, section: config.Steering, experts: Sequence[int], width: int) -> None:
        super().__init__(section, experts, width)
        self.logits = nn.Parameter(torch.zeros(self.total))

    def forward(self, hidden_BSD: Tensor, layer: int, vectors_ND: Tensor | None = None) -> Tensor:
        """Return the layer's logits for every frame."""
        return self.logits[self.rows[layer]].expand(*hidden_BSD.shape[:-1], -1)


def make_router(section: config.Steering, experts: Sequence[int], width: int) -> Router:
    """Build the router that the section names."""
    return ROUTERS[section.router](section, experts, width)


ROUTERS: dict[str, type[Router]] = {
    "shared": Shared,
    "mixed": Mixed,
    "hierarchical": Hierarchical,
    "progressive": Progressive,
    "static": Static,
}
