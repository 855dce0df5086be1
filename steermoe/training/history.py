"""What a training's log says: the best evaluation, patience, and the table for plots.

The log is `TrainerState.log_history`. It is part of every checkpoint: all of this is the same after a resume.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from steermoe.training.parameter_groups import PARTS

Log = Sequence[Mapping[str, Any]]
COLUMNS = (
    "step",
    "train_loss",
    "dev_loss",
    "dev_token_accuracy",
    *(f"lr_{part}" for part in PARTS),
    "grad_norm",
    "steering_grad_norm",
    "layer_scale",
)


def evaluations(log: Log) -> list[Mapping[str, Any]]:
    """The entries of evaluations on the development splits, in order."""
    return [entry for entry in log if "dev_loss" in entry]


def best(log: Log) -> Mapping[str, Any] | None:
    """The evaluation with the lowest loss, the first of equals; None before the first."""
    return min(evaluations(log), key=lambda entry: entry["dev_loss"], default=None)


def evaluations_since_best(log: Log) -> int:
    """How many evaluations in a row brought nothing better."""
    found = evaluations(log)
    return len(found) - 1 - found.index(min(found, key=lambda entry: entry["dev_loss"])) if found else 0


def table(log: Log) -> list[dict[str, Any]]:
    """A row an evaluation: `train_loss` is the mean since the row before, the rest is as it was then.

    A value that the method does not have (the rate of a part that it lacks) is None.
    """
    rows, losses, last_step = [], [], 0
    latest: Mapping[str, Any] = {}
    for entry in log:
        if "loss" in entry:
            losses.append((entry["loss"], entry["step"] - last_step))
            last_step, latest = entry["step"], entry
        if "dev_loss" in entry:
            merged = {**latest, **entry, "train_loss": _mean(losses)}
            rows.append({column: merged.get(column) for column in COLUMNS})
            losses = []
    return rows


def _mean(losses: list[tuple[float, int]]) -> float | None:
    steps = sum(count for _, count in losses)
    return math.fsum(loss * count for loss, count in losses) / steps if steps else None


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as text; an empty cell is None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
