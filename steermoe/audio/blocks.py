"""Recordings block by block: a file of hours takes the memory of one of seconds."""

from collections.abc import Iterator

import numpy as np
import soxr

from steermoe.audio import waveform
from steermoe.audio.waveform import RATE, AudioError, Source

MAX_SECONDS = 8 * 3600.0  # longest recording that is decoded in blocks
BLOCK_SECONDS = 10.0


def blocks(
    source: Source, max_seconds: float = MAX_SECONDS, block_seconds: float = BLOCK_SECONDS
) -> Iterator[np.ndarray]:
    """A recording as `waveform.load` gives it, in blocks of about `block_seconds`.

    Resampling runs through from block to block, so the blocks together are what `load` returns.

    Args:
        source: a path, the bytes of a file, or a binary file-like object.
        max_seconds: longer recordings are refused by their header.
        block_seconds: of a block, at most about.

    Yields:
        (n,) float32 at `RATE`.

    Raises:
        AudioError, OSError: as `waveform.load`; what is wrong behind the header is found when it is reached.
    """
    name = waveform.source_name(source)
    with waveform.opened(source, name, max_seconds, in_blocks=True) as (file, header):
        resampler = None if header.rate == RATE else soxr.ResampleStream(header.rate, RATE, 1)
        count, read, given, last = max(1, round(block_seconds * header.rate)), 0, 0, False
        while not last:
            mono = waveform.mixed(file, count, read, name)
            read += len(mono)
            last = len(mono) < count
            if resampler is not None:
                mono = resampler.resample_chunk(mono, last=last)
            given += len(mono)
            if len(mono):
                yield mono
        waveform.whole(file, read, header, name)
    if not given:
        raise AudioError(f"{name}: {read} samples at {header.rate} Hz are too short to resample")
