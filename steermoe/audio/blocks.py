"""Recordings block by block: a file of hours takes the memory of one of seconds.

What a file is, is told by its content, never by its name; a header's length is not believed against the data. Only
formats whose decoders are simple or well tested are admitted (libsndfile's ADPCM readers, for one, have had memory
errors: CVE-2021-3246, CVE-2026-37555).
"""

import io
import itertools
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import soundfile
import soxr

from steermoe.audio.base import (
    MAX_CHANNELS,
    MAX_FILE_RATE,
    MIN_FILE_RATE,
    RATE,
    SUFFIXES,
    AudioError,
    check_samples,
)
from steermoe.audio.mixing import Mixer
from steermoe.audio.parts import Part, View, parts

MAX_SECONDS = 8 * 3600.0  # longest recording that is decoded in blocks
BLOCK_SECONDS = 10.0
MAX_PIPED_BYTES = 2**32  # from what cannot be sought in; it is kept in a file while it is read
FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "AIFF")
SUBTYPES = ("PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW")

Source = Path | str | bytes | BinaryIO


def blocks(
    source: Source,
    max_seconds: float = MAX_SECONDS,
    block_seconds: float = BLOCK_SECONDS,
    track: int | None = None,
) -> Iterator[np.ndarray]:
    """A recording, its channels mixed down, resampled, in blocks of about `block_seconds`.

    All that can be decoded is read: of a file that holds several recordings one behind the other, each.

    Args:
        source: a path (of a pipe, too), the bytes of a file, or a binary file-like object: WAV, FLAC, AIFF, MP3, Ogg
            (Vorbis, Opus), MP4, m4a or mov (AAC, ALAC, PCM), WebM or Matroska, AAC, AMR, CAF.
        max_seconds: longer recordings are refused.
        block_seconds: of a block, at most about.
        track: which audio track of a container, from 1; None: its default, see `containers.frames`.

    Yields:
        (n,) float32 at `RATE`. Resampling may overshoot full scale. Times are those of the container's clock.

    Raises:
        AudioError: the recording is empty, corrupt, truncated, of another format, outside the limits, or holds samples
            that are not finite or of another scale. What is wrong behind the start is found when it is reached.
        OSError: the file cannot be opened.
    """
    name = source_name(source)
    given = read = 0
    with opened_file(source, name) as file:
        frames = _frames(file, name, max_seconds, block_seconds, track)
        for (rate, channels), run in itertools.groupby(frames, lambda frame: (frame[0], frame[1].shape[1])):
            mixer, resampler = Mixer(channels), None if rate == RATE else soxr.ResampleStream(rate, RATE, 1)
            for samples, last in _regrouped(run, max(1, round(block_seconds * rate)), channels):
                check_samples(samples, name, read)
                read += len(samples)
                block = mixer(samples)
                if resampler is not None:
                    block = resampler.resample_chunk(block, last=last)
                given += len(block)
                if len(block):
                    yield block
    if not given:
        raise AudioError(f"{name}: {f'{read} samples are too short to resample' if read else 'no samples'}")


def _regrouped(
    run: Iterator[tuple[int, np.ndarray]], count: int, channels: int
) -> Iterator[tuple[np.ndarray, bool]]:
    """The samples of a run in arrays of at least `count`, and whether they are the last, which may be fewer."""
    waiting: list[np.ndarray] = []
    length = 0
    for _, samples in run:
        waiting.append(samples)
        length += len(samples)
        if length >= count:
            yield np.concatenate(waiting) if len(waiting) > 1 else samples, False
            waiting, length = [], 0
    yield np.concatenate(waiting) if waiting else np.zeros((0, channels), np.float32), True


