"""What training and test splits share: recordings and speakers."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from steermoe.audio.io import FLAC_HEADER
from steermoe.data.shards import read_rows

SHOWN = 3  # names in a message
NOBODY = ("unknown", "none")  # speakers who are not told apart
MD5 = 26  # where a FLAC file says the checksum of its samples, to the end of its first header


def overlap(folder: Path, train: Sequence[str], test: Sequence[str]) -> str:
    """A line on the recordings and speakers of the test splits that are in the training splits, too; "" of none.

    Recordings are the same where their samples are; rows of several questions about one count once.

    Args:
        folder: of a corpus' shards.
    """
    columns = ("source_id", "speaker", "audio")
    trained, tested = (
        read_rows(folder, splits, columns)
        .with_columns(pl.col("audio").bin.slice(MD5, FLAC_HEADER - MD5).alias("samples"))
        .select("source_id", "speaker", "samples")
        for splits in (train, test)
    )
    told = tested.filter(pl.col("samples") != bytes(FLAC_HEADER - MD5))  # else the file does not say
    same = told.filter(pl.col("samples").is_in(trained["samples"].implode())).unique(
        "samples", maintain_order=True
    )
    speakers = sorted(set(tested["speaker"]) & set(trained["speaker"]) - set(NOBODY))
    found = [
        f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for kind, names in (("recordings", same["source_id"].to_list()), ("speakers", speakers))
        if names
    ]
    if not found:
        return ""
    return (
        f"test splits {', '.join(test)} share with training splits {', '.join(train)}: {' and '.join(found)}"
    )
