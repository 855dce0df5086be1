"""Gradient checkpointing (Chen et al. 2016) of frozen layers, which transformers offers in training mode only."""

from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(layers: Iterable[nn.Module]) -> None:
    """Keep only the layers' inputs for the backward pass, and compute them a second time there.

    Hooks stay outside: what steers a layer's output runs once.
    """
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
