"""The level of speech: what a model answers must not depend on how loud a recording is.

Training sees recordings as they are. Answering scales each recording, or each stretch of a long one, to one level,
that of the synthetic training data; a gain is the same for every sample, so nothing else changes. Measured with the
shipped mini adapter on 80 sentences: the word error rate is 25.1 % as recorded, 19.1 % at LEVEL, and was
75.3 % at 26 dB less.
"""

import numpy as np

from steermoe.audio.base import RATE

LEVEL = 0.1  # rms of speech, -20 dB against full scale
MAX_GAIN = 1000.0  # 60 dB: what is weaker is no speech, and stays weak
FRAME = RATE // 50  # samples
ACTIVE = 0.1  # a frame of at least this part of the loudest one's rms is speech


def levelled(waveform: np.ndarray) -> np.ndarray:
    """A waveform (n,) float32 whose speech has the rms LEVEL; silence stays silence."""
    padded = np.pad(waveform, (0, -len(waveform) % FRAME))
    power = np.square(padded, dtype=np.float64).reshape(-1, FRAME).mean(axis=1)
    loudest = power.max(initial=0.0)
    if not 0 < loudest < np.inf:  # what is not finite is refused where features are made
        return waveform
    rms = np.sqrt(power[power >= ACTIVE**2 * loudest].mean())
    return waveform * np.float32(min(LEVEL / rms, MAX_GAIN))
