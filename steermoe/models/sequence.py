"""Rows of different lengths, put together without gaps: `[prefix ; audio ; prompt ; target]`, and padding on one side.

Shapes: B batch, Y target tokens, W width of the packed batch, H width of the LLM.
"""

from typing import Literal

import torch

from steermoe.models.encoders.encoder import valid_frames


def pack(
    parts: list[torch.Tensor], lengths: list[torch.Tensor], padding: Literal["left", "right"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Join right-padded parts row by row into contiguous rows.

    Args:
        parts: tensors (B, length, H).
        lengths: how much of each row of each part is valid, (B,) each.
        padding: the side on which shorter rows are filled up.

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


def target_rows(
    before_B: torch.Tensor, lengths_B: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the hidden states are that predict the targets of right-padded rows.

    Args:
        before_B: how many tokens stand before each target, at least one.
        lengths_B: how long each target is.
        width: Y, of the padded targets.

    Returns:
        Row and column of each target token, in the order of `target_ids[valid]`.
    """
    rows, steps = valid_frames(lengths_B, width).nonzero(as_tuple=True)
    return rows, before_B[rows] - 1 + steps
