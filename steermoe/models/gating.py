"""Gating: which hook points are steered, the gates made of a router's logits, and the losses on routing.

Shapes: B batch, S encoder frames, F valid frames of a batch, N experts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steermoe import config


@dataclass(frozen=True)
class HookPoint:
    """A place in the encoder that is steered: its layer (None: after the encoder) and number of experts."""

    layer: int | None
    experts: int

    def __str__(self) -> str:
        return "post" if self.layer is None else str(self.layer)


def hook_points(section: config.Steering, layers: int) -> list[HookPoint]:
    """Return the steered hook points, in the order in which a frame passes them.

    Raises:
        ValueError: the section names a layer that the encoder does not have, or a list of numbers of experts
            of another length than there are hook points.
    """
    chosen: list[int | None] = [*_layer_numbers(section.layers, layers)]
    if section.post_encoder:
        chosen.append(None)
    experts = section.num_experts
    if isinstance(experts, int):
        experts = [experts] * len(chosen)
    if len(experts) != len(chosen):
        raise ValueError(
            f"steering.num_experts: found {len(experts)} numbers, but {len(chosen)} hook points are steered: "
            f"{', '.join(str(HookPoint(layer, 0)) for layer in chosen)}; give one number, or one for each"
        )
    return [HookPoint(layer, count) for layer, count in zip(chosen, experts, strict=True)]


def _layer_numbers(choice: str | list[int], available: int) -> list[int]:
    if isinstance(choice, list):
        wrong = [number for number in choice if not 0 <= number < available]
        if wrong:
            raise ValueError(f"steering.layers: found {wrong}, the encoder has layers 0 to {available - 1}")
        return sorted(choice)
    if choice in ("all", "none"):
        return list(range(available)) if choice == "all" else []
    kind, _, number = choice.partition("-")
    count = int(number)
    if count >= available:
        raise ValueError(f"steering.layers: found {choice!r}, the encoder has {available} layers; use all")
    numbers = list(range(available))
    return {"every": numbers[count - 1 :: count], "first": numbers[:count], "last": numbers[-count:]}[kind]


class Gate(nn.Module):
    """Softmax over the experts of each frame.

    `temperature` divides the logits; `top_k` keeps the k largest logits; `gate_dropout`, in training only, drops
    experts of a frame at random, but never the one with the largest logit. Gates of a frame always sum to one.
    """

    def __init__(self, section: config.Steering) -> None:
        super().__init__()
        self.temperature, self.top_k = section.temperature, section.top_k
        self.dropout = section.gate_dropout

    def forward(self, logits_BSN: Tensor) -> Tensor:
        """Return gates (B, S, N), zero for experts that are left out."""
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
        return self.dense(logits_BSN)

    def dense(self, logits: Tensor) -> Tensor:
        """Return gates (..., N) of logits (..., N) with no expert left out."""
        return (logits / self.temperature if self.temperature != 1 else logits).softmax(-1)


def load_balancing_loss(gates_FN: Tensor) -> Tensor:
    """Return Switch Transformer's loss (Fedus et al. 2021, equation 4): N * sum_n share_n * mean gate_n.

    share_n is the share of frames whose largest gate is n. The loss is 1 for even use and N where one expert takes
    all frames. Gates must be dense: an expert that top-k drops everywhere would get no gradient.
    """
    experts = gates_FN.shape[-1]
    share_N = nn.functional.one_hot(gates_FN.argmax(-1), experts).float().mean(0)
    return experts * (share_N * gates_FN.mean(0)).sum()


def z_loss(logits_FN: Tensor) -> Tensor:
    """Return ST-MoE's loss (Zoph et al. 2022, equation 5): the mean squared log-sum-exp of the logits."""
    return logits_FN.logsumexp(-1).square().mean()
