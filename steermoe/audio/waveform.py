"""Audio files to waveforms and back. A waveform is 16 kHz, mono, (N,) float32, full scale at 1."""

import io
from dataclasses import dataclass

import numpy as np
import soundfile

from steermoe.audio.base import MAX_PEAK, RATE, AudioError
from steermoe.audio.blocks import Source, blocks, opened_file, source_name

MAX_SECONDS = 3600.0  # longest recording that is decoded
FLAC_HEADER = 42  # bytes: the marker, and the first metadata block, which is STREAMINFO


@dataclass(frozen=True)
class Header:
    """What a FLAC file says of itself: sampling rate in Hz, channels, samples of each channel, bits of a sample."""

    rate: int
    channels: int
    samples: int
    bits: int = 16

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return self.samples / self.rate


def load(source: Source, max_seconds: float = MAX_SECONDS, track: int | None = None) -> np.ndarray:
    """Decode a recording, mix its channels down and resample it: all of `blocks.blocks`.

    Args:
        source: a path, the bytes of a file, or a binary file-like object.
        max_seconds: longer recordings are refused.
        track: which audio track of a container, from 1; None: its default.

    Returns:
        (N,) float32 at `RATE`; N is at least 1. Resampling may overshoot full scale.

    Raises:
        AudioError: the recording is empty, corrupt, truncated, of another format, outside the limits, or
            holds samples that are not finite or of another scale.
        OSError: the file cannot be opened.
    """
    found = list(blocks(source, max_seconds, track=track))
    return np.concatenate(found) if len(found) > 1 else found[0]


def flac_header(data: bytes) -> Header:
    """The header of a FLAC file by its STREAMINFO (RFC 9639, 8.2); the first FLAC_HEADER bytes will do.

    Raises:
        AudioError: `data` is no FLAC file, or its header tells no length.
    """
    name = f"audio of {len(data)} bytes"
    if not data.startswith(b"fLaC"):
        raise AudioError(f"{data[:8]!r}..., not FLAC")
    if len(data) < FLAC_HEADER or data[4] & 0x7F or int.from_bytes(data[5:8], "big") != 34:
        raise AudioError(f"{name}: not readable as audio (FLAC without a STREAMINFO block)")
    packed = int.from_bytes(data[18:26], "big")  # 20 bits rate, 3 channels - 1, 5 bits - 1, 36 samples
    header = Header(packed >> 44, (packed >> 41 & 7) + 1, packed & (2**36 - 1), (packed >> 36 & 31) + 1)
    if not header.samples or not header.rate:
        raise AudioError(f"{name}: FLAC whose header tells no length")
    return header


def as_flac(source: Source, max_seconds: float = MAX_SECONDS) -> tuple[bytes, float]:
    """A recording as a mono FLAC file at `RATE`, 16 bits, and its length in seconds.

    A file that is that already is decoded to the end, to see that it is whole, and kept as it is.

    Raises:
        AudioError, OSError: as `load`.
    """
    with opened_file(source, source_name(source)) as file:
        waveform = load(file, max_seconds)
        file.seek(0)
        start = file.read(FLAC_HEADER)
        try:
            kept = flac_header(start) == Header(RATE, 1, len(waveform), 16)
        except AudioError:
            kept = False
        if kept:
            return start + file.read(), len(waveform) / RATE
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
    if not peak < MAX_PEAK:  # NaN fails too. No resampling overshoots so far: the waveform is wrong
        raise AudioError(f"a waveform with a peak of {peak:g} cannot be encoded, expected floats in [-1, 1]")
    # Rounded here, not by libsndfile, so that decoding and encoding again changes nothing.
    integers = np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, integers, rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()
