"""A row an utterance: its columns, and rows into frames and shard files. What rows must say: `schemas`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from steermoe.data.staging import written_whole

SCHEMA = pl.Schema(
    {
        "source_id": pl.String(),
        "split": pl.String(),
        "speaker": pl.String(),
        "task": pl.String(),
        "prompt": pl.String(),
        "transcript": pl.String(),
        "target": pl.String(),
        "audio": pl.Binary(),
        "sample_rate": pl.Int64(),
        "seconds": pl.Float64(),
    }
)
ROW_GROUP = 256  # rows: what a reader must hold at once


class ShardError(ValueError):
    """Rows or a shard do not fit the schema of utterances."""


def frame_of(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows as a frame with the columns of SCHEMA, in that order.

    Raises:
        ShardError: a row has other columns, or a value of another type.
    """
    kinds = {column: kind.to_python() for column, kind in SCHEMA.items()}
    checked = []
    for number, row in enumerate(rows):
        if row.keys() != kinds.keys():
            missing, extra = sorted(kinds.keys() - row.keys()), sorted(row.keys() - kinds.keys())
            raise ShardError(
                f"row {number}: missing columns {missing}, unknown columns {extra}; see data/rows.py"
            )
        for column, kind in kinds.items():
            if not isinstance(row[column], kind):
                raise ShardError(
                    f"row {number} ({row['source_id']!r}), column {column}: found {row[column]!r:.80} "
                    f"of type {type(row[column]).__name__}, expected {kind.__name__}"
                )
        checked.append(row)
    return pl.DataFrame(checked, schema=SCHEMA)


def write_frame(frame: pl.DataFrame, path: Path) -> None:
    """Write a shard, whole; the same rows give the same bytes."""
    with written_whole(path) as temporary:
        frame.write_parquet(temporary, compression="zstd", row_group_size=ROW_GROUP)
