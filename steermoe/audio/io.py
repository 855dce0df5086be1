"""Read and write recordings. A waveform is 16 kHz, mono, (N,) float32, with full scale at 1.

The content of a file decides what it is, not its name (but for G.722, which has no header), and the length in a header
is compared with the data.
libsndfile (as in librosa) decodes WAV, AIFF and FLAC, FFmpeg the rest. Only formats whose decoders are simple or
well tested are read: libsndfile's ADPCM readers, for one, had memory errors (CVE-2021-3246, CVE-2026-37555).
"""

import io
import itertools
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import librosa
import numpy as np
import soundfile
import soxr

from steermoe.audio import containers
from steermoe.audio.augment import RATE, Mixer
from steermoe.audio.samples import AudioError, as_waveform, check_samples

MIN_FILE_RATE, MAX_FILE_RATE = 4_000, 192_000  # Hz
MAX_CHANNELS = 8
MAX_SECONDS = 3600.0  # longest recording that is loaded whole
MAX_STREAMED_SECONDS = 8 * 3600.0  # longest recording that is decoded in blocks
BLOCK_SECONDS = 10.0
TAG_BYTES = 2**16  # bytes after a recording that are taken for tags
SUFFIXES = frozenset(
    ".wav .wave .flac .mp3 .ogg .oga .opus .aif .aiff .aifc .m4a .m4b .mp4 .m4v .mov .3gp .3g2 .aac .amr .caf "
    ".webm .mkv .mka .w64 .rf64 .wma .sph .au .wv .g722".split()
)  # of files that count as audio whatever is in them
SUBTYPES = ("PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW")
SNDFILE = re.compile(
    rb"(?:RIFF|RF64).{4}WAVE|FORM.{4}AIF[FC]|fLaC", re.DOTALL
)  # formats that libsndfile decodes
READ_AHEAD = 2**16  # bytes that libFLAC reads beyond the end, at most
FLAC_HEADER = 42  # bytes: the marker, and the first metadata block, which is STREAMINFO
Source = Path | str | bytes | BinaryIO
log = logging.getLogger(__name__)


def load(source: Source, max_seconds: float = MAX_SECONDS, track: int | None = None) -> np.ndarray:
    """Decode a recording, mix its channels down and resample it.

    All that can be decoded is read, of joined MP3, Ogg and WebM files every part.

    Args:
        source: a path (also of a pipe), the bytes of a file, or a binary file-like object.
        max_seconds: longer recordings are refused.
        track: which audio track of a container, from 1; None: its default, or the first that is not silent.

    Returns:
        (N,) float32 at `RATE`; N is at least 1. Resampling may overshoot full scale.

    Raises:
        AudioError: the recording is empty, corrupt, truncated, of another format, outside the limits, or
            holds samples that are not finite or of another scale.
        OSError: the file cannot be opened.
    """
    resampled = [np.zeros(0, np.float32)]
    for rate, run in _runs(source, max_seconds, BLOCK_SECONDS, track):
        samples = np.concatenate(list(run))
        if rate != RATE:
            samples = librosa.resample(samples, orig_sr=rate, target_sr=RATE, res_type="soxr_hq", fix=False)
        resampled.append(samples)
    return _some(np.concatenate(resampled), source)


def blocks(
    source: Source | np.ndarray,
    max_seconds: float = MAX_STREAMED_SECONDS,
    block_seconds: float = BLOCK_SECONDS,
    track: int | None = None,
) -> Iterator[np.ndarray]:
    """Decode as `load`, in blocks (n,) of about `block_seconds`: hours take the memory of seconds.

    A waveform (N,) at RATE is checked and cut into such blocks.

    Raises:
        AudioError, OSError: as `load`; what is wrong after the start is found when it is reached.
    """
    if isinstance(source, np.ndarray):
        samples, count = as_waveform(source, "a waveform"), round(block_seconds * RATE)
        yield from (samples[first : first + count] for first in range(0, len(samples), count))
        return
    given = np.zeros(0, np.float32)
    for rate, run in _runs(source, max_seconds, block_seconds, track):
        if rate == RATE:
            for given in run:
                yield given
            continue
        resampler = soxr.ResampleStream(rate, RATE, 1)  # librosa's own has no blocks
        for block in itertools.chain(run, [None]):
            last = block is None
            resampled = resampler.resample_chunk(np.zeros(0, np.float32) if last else block, last=last)
            if len(resampled):
                yield (given := resampled)
    _some(given, source)


