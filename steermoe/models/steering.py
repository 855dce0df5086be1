"""Steering: after chosen frozen layers, h + scale[l] * (gates @ vectors[l]) (paper, section 2).

It hangs on the layers as forward hooks: whatever calls them is steered, and no forward is typed again.
Shapes: B batch, S encoder frames, D encoder width, L steered layers, N experts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from steermoe import config
from steermoe.models.encoders.encoder import layer_hidden
from steermoe.models.routers import make_router

Observer = Callable[[int, torch.Tensor, torch.Tensor], None]


class Steering(nn.Module):
    """Expert vectors, layer scales and a router, attached to frozen layers.

    Attributes:
        vectors: (L, N, D).
        scales: (L,).
        router: `router(hidden_BSD, layer) -> gates_BSN`.
        layer_numbers: which layers of the encoder are steered, in order; L in all.
        enabled: False leaves the layers' outputs as they are.

    Args:
        section: its configuration.
        layers: all layers of the encoder.
        width: D.

    Raises:
        ValueError: the section names a layer that the encoder does not have, or an unknown router.
    """

    def __init__(self, section: config.Steering, layers: nn.ModuleList, width: int) -> None:
        super().__init__()
        self.layer_numbers = _layer_numbers(section, len(layers))
        count = len(self.layer_numbers)
        self.vectors = nn.Parameter(torch.randn(count, section.num_experts, width) * section.vector_std)
        self.scales = nn.Parameter(torch.full((count,), float(section.scale_init)))
        self.router = make_router(section, count, width)
        self.enabled = True
        self._observer: Observer | None = None
        for index, number in enumerate(self.layer_numbers):
            layers[number].register_forward_hook(partial(self._hook, index))

    def forward(self, hidden_BSD: torch.Tensor, index: int) -> torch.Tensor:
        """Steer the output of steered layer `index`; in float32, cast back to the type of `hidden_BSD`."""
        with torch.autocast(hidden_BSD.device.type, enabled=False):
            hidden = hidden_BSD.float()
            gates_BSN = self.router(hidden, index)
            if self._observer is not None:
                self._observer(index, hidden.detach(), gates_BSN.detach())
            # The scale goes onto the N vectors, not onto every frame, and the sum into the product.
            steered = torch.addmm(hidden.flatten(0, -2), gates_BSN.flatten(0, -2), self.scaled_vectors(index))
            return steered.view_as(hidden).to(hidden_BSD.dtype)

    def scaled_vectors(self, index: int) -> torch.Tensor:
        """scale[l] * vectors[l], (N, D): gates times this is what steered layer `index` adds."""
        return self.scales[index] * self.vectors[index]

    def _hook(self, index: int, layer: nn.Module, args: Any, output: Any) -> Any:
        if not self.enabled:
            return None
        steered_BSD = self(layer_hidden(output), index)
        return (steered_BSD, *output[1:]) if isinstance(output, tuple) else steered_BSD

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The layers as they are without steering, within the context."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    @contextmanager
    def observed(self, observer: Observer) -> Iterator[None]:
        """Call `observer(index, hidden_BSD, gates_BSN)` at every steered layer, within the context.

        `index` counts the steered layers, `hidden_BSD` is the layer's own output, padded frames included.
        """
        before, self._observer = self._observer, observer
        try:
            yield
        finally:
            self._observer = before


def _layer_numbers(section: config.Steering, available: int) -> list[int]:
    if section.layers == "all":
        return list(range(available))
    wrong = [number for number in section.layers if not 0 <= number < available]
    if wrong:
        raise ValueError(f"steering.layers: found {wrong}, the encoder has layers 0 to {available - 1}")
    return sorted(section.layers)
