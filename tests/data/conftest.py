"""Utterances of tones: rows that fit the schema, cheap to make."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from steermoe.audio import io as waveform
from steermoe.data.schema import SCHEMA, WITH_VIDEO, validate_shard
from steermoe.data.shards import shard_name, write_shard

Row = dict[str, Any]


def tone_row(number: int, split: str = "train", **changed: Any) -> Row:
    """An utterance of 0.1 to 0.5 s; `changed` replaces columns."""
    seconds = 0.1 + 0.1 * (number % 5)
    time = np.arange(round(seconds * waveform.RATE)) / waveform.RATE
    sound = (0.3 * np.sin(2 * np.pi * (200 + 30 * number) * time)).astype(np.float32)
    row = {
        "source_id": f"tones-{split}-{number:04d}",
        "split": split,
        "speaker": f"speaker-{number % 3}",
        "language": "en",
        "task": "transcribe",
        "prompt": "",
        "transcript": f"tone {number}",
        "target": f"tone {number}",
        "answers": [],
        "choices": [],
        "audio": waveform.encode_flac(sound, waveform.RATE),
        "sample_rate": waveform.RATE,
        "seconds": len(sound) / waveform.RATE,
    }
    return row | changed


def frame_of(rows: list[Row]) -> pl.DataFrame:
    """Rows as a frame with the columns of shards."""
    return pl.DataFrame(rows, schema=WITH_VIDEO if "video" in rows[0] else SCHEMA)


def write_shards(
    rows: Iterable[Mapping[str, Any]], folder: Path, split: str, rows_per_shard: int
) -> list[Path]:
    """Write the rows of a split as checked shards; no rows give one empty shard."""
    rows = list(rows)
    paths = []
    for number, start in enumerate(range(0, max(1, len(rows)), rows_per_shard)):
        paths.append(folder / shard_name(split, number))
        write_shard(rows[start : start + rows_per_shard], paths[-1])
        validate_shard(paths[-1], audio="decode")
    return paths


@pytest.fixture
def make_row() -> Callable[..., Row]:
    return tone_row
