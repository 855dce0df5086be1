"""Audio files to waveforms and back. A waveform is 16 kHz, mono, (N,) float32, full scale at 1.

What a file is, is told by its content, never by its name. The header is checked against limits before
anything is decoded, and only formats whose decoders are simple or well tested are admitted (libsndfile's
ADPCM readers, for one, have had memory errors: CVE-2021-3246, CVE-2026-37555). MP4 (m4a) and Matroska (WebM)
go through `containers`, with the same limits.
"""

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import soundfile
import soxr

from steermoe.audio import signatures

if TYPE_CHECKING:
    from steermoe.audio.containers import Container

RATE = 16_000  # Hz, of every waveform in the library
MAX_SECONDS = 3600.0  # longest recording that is decoded
MIN_FILE_RATE, MAX_FILE_RATE = 4_000, 192_000  # Hz
MAX_CHANNELS = 8
MAX_DECODED_BYTES = 2**31  # of a recording as floats, all channels
FLAC_HEADER = 42  # bytes: the marker, and the first metadata block, which is STREAMINFO
FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "AIFF", "OGG", "MP3")
SUBTYPES = (
    *("PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"),
    *("VORBIS", "OPUS", "MPEG_LAYER_III"),
)

Source = Path | str | bytes | BinaryIO


class AudioError(ValueError):
    """A recording cannot be used: empty, corrupt, outside the limits, or not finite."""


@dataclass(frozen=True)
class Header:
    """What a recording says of itself: sampling rate in Hz, channels, samples of each channel."""

    rate: int
    channels: int
    samples: int

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return self.samples / self.rate


