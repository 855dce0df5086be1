"""The training loss over the target tokens of a batch, and what a teacher adds to it.

Where the logits of all of them would be large, they are computed some tokens at a time, and with them the gradient of
the hidden states: the head is frozen, so that nothing else of them is needed in the backward pass. (So do the fused
losses of Liger-Kernel, Hsu et al. 2024, and Cut Cross-Entropy, Wijmans et al. 2025, in kernels of their own.)

What a student learns from a teacher is a function of the same hidden states and logits, and is computed with them.

Shapes: N target tokens of all rows, H width of the LLM, G of the teacher's, V a vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cosine_similarity, kl_div
from transformers.utils.generic import ModelOutput

from steermoe import config

AT_A_TIME = 2**26  # logits; with fewer, the products with the head are slower than all at once
Score = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states (N, H) to logits (N, V)."""
Beside = Callable[[torch.Tensor, torch.Tensor, slice], torch.Tensor]
"""Hidden states and logits of some rows, and which of N they are, to a loss summed over these rows (`Lesson`)."""


@dataclass
class Loss(ModelOutput):
    """What a training step needs.

    Attributes:
        loss: mean cross-entropy over all target tokens of the batch, end tokens included; and what is added to it.
        num_tokens: how many these are.
        num_correct: how many of them are the likeliest token where they stand.
        distillation: what a teacher added to the loss; None without one.
    """

    loss: torch.Tensor | None = None
    num_tokens: torch.Tensor | None = None
    num_correct: torch.Tensor | None = None
    distillation: torch.Tensor | None = None


def target_loss(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> Loss:
    """The loss of targets by the logits that predict them, in float32."""
    summed, correct = _CrossEntropy.apply(logits_NV, targets_N)
    count = len(targets_N)
    return Loss(
        loss=summed / count, num_tokens=torch.tensor(count, device=summed.device), num_correct=correct
    )


class _CrossEntropy(torch.autograd.Function):
    """Summed cross-entropy in float32, and how many targets are the likeliest token.

    The gradient of a logit is its probability, less one at the target. So the probabilities are all that is kept;
    torch's own function goes over all logits thrice more, for the gradient of the logarithms and its zeros.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, targets_N: torch.Tensor) -> Any:
        scores_NV = logits_NV.float()
        largest_N, likeliest_N = scores_NV.max(-1)
        shares_NV = scores_NV.softmax(-1)
        # By the largest one, whose share is not lost to rounding.
        total_N = largest_N - _at(shares_NV, likeliest_N).log()
        summed = (total_N - _at(scores_NV, targets_N)).sum()
        correct = (likeliest_N == targets_N).sum()
        if ctx.needs_input_grad[0]:
            ctx.dtype = logits_NV.dtype
            ctx.save_for_backward(
                shares_NV.scatter_add_(-1, targets_N[:, None], -shares_NV.new_ones(len(targets_N), 1))
            )
        ctx.mark_non_differentiable(correct)
        return summed, correct

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        (gradient_NV,) = ctx.saved_tensors
        return torch.mul(gradient_NV, outer[0], out=torch.empty_like(gradient_NV, dtype=ctx.dtype)), None


def _at(values_NV: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
    return values_NV.gather(-1, ids_N[:, None])[:, 0]


def hidden_loss(
    hidden_NH: torch.Tensor,
    targets_N: torch.Tensor,
    score: Score,
    vocabulary: int,
    beside: Beside | None = None,
) -> Loss:
    """`target_loss` of the logits of hidden states, which are never all in memory where they would be large.

    Args:
        hidden_NH, targets_N: what predicts the targets, and the targets.
        score: the frozen head, row by row.
        vocabulary: V.
        beside: what is learned beside the targets; its mean over the N tokens is added to the loss.
    """
    device = hidden_NH.device.type
    large = vocabulary if beside is None else 2 * vocabulary  # a teacher has logits, too
    size = max(1, AT_A_TIME // large)
    # A scaled loss has its scale in the backward pass only, and without it gradients in float16 would vanish.
    scaled = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16
    if len(hidden_NH) <= size or scaled:
        scores_NV = score(hidden_NH)
        found = target_loss(scores_NV, targets_N)
        if beside is not None and found.loss is not None:
            added = beside(hidden_NH, scores_NV, slice(None)) / len(targets_N)
            found.loss, found.distillation = found.loss + added, added.detach()
        return found
    summed, correct, added = _Chunked.apply(hidden_NH, targets_N, score, size, beside)
    count = len(targets_N)
    return Loss(
        loss=summed / count,
        num_tokens=torch.tensor(count, device=summed.device),
        num_correct=correct,
        distillation=None if beside is None else added / count,
    )


class _Chunked(torch.autograd.Function):
    """Summed cross-entropy with what is beside it, how many targets are the likeliest token, what was beside."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        targets_N: torch.Tensor,
        score: Score,
        size: int,
        beside: Beside | None,
    ) -> Any:
        learns = ctx.needs_input_grad[0]
        gradient_NH = torch.empty_like(hidden_NH) if learns else None
        summed, added = (torch.zeros((), device=hidden_NH.device) for _ in range(2))
        correct = torch.zeros((), dtype=torch.long, device=hidden_NH.device)
        for start in range(0, len(hidden_NH), size):
            rows = slice(start, start + size)
            with torch.set_grad_enabled(learns):
                hidden = hidden_NH[rows].detach().requires_grad_(learns)
                logits = score(hidden)
                loss, right = _CrossEntropy.apply(logits, targets_N[rows])
                if beside is not None:
                    extra = beside(hidden, logits, rows)
                    loss, added = loss + extra, added + extra.detach()
            if gradient_NH is not None:
                (gradient_NH[rows],) = torch.autograd.grad(loss, hidden)
            summed += loss.detach()
            correct += right
        ctx.save_for_backward(gradient_NH)
        ctx.mark_non_differentiable(correct, added)
        return summed, correct, added

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        (gradient_NH,) = ctx.saved_tensors
        return (gradient_NH * outer[0].to(gradient_NH.dtype)), None, None, None, None


