"""What all of `steermoe.audio` shares: the sampling rate, the limits, the error, and arrays as waveforms."""

import numpy as np

RATE = 16_000  # Hz, of every waveform in the library
MIN_FILE_RATE, MAX_FILE_RATE = 4_000, 192_000  # Hz
MAX_CHANNELS = 8
MAX_PEAK = 4.0  # of float samples, whose full scale is 1; more is another scale, most often that of integers
SUFFIXES = frozenset(
    ".wav .wave .flac .mp3 .ogg .oga .opus .aif .aiff .aifc .m4a .m4b .mp4 .m4v .mov .3gp .3g2 .aac .amr .caf "
    ".webm .mkv .mka .w64 .rf64 .wma .sph .au .wv".split()
)  # of files that are taken for audio whatever is in them; the reader decides by content alone


class AudioError(ValueError):
    """A recording cannot be used: empty, corrupt, outside the limits, or not finite."""


def as_floats(samples: np.ndarray) -> np.ndarray:
    """Samples as float32 with full scale at 1; integers are divided by the largest of their type.

    Raises:
        AudioError: they are neither floats nor int16, int32 or uint8.
    """
    if np.issubdtype(samples.dtype, np.floating):
        return samples.astype(np.float32, copy=False)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype in (np.int16, np.int32):
        return samples.astype(np.float32) / np.float32(-float(np.iinfo(samples.dtype).min))
    raise AudioError(
        f"samples of {samples.dtype}; expected floats with full scale at 1, int16, int32 or uint8"
    )


def check_samples(samples: np.ndarray, name: str, place: int = 0) -> None:
    """Raises AudioError where samples (n,) or (n, channels), from `place`, are not finite or of another scale."""
    if not samples.size:
        return
    peak = max(float(samples.max()), -float(samples.min()))  # NaN if any sample is
    if peak <= MAX_PEAK:
        return
    flat = samples if samples.ndim == 1 else samples[np.arange(len(samples)), np.abs(samples).argmax(axis=1)]
    if not np.isfinite(peak):
        wrong = int(np.argmin(np.isfinite(flat)))
        raise AudioError(f"{name}: sample {place + wrong} is {flat[wrong]}, expected finite numbers")
    raise AudioError(
        f"{name}: a sample of {peak:g}, allowed are floats to {MAX_PEAK:g}, for full scale is 1; "
        "divide samples at the scale of 16-bit integers by 32768"
    )


def as_waveform(samples: np.ndarray, name: str) -> np.ndarray:
    """An array as a waveform (n,) float32 at RATE.

    Args:
        samples: (n,) at RATE: floats with full scale at 1, or int16, int32 or uint8.
        name: what it is called in messages.

    Raises:
        AudioError: it is empty, not one-dimensional, of another type or scale, or not finite.
    """
    if samples.ndim != 1 or not len(samples):
        raise AudioError(f"{name}: an array of shape {samples.shape}; expected (n,), n >= 1, at {RATE} Hz")
    try:
        found = as_floats(samples)
    except AudioError as error:
        raise AudioError(f"{name}: {error}") from None
    check_samples(found, name)
    return found