def _some(samples: np.ndarray, source: Source) -> np.ndarray:
    if not len(samples):
        raise AudioError(f"{source_name(source)}: no samples, or too few to resample")
    return samples


def _runs(
    source: Source, max_seconds: float, block_seconds: float, track: int | None
) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    """Yield runs of one rate and number of channels: the rate, and mono blocks of about `block_seconds`."""
    name = source_name(source)
    with opened_file(source, name) as file:
        frames = _frames(file, name, max_seconds, block_seconds, track)
        for (rate, channels), run in itertools.groupby(frames, lambda frame: (frame[0], frame[1].shape[1])):
            yield rate, _mixed(run, round(block_seconds * rate), channels)


def _mixed(run: Iterator[tuple[int, np.ndarray]], count: int, channels: int) -> Iterator[np.ndarray]:
    """Yield the samples of a run in blocks of at least `count`, the last may have fewer, mixed down."""
    mixer, waiting = Mixer(channels), []
    for _, samples in run:
        waiting.append(samples)
        if sum(map(len, waiting)) >= count:
            yield mixer(np.concatenate(waiting))
            waiting = []
    if waiting:
        yield mixer(np.concatenate(waiting))


def _frames(
    file: BinaryIO, name: str, max_seconds: float, block_seconds: float, track: int | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield rate and samples (n, channels) of a file as they are decoded, within the limits."""
    size, end = file.seek(0, os.SEEK_END), containers.declared_end(file)
    if not size:
        raise AudioError(f"{name}: empty, 0 bytes")
    if end is not None and end > size + 1:  # a last byte that is padding may be missing
        raise AudioError(f"{name}: truncated audio, {size} of {end} bytes are there")
    opened = _opened(file, name)
    if opened is None:
        frames = containers.frames(file, name, max_seconds, track)
    elif track not in (None, 1):
        raise AudioError(f"{name}: no audio track {track}; it has 1")
    else:
        frames = _decoded(opened, file, name, max_seconds, block_seconds)
        if end is not None and size - end > TAG_BYTES:
            log.warning("%s: %d bytes after the audio are not read", name, size - end)
    seconds, read = 0.0, 0
    for rate, samples in frames:
        _check_limits(rate, samples.shape[1], name)
        check_samples(samples, name, read)
        read += len(samples)
        seconds += len(samples) / rate
        if seconds > max_seconds:
            raise AudioError(f"{name}: longer than the {max_seconds:g} s that are allowed; cut it")
        yield rate, samples


class _Forward(soundfile.SoundFile):
    """Never seeks: soundfile does so after every read, and decoders then decode a part again."""

    def seekable(self) -> bool:
        return False


def _opened(file: BinaryIO, name: str) -> soundfile.SoundFile | None:
    """Return a file as libsndfile opens it; None where it is another format, or its header has no length."""
    file.seek(0)
    known = SNDFILE.match(file.read(12))
    file.seek(0)
    if not known:
        return None
    try:
        opened = _Forward(file)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{name}: not readable as audio ({error.error_string})") from error
    if opened.subtype not in SUBTYPES:
        raise AudioError(
            f"{name}: {opened.format} with {opened.subtype} is not admitted; convert it to {', '.join(SUBTYPES)}"
        )
    return opened if 0 < opened.frames < 2**60 else None


def _decoded(
    opened: soundfile.SoundFile, file: BinaryIO, name: str, max_seconds: float, block_seconds: float
) -> Iterator[tuple[int, np.ndarray]]:
    rate, total, decoded = opened.samplerate, opened.frames, 0
    _check_limits(rate, opened.channels, name)
    if total / rate > max_seconds:
        raise AudioError(
            f"{name}: {total / rate:.1f} s by its header, allowed are at most {max_seconds:g}; cut it"
        )
    count = max(1, round(block_seconds * rate))
    while decoded < total:  # no further: tags may follow
        try:
            samples = opened.read(min(total - decoded, count), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{name}: corrupt {opened.format} audio ({error.error_string})") from error
        if not len(samples):
            raise AudioError(f"{name}: truncated audio, {decoded} of {total} samples could be decoded")
        decoded += len(samples)
        yield rate, samples
    file.seek(max(FLAC_HEADER, file.tell() - READ_AHEAD))
    if opened.format == "FLAC" and b"fLaC\0\0\0\x22" in file.read():
        raise AudioError(f"{name}: several FLAC recordings one after the other; give each a file of its own")


def _check_limits(rate: int, channels: int, name: str) -> None:
    if not MIN_FILE_RATE <= rate <= MAX_FILE_RATE:
        raise AudioError(f"{name}: sampled at {rate} Hz, allowed are {MIN_FILE_RATE} to {MAX_FILE_RATE}")
    if channels > MAX_CHANNELS:
        raise AudioError(f"{name}: {channels} channels, allowed are 1 to {MAX_CHANNELS}")


def source_name(source: Source) -> str:
    """Return what a recording is called in messages."""
    if isinstance(source, bytes):
        return f"audio of {len(source)} bytes"
    if isinstance(source, str | Path):
        return str(source)
    name = getattr(source, "name", None)  # of a temporary file, its descriptor: a number
    return name if isinstance(name, str) else "audio stream"


@contextmanager
def opened_file(source: Source, name: str) -> Iterator[BinaryIO]:
    """Open a source as a seekable file; a pipe is copied into a temporary one.

    Raises:
        AudioError: it is a device.
        OSError: it cannot be opened.
    """
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, str | Path):
        mode = Path(source).stat().st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise AudioError(f"{name}: a device, not a recording; give a file or a pipe")
        with Path(source).open("rb") as file, opened_file(file, name) as seekable:
            yield seekable
    elif source.seekable():
        yield source
    else:
        with tempfile.TemporaryFile() as file:
            shutil.copyfileobj(source, file)
            yield file


def is_audio(path: Path) -> bool:
    """Return whether a regular file counts as a recording: by its suffix, else by its content.

    A file with a suffix of audio counts even if it cannot be read, so that reading it reports the error.
    """
    if path.suffix.lower() in SUFFIXES:
        return True
    with path.open("rb") as file:
        return containers.has_audio(file)


@dataclass(frozen=True)
class Header:
    """What a FLAC file says of itself: sampling rate in Hz, channels, samples of each channel, bits of a sample."""

    rate: int
    channels: int
    samples: int
    bits: int = 16

    @property
    def seconds(self) -> float:
        """Return the length of the recording."""
        return self.samples / self.rate


def flac_header(data: bytes) -> Header:
    """Read the header of a FLAC file, its STREAMINFO (RFC 9639, 8.2); the first FLAC_HEADER bytes are enough.

    Raises:
        AudioError: `data` is not a FLAC file, or its header has no length.
    """
    if not data.startswith(b"fLaC"):
        raise AudioError(f"{data[:8]!r}..., not FLAC")
    if len(data) < FLAC_HEADER or data[4] & 0x7F or int.from_bytes(data[5:8], "big") != 34:
        raise AudioError(
            f"audio of {len(data)} bytes: not readable as audio (FLAC without a STREAMINFO block)"
        )
    packed = int.from_bytes(data[18:26], "big")  # 20 bits rate, 3 channels - 1, 5 bits - 1, 36 samples
    header = Header(packed >> 44, (packed >> 41 & 7) + 1, packed & (2**36 - 1), (packed >> 36 & 31) + 1)
    if not header.samples or not header.rate:
        raise AudioError(f"audio of {len(data)} bytes: FLAC whose header has no length")
    return header


def as_flac(source: Source) -> tuple[bytes, float]:
    """Return a recording as a mono FLAC file at `RATE`, 16 bits, and its length in seconds.

    A file that is that already is decoded to the end, to see that it is whole, and kept as it is.

    Raises:
        AudioError, OSError: as `load`.
    """
    with opened_file(source, source_name(source)) as file:
        waveform = load(file)
        file.seek(0)
        start = file.read(FLAC_HEADER)
        try:
            if flac_header(start) == Header(RATE, 1, len(waveform), 16):
                return start + file.read(), len(waveform) / RATE
        except AudioError:
            pass
    return encode_flac(waveform, RATE), len(waveform) / RATE


def encode_flac(waveform: np.ndarray, rate: int) -> bytes:
    """Encode a waveform (N,) of floats as a 16-bit mono FLAC file; the same waveform gives the same bytes.

    Overshoot, as resampling causes, is clipped.

    Raises:
        AudioError: the waveform is empty, not one-dimensional, not finite, or of another scale.
    """
    if not np.issubdtype(waveform.dtype, np.floating):
        raise AudioError(f"a waveform of {waveform.dtype} cannot be encoded, expected floats in [-1, 1]")
    as_waveform(waveform, "a waveform to encode")
    # Rounded here, not by libsndfile, so that decoding and encoding again changes nothing.
    integers = np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, integers, rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()
