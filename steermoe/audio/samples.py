"""Check and convert arrays of samples."""

import numpy as np

from steermoe.audio.augment import RATE

MAX_PEAK = 4.0  # of float samples, whose full scale is 1; more is another scale, most often that of integers


class AudioError(ValueError):
    """A recording cannot be used: empty, corrupt, outside the limits, or not finite."""


def as_floats(samples: np.ndarray) -> np.ndarray:
    """Return samples as float32 with full scale at 1; integers are divided by the largest of their type.

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
    """Raise AudioError where samples (n,) or (n, channels), from `place`, are not finite or of another scale."""
    peak = max(float(samples.max(initial=0)), -float(samples.min(initial=0)))  # NaN if any sample is
    if peak <= MAX_PEAK:
        return
    if np.isfinite(peak):
        raise AudioError(
            f"{name}: a sample of {peak:g}, allowed are floats to {MAX_PEAK:g}, for full scale is 1; "
            "divide samples at the scale of 16-bit integers by 32768"
        )
    wrong = int(np.flatnonzero(~np.isfinite(samples.reshape(len(samples), -1)).all(axis=1))[0])
    values = np.atleast_1d(samples[wrong])
    value = values[~np.isfinite(values)][0]
    raise AudioError(f"{name}: sample {place + wrong} is {value}, expected finite numbers")


def as_waveform(samples: np.ndarray, name: str) -> np.ndarray:
    """Return an array (n,) at RATE, of floats with full scale at 1 or of integers, as a waveform.

    Raises:
        AudioError: it is empty, not one-dimensional, of another type or scale, or not finite; `name` is its name
            in messages.
    """
    if samples.ndim != 1 or not len(samples):
        raise AudioError(f"{name}: an array of shape {samples.shape}; expected (n,), n >= 1, at {RATE} Hz")
    try:
        found = as_floats(samples)
    except AudioError as error:
        raise AudioError(f"{name}: {error}") from None
    check_samples(found, name)
    return found
