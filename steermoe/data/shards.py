"""Parquet shards of utterances: `<folder>/<split>-00000.parquet`, checked when written and when read.

A shard whose rows need more room than allowed continues in `<split>-00000_00001.parquet` and so on.
"""

import mmap
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from steermoe.atomic_io import written_whole
from steermoe.audio.io import FLAC_HEADER
from steermoe.data.filters import skipped_reason
from steermoe.data.schema import (
    AUDIO,
    SCHEMA,
    VIDEO,
    WITH_VIDEO,
    ShardError,
    audio_fault,
    validate_shard,
    video_fault,
)

DEFAULTS: dict[str, Any] = {"language": "und", "answers": [], "choices": []}  # of columns that a row may lack
ROW_GROUP, GROUP_BYTES = 64, 2**24  # rows, and bytes of audio and video, of a row group
SHARD_BYTES = 2**30  # of audio and video in a shard
_NAME = re.compile(r"(?P<split>[a-z0-9_-]+)-(?P<number>\d{5})(_(?P<continued>\d{5}))?\.parquet")
_FIRST_BYTES = {AUDIO: b"fLaC", VIDEO: b"\x89PNG"}  # of every recording
_VIEW = np.dtype(
    [("length", "<i4"), ("prefix", "S4"), ("buffer", "<i4"), ("offset", "<i4")]
)  # Arrow's BinaryView
_MIN_BYTES = 13  # Arrow stores shorter values inside the view


def shard_name(split: str, number: int, continued: int = 0) -> str:
    """Return the file name of a shard of a split; `continued` counts the shards that it continues in."""
    return f"{split}-{number:05d}{f'_{continued:05d}' if continued else ''}.parquet"


def write_shard(
    rows: Iterable[Mapping[str, Any]], path: Path, max_bytes: int = SHARD_BYTES
) -> Mapping[str, Any] | None:
    """Write rows as a shard, whole or not at all, with one row group in memory; the same rows give the same bytes.

    Audio and video are stored as they are (FLAC and PNG do not compress), so that `read_rows` can map them into
    memory. The first row decides whether all rows have a video.

    Args:
        rows: with the columns of `Utterance`, but for those of DEFAULTS.
        path: of the shard.
        max_bytes: of audio and video in the shard. Writing stops before the row that exceeds it.

    Returns:
        that row; None if all rows were written.

    Raises:
        ShardError: a row has other columns, or a value of another type; the first row exceeds `max_bytes`.
    """
    rows = iter(rows)
    first = next(rows, None)
    schema = _arrow_schema(WITH_VIDEO if first is not None and VIDEO in first else SCHEMA)
    group: list[dict[str, Any]] = []
    rest = None
    group_bytes = total = 0
    with written_whole(path) as temporary, _writer(temporary, schema) as writer:
        for number, row in enumerate(rows if first is None else chain([first], rows)):
            checked = _checked(number, row, schema)
            size = sum(len(checked[name]) for name in (AUDIO, VIDEO) if name in checked)
            if total + size > max_bytes:
                rest = row
                break
            if len(group) == ROW_GROUP or (group and group_bytes + size > GROUP_BYTES):
                writer.write_table(pa.Table.from_pylist(group, schema))
                group, group_bytes = [], 0
            group.append(checked)
            group_bytes, total = group_bytes + size, total + size
        if rest is not None and not total:
            raise ShardError(
                f"{path.name}: row 0 ({rest['source_id']!r}): its audio and video are larger than a shard may be, "
                f"{max_bytes / 2**20:.1f} MiB; cut the recording into shorter ones or, where it is not of a test "
                "split, let it be dropped (preprocessing.max_seconds)"
            )
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema))
    return rest


