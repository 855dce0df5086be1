"""Steering: at hook points of the frozen encoder, h + scale[l] * (gates @ vectors[l]) (paper, section 2).

Forward hooks on the frozen modules do it, so whatever calls these modules is steered.
Shapes: B batch, S encoder frames, D encoder width, L hook points, N experts of a hook point.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from steermoe import config
from steermoe.models.encoders.encoder import layer_hidden
from steermoe.models.gating import Gate, hook_points, load_balancing_loss, z_loss
from steermoe.models.packing import valid_frames
from steermoe.models.pretrained import LOCK, exclusive
from steermoe.models.routers import make_router

Observer = Callable[[int, Tensor, Tensor], None]
Lengths = Callable[[int], Tensor]
"""From the width S of hidden states to the valid lengths of their rows."""


class Steering(nn.Module):
    """Expert vectors, scales, a router and gates, attached to frozen modules.

    Attributes:
        hook_points: where it steers, in order; L in all.
        rows: the rows of `vectors` of each hook point.
        vectors: (sum of N, D), the experts of all hook points.
        scales: (L,), trained or fixed.
        enabled: False leaves the encoder unsteered.

    Args:
        section: its configuration.
        layers: the modules whose output can be steered, one for each layer of the encoder.
        width: D.

    Raises:
        ValueError: as `hook_points`.
    """

    scales: Tensor
    expert_scales: Tensor

    def __init__(self, section: config.Steering, layers: Iterable[nn.Module], width: int) -> None:
        super().__init__()
        self.section, modules = section, list(layers)
        self.hook_points = hook_points(section, len(modules))
        experts = [point.experts for point in self.hook_points]
        bounds = list(accumulate(experts, initial=0))
        self.rows = [slice(start, end) for start, end in pairwise(bounds)]
        self.vectors = nn.Parameter(torch.randn(bounds[-1], width) * section.vector_std)
        initial = 1.0 if section.scale_init is None else section.scale_init
        scales = torch.full((len(self.hook_points),), initial)
        if section.scale == "learned":
            self.scales = nn.Parameter(scales)
        else:
            self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("expert_scales", torch.ones(bounds[-1]), persistent=False)
        self.router = make_router(section, experts, width)
        self.gate = Gate(section)
        self.enabled = True
        self._observer: Observer | None = None
        self._logits: list[Tensor] = []  # (B, S, N) of each hook point, for the losses
        for index, point in enumerate(self.hook_points):
            if point.layer is not None:
                modules[point.layer].register_forward_hook(partial(self._hook, index))

    def forward(self, hidden_BSD: Tensor, index: int) -> Tensor:
        """Steer the hidden states at hook point `index`, in float32; the result has their dtype."""
        with torch.autocast(hidden_BSD.device.type, enabled=False):
            hidden = hidden_BSD.float()
            vectors_ND = self.scaled_vectors(index)
            logits_BSN = self.router(hidden, index, vectors_ND)
            gates_BSN = self.gate(logits_BSN)
            if self._observer is not None:
                self._observer(index, hidden.detach(), gates_BSN.detach())
            if self.training and self._has_losses:
                self._logits.append(logits_BSN)
            # Scaling the N vectors is cheaper than scaling every frame; addmm adds the residual.
            steered = torch.addmm(hidden.flatten(0, -2), gates_BSN.flatten(0, -2), vectors_ND)
            return steered.view_as(hidden).to(hidden_BSD.dtype)

    def post(self, hidden_BSD: Tensor) -> Tensor:
        """Steer the encoder's output if the section has `post_encoder`."""
        last = len(self.hook_points) - 1
        if not self.enabled or self.hook_points[last].layer is not None:
            return hidden_BSD
        return self(hidden_BSD, last)

    def scaled_vectors(self, index: int) -> Tensor:
        """Return scale[l] * vectors[l], (N, D); gates times these are added at hook point `index`."""
        rows = self.rows[index]
        return (self.scales[index] * self.expert_scales[rows])[:, None] * self.vectors[rows]

    def _hook(self, index: int, layer: nn.Module, args: Any, output: Any) -> Any:
        if not self.enabled:
            return None
        steered_BSD = self(layer_hidden(output), index)
        return (steered_BSD, *output[1:]) if isinstance(output, tuple) else steered_BSD

    @exclusive
    def set_scale(
        self, value: float = 1.0, layer: int | Literal["post"] | None = None, expert: int | None = None
    ) -> None:
        """Multiply what experts add by `value` from now on; it is neither trained nor saved.

        Args:
            value: 0 switches off, 1 is as trained, -1 steers the other way.
            layer: a steered layer of the encoder, or "post" for after the encoder; None: all hook points.
            expert: number of an expert; None: all of them.

        Raises:
            ValueError: the layer is not steered, or has no such expert.
        """
        points = list(zip(self.hook_points, self.rows, strict=True))
        if layer is not None:
            points = [(point, rows) for point, rows in points if str(point) == str(layer)]
        if not points:
            names = ", ".join(map(str, self.hook_points))
            raise ValueError(f"steering: found layer {layer}; steered layers are {names}")
        for point, _ in points:
            if expert is not None and not 0 <= expert < point.experts:
                raise ValueError(
                    f"steering: found expert {expert}; layer {point} has 0 to {point.experts - 1}"
                )
        for _, rows in points:
            self.expert_scales[rows if expert is None else rows.start + expert] = value

    @contextmanager
    def scaled(
        self, value: float, layer: int | Literal["post"] | None = None, expert: int | None = None
    ) -> Iterator[None]:
        """Call `set_scale` with these arguments within the context only; other threads wait."""
        with LOCK:
            before = self.expert_scales.clone()
            try:
                self.set_scale(value, layer, expert)
                yield
            finally:
                self.expert_scales.copy_(before)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Leave the encoder unsteered within the context."""
        with LOCK:
            before, self.enabled = self.enabled, False
            try:
                yield
            finally:
                self.enabled = before

    @contextmanager
    def observed(self, observer: Observer) -> Iterator[None]:
        """Call `observer(index, hidden_BSD, gates_BSN)` at every hook point within the context.

        `hidden_BSD` is the unsteered output of hook point `index`; both include padded frames.
        """
        with LOCK:
            before, self._observer = self._observer, observer
            try:
                yield
            finally:
                self._observer = before

    @property
    def _has_losses(self) -> bool:
        return self.section.router_aux_loss_coef > 0 or self.section.router_z_loss_coef > 0

    def reset_losses(self) -> None:
        """Forget the routing of earlier batches; call it before every batch."""
        self._logits.clear()

    def losses(self, lengths: Lengths) -> Tensor | float:
        """Return the weighted losses on the routing of the last batch, averaged over hook points; see `Lengths`."""
        total: Tensor | float = 0.0
        balance, z = self.section.router_aux_loss_coef, self.section.router_z_loss_coef
        for logits_BSN in self._logits:
            valid_BS = valid_frames(lengths(logits_BSN.shape[1]), logits_BSN.shape[1])
            if balance:
                total = total + balance * load_balancing_loss(self.gate.dense(logits_BSN[valid_BS]))
            if z:
                total = total + z * z_loss(logits_BSN[valid_BS])
        return total / max(1, len(self._logits))
