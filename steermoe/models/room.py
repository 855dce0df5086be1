"""Room for the keys and values of rows that come and go, taken beforehand: a step writes a column, and copies nothing.

Rows are right-aligned, so that all of them write the same column next.

Shapes: B rows, W width of what comes, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

AHEAD = 64  # columns that are taken beforehand


class RoomLayer(DynamicLayer):
    """Keys and values (B, heads, C, head width) of a layer, of which `Room` says which columns count."""

    def __init__(self, room: Room, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.room, self.keys, self.values = room, keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def get_seq_length(self) -> int:
        """Columns before the one that a step writes."""
        return self.room.end

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a step's column; returns all that count."""
        end = self.room.end
        assert self.keys is not None and self.values is not None
        self.keys[:, :, end : end + 1] = key_states
        self.values[:, :, end : end + 1] = value_states
        return self.keys[:, :, : end + 1], self.values[:, :, : end + 1]


class Room(Cache):
    """Keys and values of all rows, and which of their columns count: of those before `end`."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.end = 0
        self.valid_BC = torch.zeros(0, 0, dtype=torch.bool)

    @property
    def full(self) -> bool:
        """No column is left to be written."""
        return self.end == self.valid_BC.shape[1]

    def arrange(
        self, kept: Sequence[tuple[int, int]], cache: Cache | None, valid_BW: torch.Tensor | None
    ) -> None:
        """Take room anew for rows that stay and rows that come.

        Args:
            kept: rows that stay, and how many of their columns.
            cache: keys and values of rows that come, all of one width W; None: none come.
            valid_BW: which of these columns count.
        """
        come = 0 if valid_BW is None else len(valid_BW)
        width = max([columns for _, columns in kept] + ([] if valid_BW is None else [valid_BW.shape[1]]))
        rows = [row for row, _ in kept]
        held = min(width, self.end)
        old = slice(self.end - held, self.end)

        def taken(before: torch.Tensor | None, behind: torch.Tensor | None) -> torch.Tensor:
            """(B, ..., C, ...) with columns in dimension -2."""
            like = before if behind is None else behind
            assert like is not None
            room = like.new_zeros(len(rows) + come, *like.shape[1:-2], width + AHEAD, like.shape[-1])
            if before is not None and rows:
                room[: len(rows), ..., width - held : width, :] = before[rows][..., old, :]
            if behind is not None:
                room[len(rows) :, ..., width - behind.shape[-2] : width, :] = behind
            return room

        sources: list[Any] = [None] * len(self.layers) if cache is None else list(cache.layers)
        targets: list[Any] = self.layers or [None] * len(sources)
        self.layers = [
            RoomLayer(
                self,
                *(
                    taken(getattr(target, part, None), getattr(source, part, None))
                    for part in ("keys", "values")
                ),
            )
            for target, source in zip(targets, sources, strict=True)
        ]
        before = self.valid_BC[..., None] if len(self.valid_BC) else None
        self.valid_BC = taken(before, None if valid_BW is None else valid_BW[..., None])[..., 0]
        self.end = width
