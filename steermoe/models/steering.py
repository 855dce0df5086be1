"""Steering: at chosen places of the frozen encoder, h + scale[l] * (gates @ vectors[l]) (paper, section 2).

It hangs on the frozen modules as forward hooks: whatever calls them is steered, and no forward is typed again.
Shapes: B batch, S encoder frames, D encoder width, L steered places, N experts of a place.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn

from steermoe import config
from steermoe.models.encoders.encoder import layer_hidden, valid_frames
from steermoe.models.exclusive import LOCK, exclusive
from steermoe.models.gates import Gate, load_balancing_loss, z_loss
from steermoe.models.placement import places
from steermoe.models.routers import make_router

Observer = Callable[[int, torch.Tensor, torch.Tensor], None]
Lengths = Callable[[int], torch.Tensor]


class Steering(nn.Module):
    """Expert vectors, scales, a router and gates, attached to frozen modules.

    Attributes:
        places: what is steered, in order; L in all.
        vectors: (sum of N, D), the places' experts one after the other.
        scales: (L,); trained, or fixed.
        enabled: False leaves everything as it is.

    Args:
        section: its configuration.
        layers: the modules whose output can be steered, one a layer of the encoder.
        width: D.

    Raises:
        ValueError: the section names a layer that the encoder does not have, an unknown router, or does not
            give every place its number of experts.
    """

    scales: torch.Tensor

    def __init__(self, section: config.Steering, layers: Iterable[nn.Module], width: int) -> None:
        super().__init__()
        self.section, modules = section, list(layers)
        self.places = places(section, len(modules))
        experts = [place.experts for place in self.places]
        bounds = list(accumulate(experts, initial=0))
        self.rows = [slice(start, end) for start, end in pairwise(bounds)]
        self.vectors = nn.Parameter(torch.randn(bounds[-1], width) * section.vector_std)
        start = torch.full((len(self.places),), 1.0 if section.scale_init is None else section.scale_init)
        if section.scale == "learned":
            self.scales = nn.Parameter(start)
        else:
            self.register_buffer("scales", start, persistent=False)
        self.register_buffer("strengths", torch.ones(bounds[-1]), persistent=False)
        self.strengths: torch.Tensor
        self.router = make_router(section, experts, width)
        self.gate = Gate(section)
        self.enabled = True
        self._observer: Observer | None = None
        self._routed: list[torch.Tensor] = []  # logits (B, S, N), place by place
        for index, place in enumerate(self.places):
            if place.layer is not None:
                modules[place.layer].register_forward_hook(partial(self._hook, index))

    def forward(self, hidden_BSD: torch.Tensor, index: int) -> torch.Tensor:
        """Steer what comes out at place `index`; in float32, cast back to the type of `hidden_BSD`."""
        with torch.autocast(hidden_BSD.device.type, enabled=False):
            hidden = hidden_BSD.float()
            vectors_ND = self.scaled_vectors(index)
            logits_BSN = self.router(hidden, index, vectors_ND)
            gates_BSN = self.gate(logits_BSN)
            if self._observer is not None:
                self._observer(index, hidden.detach(), gates_BSN.detach())
            if self.training and self.has_losses:
                self._routed.append(logits_BSN)
            # The scale goes onto the N vectors, not onto every frame, and the sum into the product.
            steered = torch.addmm(hidden.flatten(0, -2), gates_BSN.flatten(0, -2), vectors_ND)
            return steered.view_as(hidden).to(hidden_BSD.dtype)

    def post(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        """The encoder's output, steered where the section says `post_encoder`."""
        last = len(self.places) - 1
        if not self.enabled or self.places[last].layer is not None:
            return hidden_BSD
        return self(hidden_BSD, last)

    def scaled_vectors(self, index: int) -> torch.Tensor:
        """scale[l] * vectors[l], (N, D): gates times this is what place `index` adds."""
        rows = self.rows[index]
        return (self.scales[index] * self.strengths[rows])[:, None] * self.vectors[rows]

    @exclusive
    def strength(
        self, value: float = 1.0, layer: int | None = None, expert: int | None = None, *, post: bool = False
    ) -> None:
        """Multiply what experts add by `value`, from now on; not trained, not saved. 1 for all undoes it.

        Args:
            value: 0 switches off, 1 is as trained, -1 pushes the other way.
            layer: number of a steered layer of the encoder; None for all places.
            expert: number of an expert; None for all.
            post: the place after the encoder instead of a layer.

        Raises:
            ValueError: the layer is not steered, or does not have the expert.
        """
        known = [place.layer for place in self.places]
        wanted = None if post else layer
        if (post or layer is not None) and wanted not in known:
            names = ", ".join(map(str, self.places))
            raise ValueError(f"steering: found {'post' if post else layer}; steered places are {names}")
        for place, rows in zip(self.places, self.rows, strict=True):
            if (post or layer is not None) and place.layer != wanted:
                continue
            if expert is not None and not 0 <= expert < place.experts:
                raise ValueError(
                    f"steering: found expert {expert}; place {place} has 0 to {place.experts - 1}"
                )
            chosen = rows if expert is None else rows.start + expert
            self.strengths[chosen] = value

    # losses on routing

    @property
    def has_losses(self) -> bool:
        """The section asks for a loss on routing."""
        return self.section.router_aux_loss_coef > 0 or self.section.router_z_loss_coef > 0

    def start(self) -> None:
        """Forget what was routed before; called before every batch."""
        self._routed.clear()

    def losses(self, lengths: Lengths) -> torch.Tensor | float:
        """The weighted losses on routing of the batch that the encoder heard last, meaned over places.

        Args:
            lengths: from the width S of hidden states to the valid lengths of their rows.
        """
        total: torch.Tensor | float = 0.0
        for logits_BSN in self._routed:
            valid = valid_frames(lengths(logits_BSN.shape[1]), logits_BSN.shape[1])
            if self.section.router_aux_loss_coef:
                total = total + self.section.router_aux_loss_coef * load_balancing_loss(
                    self.gate.whole(logits_BSN[valid])
                )
            if self.section.router_z_loss_coef:
                total = total + self.section.router_z_loss_coef * z_loss(logits_BSN[valid])
        return total / max(1, len(self._routed))

    def _hook(self, index: int, layer: nn.Module, args: Any, output: Any) -> Any:
        if not self.enabled:
            return None
        steered_BSD = self(layer_hidden(output), index)
        return (steered_BSD, *output[1:]) if isinstance(output, tuple) else steered_BSD

    # looking on

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The encoder as it is without steering, within the context."""
        with LOCK:
            before, self.enabled = self.enabled, False
            try:
                yield
            finally:
                self.enabled = before

    @contextmanager
    def observed(self, observer: Observer) -> Iterator[None]:
        """Call `observer(index, hidden_BSD, gates_BSN)` at every steered place, within the context.

        `index` counts the steered places, `hidden_BSD` is what came out unsteered, padded frames included.
        """
        with LOCK:
            before, self._observer = self._observer, observer
            try:
                yield
            finally:
                self._observer = before
