"""AdamW with a learning rate for each part of the model, and weight decay on matrices only."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import AdamW

from steermoe.config.experiments import METHODS, parts_of

# Every part that some method trains, each once.
PARTS = tuple(dict.fromkeys(part for method in METHODS for part in parts_of(method)))


def adamw(
    parts: Mapping[str, Sequence[nn.Parameter]], learning_rates: Mapping[str, float], weight_decay: float
) -> AdamW:
    """Return AdamW (betas 0.9 and 0.999) over `parts`, as `SteerMoE.parameter_groups()` gives them.

    Raises:
        ValueError: `learning_rates` and `parts` do not name the same parts.
    """
    if set(parts) != set(learning_rates):
        raise ValueError(
            f"training.learning_rates: found rates for {sorted(learning_rates)}, but the model trains "
            f"{sorted(parts)}; give a rate for each of these parts and for no other"
        )
    groups = []
    for part, parameters in parts.items():
        for is_decayed in (True, False):
            chosen = [p for p in parameters if _is_decayed(part, p) is is_decayed]
            if chosen:
                decay = weight_decay if is_decayed else 0.0
                groups.append(
                    {"name": part, "params": chosen, "lr": learning_rates[part], "weight_decay": decay}
                )
    return AdamW(groups, betas=(0.9, 0.999), eps=1e-8)


def _is_decayed(part: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter is decayed: matrices are; biases, steering vectors and layer scales are not.

    Vectors (L, N, D) are added to activations as biases are, and what reaches an activation is their product
    with a scale: decay would only fight the scale, at the highest learning rate of all.
    """
    return part != "vectors" and parameter.ndim >= 2


def current_rates(optimizer: Any) -> dict[str, float]:
    """Return the present learning rate of each part."""
    return {group["name"]: float(group["lr"]) for group in optimizer.param_groups}
