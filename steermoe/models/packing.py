"""Masks of padded rows, and packing rows of different lengths without gaps.

Shapes: B batch, Y target tokens, W width of the packed batch, H width of the LLM.
"""

from typing import Literal

import torch
from torch import Tensor


def valid_frames(lengths_B: Tensor, frames: int) -> Tensor:
    """Return True where a frame is within its row's length, (B, frames)."""
    return torch.arange(frames, device=lengths_B.device) < lengths_B[:, None]


def pack(
    parts: list[Tensor], lengths: list[Tensor], padding: Literal["left", "right"]
) -> tuple[Tensor, Tensor]:
    """Join right-padded parts into contiguous rows.

    Args:
        parts: tensors (B, length, H), for example `[prefix ; audio ; prompt ; target]`.
        lengths: number of valid tokens in each row of each part, (B,) each.
        padding: the side on which shorter rows are padded.

    Returns:
        The packed rows (B, W, H), W the longest row, and True where they are valid, (B, W).
    """
    joined_BWH = torch.cat(parts, dim=1)
    valid = torch.cat([valid_frames(n, p.shape[1]) for n, p in zip(lengths, parts, strict=True)], dim=1)
    total_B = valid.sum(1)
    width = int(total_B.max())
    if padding == "right":
        order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        packed_valid = valid_frames(total_B, width)
    else:
        order = valid.to(torch.uint8).argsort(dim=1, stable=True)[:, valid.shape[1] - width :]
        packed_valid = valid_frames(total_B, width).flip(1)
    return joined_BWH.take_along_dim(order[..., None], dim=1), packed_valid


def target_rows(before_B: Tensor, lengths_B: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return row and column of the hidden states that predict each target token of right-padded rows.

    Args:
        before_B: number of tokens before each target, at least one.
        lengths_B: length of each target.
        width: Y, of the padded targets.
    """
    rows, steps = valid_frames(lengths_B, width).nonzero(as_tuple=True)
    return rows, before_B[rows] - 1 + steps