def _frames(
    file: BinaryIO, name: str, max_seconds: float, block_seconds: float, track: int | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Rate and samples (n, channels) of all recordings in a file, as they are decoded; within the limits."""
    seconds = 0.0
    for part in parts(file, name):
        if part.simple:
            frames = _simple(file, part, name, max_seconds, block_seconds, track)
        else:
            from steermoe.audio import containers  # here, for FFmpeg's libraries are rarely needed

            frames = containers.frames(file, part, name, max_seconds - seconds, track)
        for rate, samples in frames:
            _check_limits(rate, samples.shape[1], name)
            seconds += len(samples) / rate
            if seconds > max_seconds:
                raise AudioError(f"{name}: longer than the {max_seconds:g} s that are allowed; cut it")
            yield rate, samples


class _Forward(soundfile.SoundFile):
    """Never seeks: soundfile does so after every read, and decoders then decode a part again."""

    def seekable(self) -> bool:
        """False."""
        return False


def _simple(
    file: BinaryIO, part: Part, name: str, max_seconds: float, block_seconds: float, track: int | None
) -> Iterator[tuple[int, np.ndarray]]:
    """What libsndfile decodes: WAV, AIFF and FLAC of known length."""
    if track not in (None, 1):
        raise AudioError(f"{name}: no audio track {track}; it has 1")
    try:
        opened = _Forward(cast(BinaryIO, View(file, part)))
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{name}: not readable as audio ({error.error_string})") from error
    with opened:
        if opened.format not in FORMATS or opened.subtype not in SUBTYPES:
            raise AudioError(
                f"{name}: {opened.format} with {opened.subtype} is not admitted; "
                f"convert it to one of {', '.join(FORMATS)} with {', '.join(SUBTYPES)}"
            )
        rate, total = opened.samplerate, opened.frames
        _check_limits(rate, opened.channels, name)
        if total / rate > max_seconds:
            raise AudioError(
                f"{name}: {total / rate:.1f} s by its header, allowed are at most {max_seconds:g}; cut it"
            )
        decoded, count = 0, max(1, round(block_seconds * rate))
        while decoded < total:  # no further: what is behind, as tags, is not FLAC
            wanted = min(count, total - decoded)
            try:
                samples = opened.read(wanted, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise AudioError(f"{name}: corrupt {opened.format} audio ({error.error_string})") from error
            decoded += len(samples)
            yield rate, samples
            if len(samples) < wanted:
                break
    if decoded != total:
        raise AudioError(f"{name}: truncated audio, {decoded} of {total} samples could be decoded")


def _check_limits(rate: int, channels: int, name: str) -> None:
    if not MIN_FILE_RATE <= rate <= MAX_FILE_RATE:
        raise AudioError(f"{name}: sampled at {rate} Hz, allowed are {MIN_FILE_RATE} to {MAX_FILE_RATE}")
    if channels > MAX_CHANNELS:
        raise AudioError(f"{name}: {channels} channels, allowed are 1 to {MAX_CHANNELS}")


def source_name(source: Source) -> str:
    """What a recording is called in messages."""
    if isinstance(source, bytes):
        return f"audio of {len(source)} bytes"
    if isinstance(source, str | Path):
        return str(source)
    name = getattr(source, "name", None)  # of a temporary file, its descriptor: a number
    return name if isinstance(name, str) else "audio stream"


@contextmanager
def opened_file(source: Source, name: str) -> Iterator[BinaryIO]:
    """A source as a file that can be sought in; what comes through a pipe is kept in a temporary one.

    Raises:
        AudioError: it is a device, or more than MAX_PIPED_BYTES come through the pipe.
        OSError: it cannot be opened.
    """
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    if isinstance(source, str | Path):
        mode = Path(source).stat().st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise AudioError(f"{name}: a device, not a recording; give a file or a pipe")
        with Path(source).open("rb") as file, opened_file(file, name) as seekable:
            yield seekable
        return
    if source.seekable():
        yield source
        return
    with tempfile.TemporaryFile() as file:
        while piece := source.read(2**20):
            file.write(piece)
            if file.tell() > MAX_PIPED_BYTES:
                raise AudioError(f"{name}: more than {MAX_PIPED_BYTES} bytes through a pipe; give a file")
        yield file


def is_audio(path: Path) -> bool:
    """Whether a regular file is taken for a recording: by its suffix, else by its content; little of it is read.

    A file with a suffix of audio counts even if it cannot be read, so that whoever reads it is told.
    """
    if path.suffix.lower() in SUFFIXES:
        return True
    from steermoe.audio import containers

    try:
        with path.open("rb") as file:
            return (first := parts(file, str(path))[0]).simple or containers.has_audio(file, first)
    except AudioError:
        return False  # no bytes, or cut and not even named as audio
