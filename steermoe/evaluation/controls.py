"""What a system is given to hear: each row's own audio, or, as a control, another row's."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl


def own_audio(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Every row with its own audio; adds the column `heard`."""
    return frame.with_columns(pl.col("source_id").alias("heard"))


def shuffled_audio(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Every row with the audio of another row of its split, prompt and target kept: what chance gets right.

    A split of one row has no other audio and is left out.
    """
    parts = []
    for rows in own_audio(frame, seed).partition_by("split", maintain_order=True):
        if len(rows) > 1:
            donors = rows[derangement(rows["transcript"].to_list(), seed)]
            parts.append(rows.with_columns(donors.select("audio", "sample_rate", "seconds", "heard")))
    return pl.concat(parts) if parts else own_audio(frame.clear(), seed)


def derangement(transcripts: Sequence[str], seed: int) -> np.ndarray:
    """For each row another row, drawn once for the seed; every row is given away exactly once.

    No row gets another recording of its own words, unless one transcript fills more than half of the rows.
    """
    count = len(transcripts)
    order = np.random.default_rng(seed).permutation(count)
    rank = {text: place for place, text in enumerate(dict.fromkeys(transcripts[row] for row in order))}
    # Equal transcripts side by side in a circle: a turn by the largest group's size leads out of every group.
    circle = np.array(sorted(order, key=lambda row: rank[transcripts[row]]), dtype=np.int64)
    largest = max(Counter(transcripts).values(), default=0)
    donors = np.empty(count, dtype=np.int64)
    donors[circle] = np.roll(circle, -min(largest, max(1, count // 2)))
    return donors


AUDIO: dict[str, Callable[[pl.DataFrame, int], pl.DataFrame]] = {"own": own_audio, "shuffled": shuffled_audio}
