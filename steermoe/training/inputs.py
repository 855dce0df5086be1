"""What a stage reads, as MLflow notes it: name, digest and size of every split, and never its content."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from steermoe.data.shards import shards_of
from steermoe.data.skipped import skipped_reason
from steermoe.training.rows import digest


def inputs(shards: Path, splits: Mapping[str, Sequence[str]], context: str) -> list[dict[str, Any]]:
    """Splits {corpus: names} in the folder `shards`, with what they are used for.

    Returns:
        for each name (<corpus>/<split>), digest (SHA-256 of the shards), source (their folder), context, and profile
        (rows and hours); a corpus that was not to be had is left out.
    """
    found = []
    for corpus, names in splits.items():
        folder = shards / corpus
        if not names or skipped_reason(folder) is not None:
            continue
        for split in names:
            paths = shards_of(folder, split)
            seconds = pl.scan_parquet(paths).select(pl.len().alias("rows"), pl.col("seconds").sum()).collect()
            size = {"num_rows": seconds["rows"][0], "hours": round(seconds["seconds"][0] / 3600, 4)}
            found.append(
                {
                    "name": f"{corpus}/{split}",
                    "digest": digest(paths),
                    "source": str(folder.resolve()),
                    "context": context,
                    "profile": size,
                }
            )
    return found