def divergence(teacher_NV: torch.Tensor, student_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return T^2 KL(teacher || student) of distributions softened by T, summed over N (Hinton et al. 2015).

    The square keeps gradients as large as without T. Where one of two vocabularies is padded further, the shared
    entries count.
    """
    shared = min(teacher_NV.shape[1], student_NV.shape[1])
    teacher, student = (
        (logits_NV[:, :shared].float() / temperature).log_softmax(-1)
        for logits_NV in (teacher_NV, student_NV)
    )
    return kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2


def distance(teacher_NH: torch.Tensor, student_NH: torch.Tensor) -> torch.Tensor:
    """Return 1 - the cosine of last hidden states, summed over N (DistilBERT, Sanh et al. 2019)."""
    return (1 - cosine_similarity(student_NH.float(), teacher_NH.float(), dim=-1)).sum()


@dataclass(frozen=True)
class Lesson:
    """A teacher's view of the target tokens of a batch.

    Attributes:
        section: what of it is learned, and with which weight.
        hidden_NG: the teacher's last hidden states, without gradients.
        score: its frozen head, (N, G) to (N, V).
    """

    section: config.Distillation
    hidden_NG: torch.Tensor
    score: Score

    def __call__(self, hidden_NH: torch.Tensor, logits_NV: torch.Tensor, rows: slice) -> torch.Tensor:
        """Return the weighted losses of the student's hidden states and logits at `rows` of the N tokens, summed."""
        taught_NG = self.hidden_NG[rows]
        total = torch.zeros((), device=hidden_NH.device)
        if self.section.temperature is not None:
            with torch.no_grad():
                taught_NV = self.score(taught_NG)
            total = total + self.section.logits * divergence(taught_NV, logits_NV, self.section.temperature)
        if self.section.hidden:
            total = total + self.section.hidden * distance(taught_NG, hidden_NH)
        return total
