"""Several channels to one."""

import numpy as np

CANCELS = 0.5  # a sum with less than this part of the energy that unrelated channels would have


class Mixer:
    """The mean of the channels of a recording; where they cancel each other, some are turned over first.

    A microphone wired the wrong way round, or a stereo widening, gives channels of opposite phase, whose mean has
    next to nothing of what was said. Which channels are turned is decided by all of the recording so far.

    Args:
        channels: how many.
    """

    def __init__(self, channels: int) -> None:
        self._covariance_CC = np.zeros((channels, channels))

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """The next samples (n, channels) float32 as (n,)."""
        if samples.shape[1] == 1:
            return samples[:, 0]
        self._covariance_CC += samples.T @ samples
        if self._covariance_CC.sum() >= CANCELS * np.trace(self._covariance_CC):
            return samples.mean(axis=1, dtype=np.float32)
        signs_C = np.sign(np.linalg.eigh(self._covariance_CC)[1][:, -1])  # of what most of the energy is
        signs_C *= signs_C[np.argmax(np.diag(self._covariance_CC))]
        return (samples * signs_C).mean(axis=1, dtype=np.float32)
