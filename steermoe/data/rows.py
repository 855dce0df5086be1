"""A row an utterance: its columns, and rows into frames and shard files. What rows must say: `schemas`."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from steermoe.atomic_io import written_whole

SCHEMA = pl.Schema(
    {
        "source_id": pl.String(),
        "split": pl.String(),
        "speaker": pl.String(),
        "language": pl.String(),
        "task": pl.String(),
        "prompt": pl.String(),
        "transcript": pl.String(),
        "target": pl.String(),
        "answers": pl.List(pl.String()),
        "choices": pl.List(pl.String()),
        "audio": pl.Binary(),
        "sample_rate": pl.Int64(),
        "seconds": pl.Float64(),
    }
)
VIDEO = "video"  # an animated PNG; in shards of corpora with videos alone, behind the other columns
WITH_VIDEO = pl.Schema({**SCHEMA, VIDEO: pl.Binary()})
DEFAULTS: dict[str, Any] = {"language": "und", "answers": [], "choices": []}  # of columns a row may lack
ROW_GROUP, GROUP_BYTES = 64, 2**24  # rows, and bytes of audio: what is held at once
SHARD_BYTES = 2**30  # most audio and video a shard; a shard's offsets must fit 31 bits
AUDIO = "audio"

_LISTS = [name for name, kind in SCHEMA.items() if isinstance(kind, pl.List)]
_KINDS = {column: kind.to_python() for column, kind in WITH_VIDEO.items()}


class ShardError(ValueError):
    """Rows or a shard do not fit the schema of utterances."""


def with_defaults(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with the columns of DEFAULTS, where it lacks them."""
    missing = [name for name in DEFAULTS if name not in frame.columns]
    return frame.with_columns(pl.lit(DEFAULTS[name], dtype=SCHEMA[name]).alias(name) for name in missing)


def frame_of(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows as a frame with the columns of SCHEMA, or, where the first row has a video, WITH_VIDEO, in that order.

    Raises:
        ShardError: a row has other columns, or a value of another type.
    """
    checked: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        checked.append(_checked(number, row, schema_of(checked[0] if checked else row)))
    return pl.DataFrame(checked, schema=schema_of(checked[0]) if checked else SCHEMA)


def schema_of(row: Mapping[str, Any]) -> pl.Schema:
    """The columns of the rows that a row is among: with a video where it has one."""
    return WITH_VIDEO if VIDEO in row else SCHEMA


def _checked(number: int, row: Mapping[str, Any], schema: pl.Schema) -> dict[str, Any]:
    row = DEFAULTS | dict(row)
    if row.keys() != schema.keys():
        missing, extra = sorted(schema.keys() - row.keys()), sorted(row.keys() - schema.keys())
        raise ShardError(
            f"row {number}: missing columns {missing}, unknown columns {extra}; see data/rows.py"
        )
    for column in schema:
        kind, value = _KINDS[column], row[column]
        wrong = value if not isinstance(value, kind) else None
        if wrong is None and column in _LISTS:
            assert isinstance(value, list)
            wrong = next((item for item in value if not isinstance(item, str)), None)
            kind = str
        if wrong is not None or value is None:
            raise ShardError(
                f"row {number} ({row['source_id']!r}), column {column}: found {wrong!r:.80} "
                f"of type {type(wrong).__name__}, expected {kind.__name__}"
            )
    return row


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Writes a shard, whole or not at all, and holds no more than a row group; the same rows give the same bytes.

    Audio and video are neither compressed (they are FLAC and PNG) nor divided into pages, so that
    `steermoe.data.mapped` finds every recording as a stretch of the file. The first row tells whether all have videos.

    Args:
        path: of the shard.
        most: bytes of audio and video that it may hold.

    Raises:
        ShardError: a row has other columns, or a value of another type; the shard would hold more than `most`.
    """

    def __init__(self, path: Path, most: int = SHARD_BYTES) -> None:
        self._path, self._whole, self._most = path, written_whole(path), most
        self._rows: list[dict[str, Any]] = []
        self._number, self._held, self._bytes = 0, 0, 0
        self._schema: pl.Schema | None = None  # until the first row

    def __enter__(self) -> Self:
        self._target = self._whole.__enter__()
        return self

    def _open(self, schema: pl.Schema) -> None:
        self._schema, self._arrow = schema, _arrow_schema(schema)
        leaves = _leaf_names(schema)
        recorded = [name for name in leaves if name in (AUDIO, VIDEO)]
        names = [name for name in leaves if name not in recorded]
        self._file = pq.ParquetWriter(
            self._target,
            self._arrow,
            compression=dict.fromkeys(names, "zstd") | dict.fromkeys(recorded, "none"),  # pyright: ignore[reportArgumentType]
            use_dictionary=names,  # pyright: ignore[reportArgumentType]
            write_statistics=names,  # pyright: ignore[reportArgumentType]
            data_page_size=2**31 - 1,
        )

    def has_room(self, row: Mapping[str, Any]) -> bool:
        """Whether a row fits behind the others; the first one is not asked for its size."""
        return self._number == 0 or self._bytes + _recorded_bytes(row) <= self._most

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one more row."""
        if self._schema is None:
            self._open(schema_of(row))
        assert self._schema is not None
        checked = _checked(self._number, row, self._schema)
        size = _recorded_bytes(checked)
        if self._bytes + size > self._most:
            advice = "write fewer rows to a shard"
            if self._number == 0:
                advice = (
                    "cut the recording into shorter ones or, where it is not of a test split, let it be dropped "
                    "(preprocessing.max_seconds)"
                )
            raise ShardError(
                f"{self._path.name}: row {self._number} ({checked['source_id']!r}): found "
                f"{(self._bytes + size) / 2**20:.1f} MiB of audio and video up to this row, allowed are at most "
                f"{self._most / 2**20:.1f} a shard; {advice}"
            )
        if self._rows and (len(self._rows) == ROW_GROUP or self._held + size > GROUP_BYTES):
            self._flush()
        self._rows.append(checked)
        self._number, self._held, self._bytes = self._number + 1, self._held + size, self._bytes + size

    def _flush(self) -> None:
        self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._arrow))
        self._rows, self._held = [], 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._schema is None:  # not a row
                self._open(SCHEMA)
            if kind is None and self._rows:
                self._flush()
        finally:
            self._file.close()
            self._whole.__exit__(kind, error, trace)


def _recorded_bytes(row: Mapping[str, Any]) -> int:
    return sum(len(row[name]) for name in (AUDIO, VIDEO) if isinstance(row.get(name), bytes))


def write_frame(frame: pl.DataFrame, path: Path) -> None:
    """Write a shard, whole; the same rows give the same bytes."""
    with ShardWriter(path) as shard:
        for row in frame.iter_rows(named=True):
            shard.add(row)


def _leaf_names(schema: pl.Schema) -> list[str]:
    """The columns as parquet names them."""
    return [f"{name}.list.element" if name in _LISTS else name for name in schema]


def _arrow(kind: pl.DataType) -> pa.DataType:
    if isinstance(kind, pl.List):
        return pa.large_list(pa.field("element", pa.large_string(), nullable=False))
    return {
        pl.String: pa.large_string(),
        pl.Binary: pa.large_binary(),
        pl.Int64: pa.int64(),
        pl.Float64: pa.float64(),
    }[type(kind)]


def _arrow_schema(schema: pl.Schema) -> pa.Schema:
    return pa.schema([pa.field(name, _arrow(kind), nullable=False) for name, kind in schema.items()])
