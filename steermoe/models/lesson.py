"""What a student learns from a teacher about the tokens that both predict.

Shapes: N target tokens of some rows, H width of the student's LLM, G of the teacher's, V a vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity, kl_div

from steermoe import config


def divergence(teacher_NV: torch.Tensor, student_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(teacher || student) of distributions softened by T, summed over N (Hinton et al. 2015).

    The square keeps gradients as large as without T. Of two vocabularies of which one is padded further, what both
    have counts.
    """
    shared = min(teacher_NV.shape[1], student_NV.shape[1])
    teacher, student = (
        (logits_NV[:, :shared].float() / temperature).log_softmax(-1)
        for logits_NV in (teacher_NV, student_NV)
    )
    return kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2


def distance(teacher_NH: torch.Tensor, student_NH: torch.Tensor) -> torch.Tensor:
    """1 - the cosine of last hidden states, summed over N (DistilBERT, Sanh et al. 2019)."""
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
    score: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, hidden_NH: torch.Tensor, logits_NV: torch.Tensor, rows: slice) -> torch.Tensor:
        """The weighted losses of the student's hidden states and logits at `rows` of the N tokens, summed."""
        taught_NG = self.hidden_NG[rows]
        total = torch.zeros((), device=hidden_NH.device)
        if self.section.temperature is not None:
            with torch.no_grad():
                taught_NV = self.score(taught_NG)
            total = total + self.section.logits * divergence(taught_NV, logits_NV, self.section.temperature)
        if self.section.hidden:
            total = total + self.section.hidden * distance(taught_NG, hidden_NH)
        return total
