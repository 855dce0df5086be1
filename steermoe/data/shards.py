"""Parquet shards of utterances: `<folder>/<split>-00000.parquet`, checked when written and when read.

Where the rows of a shard need more room than one may take, `<split>-00000_00001.parquet` and so on go on from it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import polars as pl

from steermoe.audio.io import FLAC_HEADER
from steermoe.data.mapped import LayoutError, mapped_column
from steermoe.data.rows import AUDIO, SCHEMA, VIDEO, WITH_VIDEO, ShardError, frame_of, write_frame
from steermoe.data.schemas import audio_fault, validate_shard, video_fault
from steermoe.data.skipped import skipped_reason

_NAME = re.compile(r"(?P<split>[a-z0-9_-]+)-(?P<number>\d{5})(_(?P<further>\d{5}))?\.parquet")


def shard_name(split: str, number: int, further: int = 0) -> str:
    """The file name of the `number`-th shard of a split, or of the `further`-th that goes on from it.

    Names sort as the shards do.
    """
    return f"{split}-{number:05d}{f'_{further:05d}' if further else ''}.parquet"


def write_shards(
    rows: Iterable[Mapping[str, Any]], folder: Path, split: str, rows_per_shard: int
) -> list[Path]:
    """Write the rows of a split as shards, holding one shard in memory; none at all gives one empty shard.

    Returns:
        the shards in order.

    Raises:
        ShardError: the rows are not utterances of `split`. The shards before the bad one stay.
        FileExistsError: the folder has shards of this split.
    """
    if folder.exists() and (old := [path for path in folder.iterdir() if _split_of(path) == split]):
        raise FileExistsError(
            f"{folder}: has {len(old)} shards of {split!r} already; delete them to write anew"
        )
    source = iter(rows)
    paths: list[Path] = []
    for number in count():
        frame = frame_of(islice(source, rows_per_shard))
        if frame.is_empty() and paths:
            break
        path = folder / shard_name(split, number)
        write_frame(frame, path)
        try:
            validate_shard(path, audio="decode")
        except ShardError:
            path.unlink()
            raise
        paths.append(path)
        if len(frame) < rows_per_shard:
            break
    return paths


def read_rows(
    folders: Path | Sequence[Path], splits: Sequence[str], columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """The rows of whole splits, in the order of folders, splits and shards.

    All but audio and video is in memory; those are read from the shards whenever they are asked for (see
    `mapped`), so that a split may be larger than memory. The shards must stay where they are, or be replaced as files.

    Args:
        folders: of one or several corpora. A skipped corpus has no rows.
        splits: every other folder must have each of them.
        columns: some of the columns; by default all: with `video` where a shard has it, which is null in the
            rows of others. Audio that is not asked for is not looked at.

    Raises:
        ShardError: a shard is missing, is damaged, or breaks the schema; a `source_id` occurs twice.
        ValueError: a folder lacks a split; unknown column.
    """
    chosen = list(SCHEMA) if columns is None else list(columns)
    if unknown := [name for name in chosen if name not in WITH_VIDEO]:
        raise ValueError(f"no column {unknown[0]!r} in shards; they have: {', '.join(WITH_VIDEO)}")
    described = [name for name in chosen if name not in (AUDIO, VIDEO)]
    scalars = list(dict.fromkeys([*described, "source_id", "sample_rate", "seconds"]))
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
    # In one piece: polars takes rows of a column in pieces by copying them.
    frame = pl.concat(frames).rechunk()
    if AUDIO in chosen:
        frame = frame.with_columns(_audio(paths, frames[1:]))
    shown = [VIDEO in pl.read_parquet_schema(path) for path in paths]
    if VIDEO in chosen or (columns is None and any(shown)):
        videos = [
            _video(path) if has else pl.Series(VIDEO, [None] * len(rows), pl.Binary)
            for path, has, rows in zip(paths, shown, frames[1:], strict=True)
        ]
        frame = frame.with_columns(
            pl.concat(videos).rechunk() if videos else pl.lit(None, pl.Binary).alias(VIDEO)
        )
        chosen = list(dict.fromkeys([*chosen, VIDEO]))
    return frame.select(chosen)


def _video(path: Path) -> pl.Series:
    """The column `video` of a shard, after a look at every header."""
    try:
        videos = mapped_column([path], VIDEO)
    except LayoutError as error:
        validate_shard(path, audio="header")
        raise ShardError(f"{error}; write the shard anew (stage preprocess)") from error
    if any(video_fault(data, decode=False) for data in videos):
        validate_shard(path, audio="header")
    return videos


def _audio(paths: Sequence[Path], frames: Sequence[pl.DataFrame]) -> pl.Series:
    """The column `audio` of the shards, whose other columns are `frames`, after a look at every header."""
    try:
        audio = mapped_column(paths, AUDIO)
    except LayoutError as error:
        for path in paths:
            validate_shard(path, audio="header")
        raise ShardError(f"{error}; write the shard anew (stage preprocess)") from error
    start = 0
    for path, frame in zip(paths, frames, strict=True):
        heads = audio.slice(start, len(frame)).bin.slice(0, FLAC_HEADER)
        described = zip(heads, frame["sample_rate"], frame["seconds"], strict=True)
        if any(audio_fault(head, rate, seconds, decode=False) for head, rate, seconds in described):
            validate_shard(path, audio="header")
        start += len(frame)
    return audio


def note_ids(seen: dict[str, Path], ids: Iterable[str], path: Path) -> None:
    """Add the `source_id`s of a shard to `seen`; ShardError where one is there already."""
    for source_id in ids:
        if source_id in seen:
            raise ShardError(
                f"{path}: column source_id: {source_id!r} is in {seen[source_id]} too; "
                "a corpus reader must give every utterance an id of its own"
            )
        seen[source_id] = path


def shards_of(folder: Path, split: str) -> list[Path]:
    """The shards of a split, in order.

    Raises:
        ValueError: the folder or the split is missing.
        ShardError: a shard between others is missing.
    """
    present = splits_of(folder)
    paths = sorted(path for path in folder.iterdir() if _split_of(path) == split)
    if not paths:
        raise ValueError(f"{folder}: no split {split!r}; it has: {', '.join(present) or 'no shards'}")
    places = [_place_of(path) for path in paths]
    for (number, further), place in zip([(-1, 0), *places], places, strict=False):
        if place not in ((number + 1, 0), (number, further + 1)):
            missing = (number, further + 1) if place[0] == number else (number + 1, 0)
            raise ShardError(f"{folder}: {shard_name(split, *missing)} is missing; run preprocess anew")
    return paths


def splits_of(folder: Path) -> list[str]:
    """Names of the splits that lie in a folder, sorted.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of shards; run preprocess first")
    return sorted({name for path in folder.iterdir() if (name := _split_of(path)) is not None})


def _place_of(path: Path) -> tuple[int, int]:
    """Number of a shard among those of its split, and among those that go on from it (0: itself)."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match["number"]), int(match["further"] or 0)


def _split_of(path: Path) -> str | None:
    match = _NAME.fullmatch(path.name)
    return match["split"] if match else None