def _checked(number: int, row: Mapping[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """Return the row with defaults; ShardError where it has other columns, or a value of another type."""
    row = DEFAULTS | dict(row)
    if row.keys() != set(schema.names):
        missing, unknown = sorted(set(schema.names) - row.keys()), sorted(row.keys() - set(schema.names))
        raise ShardError(
            f"row {number}: missing columns {missing}, unknown columns {unknown}; see data/schema.py"
        )
    for field in schema:
        value = row[field.name]
        try:
            fits = value is not None and pa.scalar(value, field.type).is_valid
        except pa.ArrowException:
            fits = False
        if not fits:
            raise ShardError(
                f"row {number} ({row['source_id']!r}), column {field.name}: found {value!r:.80} of type "
                f"{type(value).__name__}, expected {field.type}"
            )
    return row


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a writer that stores recordings uncompressed, each row group in one page."""
    leaves = [f"{f.name}.list.element" if pa.types.is_large_list(f.type) else f.name for f in schema]
    encoded = [name for name in leaves if name not in (AUDIO, VIDEO)]
    return pq.ParquetWriter(
        path,
        schema,
        compression={name: "zstd" if name in encoded else "none" for name in leaves},  # pyright: ignore[reportArgumentType]
        use_dictionary=encoded,  # pyright: ignore[reportArgumentType]
        write_statistics=encoded,  # pyright: ignore[reportArgumentType]
        data_page_size=2**31 - 1,
    )


def _arrow_schema(schema: pl.Schema) -> pa.Schema:
    types: dict[Any, pa.DataType] = {
        pl.String: pa.large_string(),
        pl.Binary: pa.large_binary(),
        pl.Int64: pa.int64(),
        pl.Float64: pa.float64(),
        pl.List: pa.large_list(pa.field("element", pa.large_string(), nullable=False)),
    }
    return pa.schema([pa.field(name, types[type(kind)], nullable=False) for name, kind in schema.items()])


def read_rows(
    folders: Path | Sequence[Path], splits: Sequence[str], columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """Read whole splits, in the order of folders, splits and shards.

    Audio and video are mapped, not loaded: their bytes are read from the shards whenever they are used, so that a
    split may be larger than memory. Shards may be replaced meanwhile, but not changed in place.

    Args:
        folders: of one or several corpora. A skipped corpus has no rows.
        splits: every other folder must have each of them.
        columns: some of the columns; by default all, with `video` where a shard has it (null in the rows of the
            others). Recordings are checked only if their column is read.

    Raises:
        ShardError: a shard is missing, is damaged, or breaks the schema; a `source_id` occurs twice.
        ValueError: a folder lacks a split; unknown column.
    """
    chosen = list(SCHEMA if columns is None else columns)
    if unknown := [name for name in chosen if name not in WITH_VIDEO]:
        raise ValueError(f"no column {unknown[0]!r} in shards; they have: {', '.join(WITH_VIDEO)}")
    scalars = [name for name in SCHEMA if name != AUDIO]
    frames = [pl.DataFrame(schema=SCHEMA).select(scalars)]
    seen: dict[str, Path] = {}
    paths: list[Path] = []
    for folder in [folders] if isinstance(folders, Path) else folders:
        for split in splits if skipped_reason(folder) is None else ():
            for path in shards_of(folder, split):
                validate_shard(path, audio="skip")
                frames.append(pl.read_parquet(path, columns=scalars).select(scalars))
                note_ids(seen, frames[-1]["source_id"], path)
                paths.append(path)
    frame = pl.concat(frames).rechunk()
    has_video = [VIDEO in pq.read_schema(path).names for path in paths]
    if columns is None and any(has_video):
        chosen.append(VIDEO)
    if AUDIO in chosen:
        frame = frame.with_columns(_mapped(paths, AUDIO, [True] * len(paths)))
        described = zip(
            frame[AUDIO].bin.head(FLAC_HEADER), frame["sample_rate"], frame["seconds"], strict=True
        )
        _check(paths, (audio_fault(head, rate, seconds, decode=False) for head, rate, seconds in described))
    if VIDEO in chosen:
        frame = frame.with_columns(_mapped(paths, VIDEO, has_video))
        _check(paths, (video_fault(data, decode=False) for data in frame[VIDEO].drop_nulls()))
    return frame.select(chosen)


def _check(paths: Sequence[Path], faults: Iterable[str | None]) -> None:
    """Raise the ShardError that names a fault, if there are any."""
    if fault := next(filter(None, faults), None):
        for path in paths:
            validate_shard(path, audio="header")
        raise ShardError(f"{paths[0].parent}: found {fault}; write the shards anew (stage preprocess)")


def _mapped(paths: Sequence[Path], column: str, has_column: Sequence[bool]) -> pl.Series:
    """Return the recordings of shards as views of the mapped files; null for shards without the column."""
    views, buffers = [], []
    for path, has in zip(paths, has_column, strict=True):
        if has:
            with path.open("rb") as file:
                buffers.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            views.append(_views(path, buffers[-1], column))
            views[-1]["buffer"] = len(buffers) - 1
        else:
            views.append(np.zeros(pq.read_metadata(path).num_rows, _VIEW))
    table = np.concatenate([np.empty(0, _VIEW), *views])
    valid = pa.py_buffer(np.packbits(table["length"] > 0, bitorder="little"))
    kept = [pa.py_buffer(buffer) for buffer in buffers]
    array = pa.Array.from_buffers(pa.binary_view(), len(table), [valid, pa.py_buffer(table), *kept])
    return pl.Series(column, array, dtype=pl.Binary)


def _views(path: Path, data: mmap.mmap, column: str) -> np.ndarray:
    """Return where the recordings of a shard are.

    `write_shard` stores those of a row group one after another up to the end of the column's data, each after its
    length in 4 bytes (parquet's encoding PLAIN).
    """
    metadata, found = pq.read_metadata(path), []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunk = group.column(metadata.schema.names.index(column))
        end = chunk.data_page_offset + chunk.total_compressed_size
        place = data.find(_FIRST_BYTES[column], chunk.data_page_offset, end) - 4
        for _ in range(group.num_rows):
            length = int.from_bytes(data[place : place + 4], "little") if place >= 0 else 0
            if length < _MIN_BYTES or place + 4 + length > end:
                break
            found.append((length, data[place + 4 : place + 8], 0, place + 4))
            place += 4 + length
        if place != end or len(found) != sum(metadata.row_group(i).num_rows for i in range(number + 1)):
            validate_shard(path, audio="header")
            raise ShardError(
                f"{path}: row group {number}: column {column} is compressed or damaged; write the shard anew "
                "(stage preprocess)"
            )
    return np.array(found, _VIEW)


def note_ids(seen: dict[str, Path], ids: Iterable[str], path: Path) -> None:
    """Add the `source_id`s of a shard to `seen`; ShardError for one that is in it already."""
    for source_id in ids:
        if source_id in seen:
            raise ShardError(
                f"{path}: column source_id: {source_id!r} is in {seen[source_id]} too; "
                "a corpus reader must give every utterance an id of its own"
            )
        seen[source_id] = path


def shards_of(folder: Path, split: str) -> list[Path]:
    """Return the shards of a split, in order.

    Raises:
        ValueError: the folder or the split is missing.
        ShardError: a shard between others is missing.
    """
    present = splits_of(folder)
    found = sorted((match[0], match) for match in _shards_in(folder) if match["split"] == split)
    if not found:
        raise ValueError(f"{folder}: no split {split!r}; it has: {', '.join(present) or 'no shards'}")
    before = (-1, 0)
    for _, match in found:
        place = int(match["number"]), int(match["continued"] or 0)
        if place not in ((before[0] + 1, 0), (before[0], before[1] + 1)):
            missing = (place[0], before[1] + 1) if place[0] == before[0] else (before[0] + 1, 0)
            raise ShardError(f"{folder}: {shard_name(split, *missing)} is missing; run preprocess anew")
        before = place
    return [folder / name for name, _ in found]


def splits_of(folder: Path) -> list[str]:
    """Return the names of the splits in a folder, sorted.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of shards; run preprocess first")
    return sorted({match["split"] for match in _shards_in(folder)})


def _shards_in(folder: Path) -> Iterator[re.Match[str]]:
    return (match for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))
