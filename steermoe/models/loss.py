"""The training loss over the target tokens of a batch.

Shapes: N target tokens of all rows, V vocabulary of the LLM.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from transformers.utils.generic import ModelOutput


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
