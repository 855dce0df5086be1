"""Measure steering during training: the entropy of its routers, and how much it adds.

Shapes: B batch, S encoder frames, D encoder width, N experts of a place, F valid frames.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack

import torch

from steermoe.models.encoders.encoder import valid_frames
from steermoe.models.steering import Steering

Lengths = Callable[[int], torch.Tensor]


class RoutingWatch:
    """Observe the gates of one training batch, between `begin` and `end`; the computation stays the same.

    Args:
        steering: the observed steering.
        lengths: maps the width S of hidden states to the valid lengths of their rows.
    """

    def __init__(self, steering: Steering, lengths: Lengths) -> None:
        self.steering, self._lengths = steering, lengths
        self._context = ExitStack()
        self._seen: dict[int, tuple[torch.Tensor, ...]] = {}  # place -> what `_observe` computes

    def begin(self) -> None:
        """Begin to observe."""
        self._seen.clear()
        self._context.enter_context(self.steering.observed(self._observe))

    def end(self) -> dict[str, float]:
        """Stop, and return the metrics of the last batch; {} where there was none.

        Returns:
            for each place, named by its layer, and as mean over places: load_entropy (of the mean gates, relative to
            its maximum log N: 1 is even use, 0 is one expert for all), effective_experts (exp of the mean entropy of
            a frame's gates: 1 to N), scale, vector_norm (mean norm of the vectors, without the scale), and
            steer_to_residual (rms of what is added over rms of what it is added to).
        """
        self._context.close()
        rows = {place: self._place(place) for place in sorted(self._seen)}
        self._seen.clear()
        if not rows:
            return {}
        found: dict[str, float] = {}
        for name in next(iter(rows.values())):
            for place, row in rows.items():
                found[f"{name}/{self.steering.hook_points[place]}"] = row[name]
            found[name] = math.fsum(row[name] for row in rows.values()) / len(rows)
        return found

    @torch.no_grad()
    def _observe(self, place: int, hidden_BSD: torch.Tensor, gates_BSN: torch.Tensor) -> None:
        # Parameters are read here, within the forward pass; outside of it ZeRO-3 may have partitioned them.
        # Layers that are recomputed for the backward pass come twice, with the same values.
        steering, gates_BSN = self.steering, gates_BSN.float()
        vectors_ND = steering.scaled_vectors(place).float()
        # |gates @ vectors|^2 from the few products of the vectors with each other
        added_BS = ((gates_BSN @ (vectors_ND @ vectors_ND.T)) * gates_BSN).sum(-1)
        norm = steering.vectors[steering.rows[place]].norm(dim=-1).mean()
        squares_BS = hidden_BSD.float().square().sum(-1)
        self._seen[place] = gates_BSN, added_BS, squares_BS, steering.scales[place].clone(), norm

    def _place(self, place: int) -> dict[str, float]:
        gates_BSN, added_BS, squares_BS, scale, norm = self._seen[place]
        valid_BS = valid_frames(self._lengths(gates_BSN.shape[1]), gates_BSN.shape[1])
        gates_FN, experts = gates_BSN[valid_BS], gates_BSN.shape[-1]
        entropy = float(torch.special.entr(gates_FN).sum(-1).mean())
        load_entropy = float(torch.special.entr(gates_FN.mean(0)).sum())
        added, squares = float(added_BS[valid_BS].sum()), float(squares_BS[valid_BS].sum())
        return {
            "load_entropy": load_entropy / math.log(experts) if experts > 1 else 1.0,
            "effective_experts": math.exp(entropy),
            "scale": float(scale),
            "vector_norm": float(norm),
            "steer_to_residual": math.sqrt(max(added, 0.0) / squares),
        }
