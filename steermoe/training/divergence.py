"""A training whose numbers are no longer numbers: it stops, and tells which rows it was at."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from steermoe.atomic_io import write_text
from steermoe.data.shards import shards_of

REPORT = "diverged.json"  # in the folder of checkpoints
Locate = Callable[[Sequence[int]], list[dict[str, Any]]]


class DivergedError(RuntimeError):
    """The loss or the gradient is no longer a number."""


def locate(rows: pl.DataFrame, folders: Mapping[str, Path], indices: Sequence[int]) -> list[dict[str, Any]]:
    """Where rows of a training are: corpus, split, source_id, seconds, target, shard and row in it.

    Args:
        rows: what is trained on, with a column `corpus`.
        folders: shards of each corpus.
        indices: numbers of rows.
    """
    found = []
    wanted = rows[list(indices)].select("corpus", "split", "source_id", "seconds", "target")
    for row in wanted.iter_rows(named=True):
        place: dict[str, Any] = {"shard": None, "row": None}
        for shard in shards_of(folders[row["corpus"]], row["split"]):
            names = pl.read_parquet(shard, columns=["source_id"])["source_id"].to_list()
            if row["source_id"] in names:
                place = {"shard": str(shard), "row": names.index(row["source_id"])}
                break
        found.append({**row, **place})
    return found


def report(run: Path, step: int, what: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the rows of the step that went wrong, and which numbers did; returns the file."""
    path = run / REPORT
    found = {name: str(value) for name, value in what.items()}  # JSON has no NaN
    content = {"step": step, "found": found, "rows": list(rows)}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path
