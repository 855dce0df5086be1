"""The training loss over the target tokens of a batch, and what a teacher adds to it.

Where the logits of all tokens would be large, they are computed in chunks of tokens, and with each chunk the gradient
of its hidden states: the head is frozen, so that nothing else of the logits is needed in the backward pass. (So do the
fused losses of Liger-Kernel, Hsu et al. 2024, and Cut Cross-Entropy, Wijmans et al. 2025, in kernels of their own.)

Shapes: N target tokens of all rows, H width of the LLM, G of the teacher's, V a vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div
from transformers.utils.generic import ModelOutput

from steermoe import config

AT_A_TIME = 2**26  # logits; with fewer, the products with the head are slower than all at once
Score = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states (N, H) to logits (N, V)."""


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


def hidden_loss(
    hidden_NH: torch.Tensor,
    targets_N: torch.Tensor,
    score: Score,
    vocabulary: int,
    lesson: "Lesson | None" = None,
) -> Loss:
    """Return the loss of targets by the hidden states that predict them, in float32.

    Args:
        hidden_NH, targets_N: what predicts the targets, and the targets.
        score: the frozen head, row by row.
        vocabulary: V.
        lesson: of a teacher; its mean over the N tokens is added to the loss.
    """

    def summed(hidden: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits_NV = score(hidden)
        scores_NV = logits_NV.float()
        loss = cross_entropy(scores_NV, targets_N[rows], reduction="sum")
        correct = (scores_NV.detach().argmax(-1) == targets_N[rows]).sum()
        added = loss.new_zeros(()) if lesson is None else lesson(hidden, logits_NV, rows)
        return loss + added, added.detach(), correct

    device, count = hidden_NH.device.type, len(targets_N)
    large = vocabulary if lesson is None else 2 * vocabulary  # a teacher has logits, too
    size = max(1, AT_A_TIME // large)
    # A scaled loss has its scale in the backward pass only, and without it gradients in float16 would vanish.
    scaled = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16
    if count <= size or scaled:
        loss, added, correct = summed(hidden_NH, slice(None))
    else:
        learns = torch.is_grad_enabled() and hidden_NH.requires_grad
        gradient_NH, parts = torch.zeros_like(hidden_NH), []
        for start in range(0, count, size):
            rows = slice(start, start + size)
            part_NH = hidden_NH[rows].detach().requires_grad_(learns)
            parts.append(summed(part_NH, rows))
            if learns:
                (gradient_NH[rows],) = torch.autograd.grad(parts[-1][0], part_NH)
        loss, added, correct = (torch.stack(found).sum().detach() for found in zip(*parts, strict=True))
        if learns:
            # Its gradient is `gradient_NH`; its value is taken away again.
            carrier = (hidden_NH.float() * gradient_NH).sum()
            loss = loss + (carrier - carrier.detach())
    return Loss(
        loss=loss / count,
        num_tokens=torch.tensor(count, device=loss.device),
        num_correct=correct,
        distillation=None if lesson is None else added / count,
    )


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
