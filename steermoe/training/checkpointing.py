"""Checkpoints for an exact resume: files of tensors and plain values, in folders that are written whole."""

import io
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from steermoe.training.engine import Engine

NAME = re.compile(r"checkpoint-(\d+)")
STATE, RANK = "state.pt", "rank-{rank}.pt"  # files: of all processes, and one of each
PARTIAL = "partial"  # folder in which a checkpoint is written before it gets its name


class CheckpointError(RuntimeError):
    """Raised when a checkpoint cannot be written: the disk is full or permission is denied."""


def write(run: Path, step: int, engine: Engine, state: dict[str, Any], loss_sum: torch.Tensor) -> None:
    """Write a checkpoint, which replaces the one before once it is whole; all processes must call this.

    Args:
        run: folder of checkpoints.
        step: optimizer steps that are done.
        engine: its optimizer is part of the checkpoint.
        state: what is the same in all processes.
        loss_sum: of this process, since the last log.

    Raises:
        CheckpointError: it cannot be written; the one before is kept.
    """
    folder = run / PARTIAL / f"checkpoint-{step}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        state = state | engine.save(folder) | {"layout": _layout(engine)}
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        mine = {"random": torch.get_rng_state(), "cuda": cuda, "loss_sum": loss_sum}
        write_tree(folder / RANK.format(rank=engine.rank), mine)
        if engine.rank == 0:
            write_tree(folder / STATE, state)
        engine.accelerator.wait_for_everyone()
        if engine.rank == 0:
            commit_checkpoint(run, step)
    except OSError as error:
        kept = last_checkpoint(run)
        raise CheckpointError(
            f"{folder.parent}: the checkpoint of step {step} cannot be written ({error}); "
            f"{'there is none before it' if kept is None else f'{kept.name} is kept'}: free disk space or permit "
            "writing, and repeat the command"
        ) from error
    engine.accelerator.wait_for_everyone()


def read(checkpoint: Path, engine: Engine, seed: int) -> tuple[dict[str, Any], torch.Tensor]:
    """Restore random generators and optimizer from a checkpoint; return its state and the sum of losses.

    Another number of processes than wrote it starts new random generators from `seed`.

    Raises:
        ValueError: ZeRO wrote the checkpoint, or is to read it, with another strategy or number of processes.
    """
    state = read_tree(checkpoint / STATE)
    if state["layout"] != _layout(engine):
        raise ValueError(
            f"{checkpoint}: written with {state['layout']}, to be resumed with {_layout(engine)}, which ZeRO cannot; "
            "continue with training.distributed as it was, or delete this folder to train anew"
        )
    engine.load(checkpoint, state)
    trees = [read_tree(file) for file in sorted(checkpoint.glob(RANK.format(rank="*")))]
    if len(trees) == engine.world:
        mine = read_tree(checkpoint / RANK.format(rank=engine.rank))
        torch.set_rng_state(mine["random"])  # training draws from torch's generators only
        torch.cuda.set_rng_state_all(mine["cuda"])
        return state, mine["loss_sum"]
    set_seed(seed + state["step"] * engine.world + engine.rank)
    if engine.rank == 0:
        print(
            f"{checkpoint}: written by {len(trees)} processes, resumed in {engine.world}: the same training, but "
            "sums are rounded differently"
        )
    return state, torch.stack([tree["loss_sum"] for tree in trees]).mean()


def _layout(engine: Engine) -> str:
    """Return what must be the same when a checkpoint is resumed."""
    return f"zero{engine.zero_stage} in {engine.world} processes" if engine.zero_stage else "whole weights"


def write_tree(path: Path, tree: Any) -> None:
    """Write nested dicts, lists and tuples of tensors and plain values."""
    buffer = io.BytesIO()  # with a path, torch.save would raise a RuntimeError for a full disk
    torch.save(tree, buffer)
    path.write_bytes(buffer.getvalue())


def read_tree(path: Path) -> Any:
    """Read what `write_tree` wrote, with tensors on the CPU; nothing else is unpickled."""
    return torch.load(path, map_location="cpu", weights_only=True)


def last_checkpoint(run: Path) -> Path | None:
    """Return the newest checkpoint in the folder of a run; only whole ones have the name."""
    found = [(int(match[1]), path) for path in run.iterdir() if (match := NAME.fullmatch(path.name))]
    return max(found)[1] if found else None


def commit_checkpoint(run: Path, step: int) -> None:
    """Rename the checkpoint in the partial folder, then remove the older ones."""
    partial = run / PARTIAL / f"checkpoint-{step}"
    _sync(partial)
    partial.rename(run / partial.name)
    _sync(run)
    discard_leftovers(run)


def discard_leftovers(run: Path) -> None:
    """Remove a partial checkpoint, which a killed process has left, and all whole ones but the newest."""
    newest = last_checkpoint(run)
    for path in run.iterdir():
        if path.name == PARTIAL or (NAME.fullmatch(path.name) and path != newest):
            shutil.rmtree(path)


def discard_all(run: Path) -> None:
    """Remove all checkpoints of a run."""
    for path in run.iterdir():
        if path.name == PARTIAL or NAME.fullmatch(path.name):
            shutil.rmtree(path)


def _sync(folder: Path) -> None:
    """Flush a folder and all files below it to the disk."""
    for path in [*(p for p in folder.rglob("*") if p.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
