"""Gates: from a router's logits to the weights of the experts, and the losses that keep routing healthy.

Shapes: B batch, S encoder frames, F valid frames of a batch, N experts, L steered layers.
"""

import torch
from torch import nn

from steermoe import config


class Gate(nn.Module):
    """Softmax over the experts, with what the section asks for; gates of a frame always sum to one.

    temperature divides the logits; top_k keeps the k largest logits of a frame (of a single one the gate would
    always be 1, and teach the router nothing); dropout, in training only, leaves experts out of a frame at random,
    but never the one with the largest logit.

    Args:
        section: the configuration of steering.
    """

    def __init__(self, section: config.Steering) -> None:
        super().__init__()
        self.temperature, self.top_k = section.temperature, section.top_k
        self.dropout = section.gate_dropout

    def forward(self, logits_BSN: torch.Tensor) -> torch.Tensor:
        """Gates (B, S, N), zero for experts that are left out."""
        left_out = None
        if self.top_k is not None:
            kept = logits_BSN.topk(self.top_k, -1).indices
            left_out = torch.ones_like(logits_BSN, dtype=torch.bool).scatter(-1, kept, False)
        if self.training and self.dropout:
            dropped = torch.rand_like(logits_BSN) < self.dropout
            left_out = dropped if left_out is None else dropped | left_out
            left_out = left_out.scatter(-1, logits_BSN.argmax(-1, keepdim=True), False)
        if left_out is not None:
            logits_BSN = logits_BSN.masked_fill(left_out, -torch.inf)
        return self.whole(logits_BSN)

    def whole(self, logits: torch.Tensor) -> torch.Tensor:
        """Gates (..., N) of logits (..., N) as if no expert were left out."""
        return (logits / self.temperature if self.temperature != 1 else logits).softmax(-1)


def load_balancing_loss(gates_FN: torch.Tensor) -> torch.Tensor:
    """Switch Transformer's loss (Fedus et al. 2021, equation 4): N * sum_n share_n * mean gate_n.

    share_n is the share of frames whose largest gate is n. 1 where use is even, N where one expert does all:
    always finite. The gates are to be whole: of one that is left out everywhere no gradient could tell.
    """
    experts = gates_FN.shape[-1]
    share_N = nn.functional.one_hot(gates_FN.argmax(-1), experts).float().mean(0)
    return experts * (share_N * gates_FN.mean(0)).sum()


def z_loss(logits_FN: torch.Tensor) -> torch.Tensor:
    """ST-MoE's loss (Zoph et al. 2022, equation 5): mean of the squared log-sum-exp of the logits."""
    return logits_FN.logsumexp(-1).square().mean()