def load(source: Source, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """Decode a recording, mix its channels down and resample it.

    Args:
        source: a path, the bytes of a file, or a binary file-like object: WAV, FLAC, AIFF, MP3, Ogg (Vorbis,
            Opus), MP4 or m4a (AAC, ALAC), WebM or Matroska.
        max_seconds: longer recordings are refused before they are decoded.

    Returns:
        (N,) float32 at `RATE`; N is at least 1. Resampling may overshoot full scale.

    Raises:
        AudioError: the recording is empty, corrupt, truncated, of another format, outside the limits, or
            holds samples that are not finite.
        OSError: the file cannot be opened.
    """
    name = source_name(source)
    with opened(source, name, max_seconds) as (file, header):
        samples = _decoded(file, header, name)
    return _resampled(samples, header, name)


def _decoded(file: "soundfile.SoundFile | Container", header: Header, name: str) -> np.ndarray:
    """All samples of an opened file, channels averaged, (N,) float32."""
    mono = mixed(file, -1, 0, name)
    whole(file, len(mono), header, name)
    return mono


def mixed(file: "soundfile.SoundFile | Container", count: int, place: int, name: str) -> np.ndarray:
    """The next `count` samples (all: -1) of an opened file, of which `place` were read; channels averaged.

    Raises:
        AudioError: they are corrupt, or not finite.
    """
    try:
        samples = file.read(count, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{name}: corrupt {file.format} audio ({error.error_string})") from error
    mono = samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        wrong = int(np.argmin(np.isfinite(mono)))
        raise AudioError(f"{name}: sample {place + wrong} is {mono[wrong]}, expected finite numbers")
    return mono


def whole(file: "soundfile.SoundFile | Container", decoded: int, header: Header, name: str) -> None:
    """Raises AudioError where fewer samples could be decoded than the header says; containers see to it themselves."""
    if isinstance(file, soundfile.SoundFile) and decoded != header.samples:
        raise AudioError(f"{name}: truncated audio, {decoded} of {header.samples} samples could be decoded")


def _resampled(mono: np.ndarray, header: Header, name: str) -> np.ndarray:
    """The samples at RATE."""
    if header.rate == RATE:
        return mono
    samples = soxr.resample(mono, header.rate, RATE)
    if not len(samples):
        raise AudioError(f"{name}: {header.samples} samples at {header.rate} Hz are too short to resample")
    return samples


def read_header(source: Source, max_seconds: float = MAX_SECONDS) -> Header:
    """The header of a recording, checked against the limits; nothing is decoded.

    Raises:
        AudioError, OSError: as `load`.
    """
    with opened(source, source_name(source), max_seconds) as (_, header):
        return header


def flac_header(data: bytes) -> Header:
    """The header of a FLAC file by its STREAMINFO (RFC 9639, 8.2); the first FLAC_HEADER bytes will do.

    Raises:
        AudioError: `data` is no FLAC file, or outside the limits.
    """
    name = f"audio of {len(data)} bytes"
    if not data.startswith(b"fLaC"):
        raise AudioError(f"{data[:8]!r}..., not FLAC")
    if len(data) < FLAC_HEADER or data[4] & 0x7F or int.from_bytes(data[5:8], "big") != 34:
        raise AudioError(f"{name}: not readable as audio (FLAC without a STREAMINFO block)")
    packed = int.from_bytes(data[18:26], "big")  # 20 bits rate, 3 channels - 1, 5 bits - 1, 36 samples
    header = Header(packed >> 44, (packed >> 41 & 7) + 1, packed & (2**36 - 1))
    return _within_limits(header, name, MAX_SECONDS)


def as_flac(source: Source, max_seconds: float = MAX_SECONDS) -> tuple[bytes, float]:
    """A recording as a mono FLAC file at `RATE`, 16 bits, and its length in seconds.

    A file that is that already is decoded to the end, to see that it is whole, and kept as it is.

    Raises:
        AudioError, OSError: as `load`.
    """
    name = source_name(source)
    with opened(source, name, max_seconds) as (file, header):
        kept = (file.format, file.subtype, header.rate, header.channels) == ("FLAC", "PCM_16", RATE, 1)
        samples = _decoded(file, header, name)
    if kept:
        with _stream(source) as stream:
            stream.seek(0)
            data = stream.read()
        if data.startswith(b"fLaC"):  # else there is a tag of another kind before it
            return data, header.seconds
    waveform = _resampled(samples, header, name)
    return encode_flac(waveform, RATE), len(waveform) / RATE


def encode_flac(waveform: np.ndarray, rate: int) -> bytes:
    """The bytes of a 16-bit mono FLAC file; the same waveform gives the same bytes.

    Args:
        waveform: (N,) floats, full scale at 1. Overshoot, as resampling causes, is clipped.
        rate: samples a second.

    Raises:
        AudioError: the waveform is empty, not one-dimensional, not finite, or of another scale.
    """
    if waveform.ndim != 1 or not len(waveform):
        raise AudioError(f"a waveform of shape {waveform.shape} cannot be encoded, expected (N,) with N >= 1")
    if not np.issubdtype(waveform.dtype, np.floating):
        raise AudioError(f"a waveform of {waveform.dtype} cannot be encoded, expected floats in [-1, 1]")
    peak = float(np.abs(waveform).max())
    if not peak < 4:  # NaN fails too. No resampling overshoots so far: the waveform is wrong
        raise AudioError(f"a waveform with a peak of {peak:g} cannot be encoded, expected floats in [-1, 1]")
    # Rounded here, not by libsndfile, so that decoding and encoding again changes nothing.
    integers = np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, integers, rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def source_name(source: Source) -> str:
    """What a recording is called in messages."""
    if isinstance(source, bytes):
        return f"audio of {len(source)} bytes"
    if isinstance(source, str | Path):
        return str(source)
    name = getattr(source, "name", None)  # of a temporary file, its descriptor: a number
    return name if isinstance(name, str) else "audio stream"


def _stream(source: Source) -> AbstractContextManager[BinaryIO]:
    if isinstance(source, str | Path):
        return Path(source).open("rb")
    return nullcontext(io.BytesIO(source) if isinstance(source, bytes) else source)


class _Forward(soundfile.SoundFile):
    """Never seeks: soundfile does so after every read, and an MP3 decoder loses a frame by it."""

    def seekable(self) -> bool:
        return False


@contextmanager
def opened(
    source: Source, name: str, max_seconds: float, in_blocks: bool = False
) -> "Iterator[tuple[soundfile.SoundFile | Container, Header]]":
    """A recording, open for reading, and its header, which is within the limits.

    With `in_blocks`, it is read forward only, and its decoded size does not matter.
    """
    with _stream(source) as stream:
        start = stream.read(12)
        if not start:
            raise AudioError(f"{name}: empty, 0 bytes")
        if kind := signatures.undecodable(start):
            raise AudioError(
                f"{name}: {kind} is not admitted; convert it first, for instance by "
                "`ffmpeg -i <file> -ac 1 -ar 16000 <file>.flac`"
            )
        if kind := signatures.demuxer(start):
            with _container(stream, kind, name) as container:
                header = Header(container.samplerate, container.channels, container.frames)
                yield container, _within_limits(header, name, max_seconds, in_blocks)
            return
        tagged = signatures.tells_mp3_length(stream, start)
        stream.seek(0)
        try:
            file = (_Forward if in_blocks else soundfile.SoundFile)(stream)
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"{name}: not readable as audio ({error.error_string}); expected one of {', '.join(FORMATS)}"
            ) from error
        with file:
            if file.format == "MP3" and not tagged:
                raise AudioError(
                    f"{name}: MP3 without a Xing, Info or VBRI header, so its length is a guess; "
                    "convert it to FLAC"
                )
            yield file, _check(file, name, max_seconds, in_blocks)


@contextmanager
def _container(stream: BinaryIO, demuxer: str, name: str) -> "Iterator[Container]":
    """A container, open for reading; what is wrong with it is said as of other files."""
    from steermoe.audio import containers  # here, for FFmpeg's libraries are rarely needed

    try:
        with containers.Container(stream, demuxer) as container:
            yield container
    except containers.ContainerError as error:
        raise AudioError(f"{name}: {error}") from error


def _check(file: soundfile.SoundFile, name: str, max_seconds: float, in_blocks: bool) -> Header:
    """The header of an opened file, if it is within the limits."""
    if file.format not in FORMATS or file.subtype not in SUBTYPES:
        raise AudioError(
            f"{name}: {file.format} with {file.subtype} is not admitted; "
            f"convert it to one of {', '.join(FORMATS)} with {', '.join(SUBTYPES)}"
        )
    header = Header(file.samplerate, file.channels, file.frames)
    return _within_limits(header, name, max_seconds, in_blocks)


def _within_limits(header: Header, name: str, max_seconds: float, in_blocks: bool = False) -> Header:
    if not MIN_FILE_RATE <= header.rate <= MAX_FILE_RATE:
        raise AudioError(
            f"{name}: sampled at {header.rate} Hz, allowed are {MIN_FILE_RATE} to {MAX_FILE_RATE}"
        )
    if header.channels > MAX_CHANNELS:
        raise AudioError(f"{name}: {header.channels} channels, allowed are 1 to {MAX_CHANNELS}")
    if header.samples < 1:
        raise AudioError(f"{name}: no samples")
    if header.seconds > max_seconds:
        raise AudioError(
            f"{name}: {header.seconds:.1f} s by its header, allowed are at most {max_seconds:g}; cut it"
        )
    size = 4 * header.samples * header.channels
    if size > MAX_DECODED_BYTES and not in_blocks:
        raise AudioError(
            f"{name}: {size >> 20} MiB decoded, allowed are {MAX_DECODED_BYTES >> 20}; mix it down or resample it"
        )
    return header
