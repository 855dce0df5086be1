"""What a system is given to hear and to see: each row's own audio and video, or, as a control, something else."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from steermoe.audio import io as waveform
from steermoe.data import video


def own_audio(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Every row with its own audio; adds the column `heard`."""
    return frame.with_columns(pl.col("source_id").alias("heard"))


def shuffled_audio(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Every row with the audio of another row of its split, prompt and target kept: what chance gets right.

    The other row may have another task: one to transcribe may get the recording of a question. A split of one row
    has no other audio and is left out.
    """
    parts = []
    for rows in own_audio(frame, seed).partition_by("split", maintain_order=True):
        if len(rows) > 1:
            donors = rows[derangement(rows["transcript"].to_list(), seed)]
            parts.append(rows.with_columns(donors.select("audio", "sample_rate", "seconds", "heard")))
    return pl.concat(parts) if parts else own_audio(frame.clear(), seed)


def silent_audio(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Every row with silence as long as its audio: what the video alone gets right."""
    silence = [
        waveform.encode_flac(np.zeros(round(s * waveform.RATE), np.float32), waveform.RATE)
        for s in frame["seconds"]
    ]
    return frame.with_columns(pl.Series("audio", silence, pl.Binary), pl.lit("silence").alias("heard"))


def blank_video(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Every row with a black video as long as its own: what the audio alone gets right."""
    black = [video.encode(np.zeros((*video.shape(data), 3), np.uint8)) for data in frame["video"]]
    return own_audio(frame, seed).with_columns(pl.Series("video", black, pl.Binary))


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


Control = Callable[[pl.DataFrame, int], pl.DataFrame]
AUDIO: dict[str, Control] = {"own": own_audio, "shuffled": shuffled_audio}
VIDEO: dict[str, Control] = {
    "silent": silent_audio,
    "blank": blank_video,
}  # of models with a video branch, too
