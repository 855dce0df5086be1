"""Noise and reverberation for synthetic speech. Everything takes and returns (N,) float32 waveforms."""

import numpy as np
from scipy.signal import fftconvolve

COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0}  # spectral power falls as 1 / f ** exponent


def noise(rng: np.random.Generator, samples: int, colour: str) -> np.ndarray:
    """Coloured Gaussian noise of zero mean and unit rms, shaped in the frequency domain."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum[0] = 0
    frequency = np.maximum(np.fft.rfftfreq(samples), 1 / samples)
    shaped = np.fft.irfft(spectrum * frequency ** (-COLOURS[colour] / 2), samples)
    return (shaped / shaped.std()).astype(np.float32)


def add_noise(rng: np.random.Generator, waveform: np.ndarray, snr_db: float) -> np.ndarray:
    """Add noise of a random colour at `snr_db` against the rms of the whole waveform."""
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    rms = float(np.sqrt(np.mean(waveform**2)))
    return waveform + rms * 10 ** (-snr_db / 20) * noise(rng, len(waveform), colour)


def reverberate(rng: np.random.Generator, waveform: np.ndarray, rate: int, rt60: float) -> np.ndarray:
    """Convolve with a synthetic room: a direct path and a decaying Gaussian tail that falls 60 dB in `rt60` s.

    The tail's energy equals 0.5 to 1.0 of the direct path's; the length of the waveform is kept, so that the
    words stay where they were.
    """
    seconds = np.arange(int(rt60 * rate)) / rate
    tail = rng.standard_normal(len(seconds)) * 10 ** (-3 * seconds / rt60)
    tail *= rng.uniform(0.5, 1.0) / np.sqrt(np.sum(tail**2))
    response = np.concatenate([[1.0], np.zeros(int(0.004 * rate)), tail])
    return fftconvolve(waveform, response)[: len(waveform)].astype(np.float32)


def normalise_peak(waveform: np.ndarray, peak: float) -> np.ndarray:
    """Scale so that the largest magnitude is `peak`; silence stays silence."""
    largest = float(np.abs(waveform).max(initial=0.0))
    return waveform * (peak / largest) if largest else waveform
