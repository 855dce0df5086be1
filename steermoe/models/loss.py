"""The training loss over the target tokens of a batch.

Where the logits of all of them would be large, they are computed some tokens at a time, and with them the gradient of
the hidden states: the head is frozen, so that nothing else of them is needed in the backward pass. (So do the fused
losses of Liger-Kernel, Hsu et al. 2024, and Cut Cross-Entropy, Wijmans et al. 2025, in kernels of their own.)

Shapes: N target tokens of all rows, H width of the LLM, V its vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers.utils.generic import ModelOutput

AT_A_TIME = 2**26  # logits; with fewer, the products with the head are slower than all at once
Score = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states (N, H) to logits (N, V)."""


@dataclass
class Loss(ModelOutput):
    """What a training step needs.

    Attributes:
        loss: mean cross-entropy over all target tokens of the batch, end tokens included.
        num_tokens: how many these are.
        num_correct: how many of them are the likeliest token where they stand.
    """

    loss: torch.Tensor | None = None
    num_tokens: torch.Tensor | None = None
    num_correct: torch.Tensor | None = None


def target_loss(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> Loss:
    """The loss of targets by the logits that predict them, in float32."""
    loss = cross_entropy(logits_NV.float(), targets_N)
    correct = (logits_NV.detach().argmax(-1) == targets_N).sum()
    return Loss(loss=loss, num_tokens=torch.tensor(len(targets_N), device=loss.device), num_correct=correct)


def hidden_loss(hidden_NH: torch.Tensor, targets_N: torch.Tensor, score: Score, vocabulary: int) -> Loss:
    """`target_loss` of the logits of hidden states, which are never all in memory where they would be large.

    Args:
        hidden_NH, targets_N: what predicts the targets, and the targets.
        score: the frozen head, row by row.
        vocabulary: V.
    """
    device = hidden_NH.device.type
    size = max(1, AT_A_TIME // vocabulary)
    # A scaled loss has its scale in the backward pass only, and without it gradients in float16 would vanish.
    scaled = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16
    if len(hidden_NH) <= size or scaled:
        return target_loss(score(hidden_NH), targets_N)
    summed, correct = _Chunked.apply(hidden_NH, targets_N, score, size)
    count = len(targets_N)
    return Loss(
        loss=summed / count, num_tokens=torch.tensor(count, device=summed.device), num_correct=correct
    )


class _Chunked(torch.autograd.Function):
    """Summed cross-entropy, and how many targets are the likeliest token."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: torch.Tensor, targets_N: torch.Tensor, score: Score, size: int) -> Any:
        learns = ctx.needs_input_grad[0]
        gradient_NH = torch.empty_like(hidden_NH) if learns else None
        summed = torch.zeros((), device=hidden_NH.device)
        correct = torch.zeros((), dtype=torch.long, device=hidden_NH.device)
        for start in range(0, len(hidden_NH), size):
            rows = slice(start, start + size)
            with torch.set_grad_enabled(learns):
                hidden = hidden_NH[rows].detach().requires_grad_(learns)
                logits = score(hidden)
                loss = cross_entropy(logits.float(), targets_N[rows], reduction="sum")
            if gradient_NH is not None:
                (gradient_NH[rows],) = torch.autograd.grad(loss, hidden)
            summed += loss.detach()
            correct += (logits.detach().argmax(-1) == targets_N[rows]).sum()
        ctx.save_for_backward(gradient_NH)
        ctx.mark_non_differentiable(correct)
        return summed, correct

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        (gradient_NH,) = ctx.saved_tensors
        return (gradient_NH * outer[0].to(gradient_NH.dtype)), None, None, None
