"""What the Trainer trains: the model with its loss, and nothing that the Trainer would meddle with."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from steermoe.models.steermoe import SteerMoE
from steermoe.training.teacher import Teacher


class Objective(nn.Module):
    """The model as the Trainer sees it: a batch in, a loss out.

    It keeps the Trainer off `model.config`, which it would write to, and the wrapper of mixed precision off
    the model. Under ZeRO, where there is no such wrapper, `autocast` names the precision.

    Args:
        model: what is trained.
        teacher: what it learns from in training, under the same precision; evaluation is by the labels alone.
    """

    def __init__(self, model: SteerMoE, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.model, self.teacher = model, teacher
        self.autocast: torch.dtype | None = None

    def forward(self, **batch: torch.Tensor) -> Any:
        """As of `SteerMoE.forward`."""
        kind = batch["features"].device.type
        with nullcontext() if self.autocast is None else torch.autocast(kind, self.autocast):
            lesson = None if self.teacher is None or not self.training else self.teacher.lesson(batch)
            return self.model(lesson=lesson, **batch)
