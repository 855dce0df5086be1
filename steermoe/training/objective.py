"""What the Trainer trains: the model with its loss, and nothing that the Trainer would meddle with."""

from typing import Any

import torch
from torch import nn

from steermoe.models.steermoe import SteerMoE


class Objective(nn.Module):
    """The model as the Trainer sees it: a batch in, a loss out.

    It keeps the Trainer off `model.config`, which it would write to, and the wrapper of mixed precision off
    the model. Under ZeRO, where there is no such wrapper, `autocast` names the precision.
    """

    def __init__(self, model: SteerMoE) -> None:
        super().__init__()
        self.model = model
        self.autocast: torch.dtype | None = None

    def forward(self, **batch: torch.Tensor) -> Any:
        """As of `SteerMoE.forward`."""
        if self.autocast is None:
            return self.model(**batch)
        with torch.autocast(batch["features"].device.type, self.autocast):
            return self.model(**batch)
