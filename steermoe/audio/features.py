"""Log-mel features as Whisper hears them (Radford et al. 2022), without its padding to 30 s."""

import numpy as np
import torch
from torch.nn.functional import pad
from transformers.audio_utils import mel_filter_bank

from steermoe.audio.waveform import RATE

WINDOW = 400  # samples: 25 ms
HOP = 160  # samples: 10 ms
FRAMES_PER_SECOND = RATE // HOP


class LogMel:
    """Whisper's log-mel spectrogram of a whole waveform.

    A waveform of N samples has ceil(N / 160) frames, centred on samples 0, 160, ... inside it. They equal the
    first so many frames that `transformers.WhisperFeatureExtractor` gives for the waveform padded with
    silence, those at the end included: these see silence behind the waveform, not its mirror image, and the
    loudest frame, against which Whisper cuts off at 80 dB, is sought behind the end too.

    Args:
        num_mels: mel bands, 80 for Whisper up to large-v2, 128 from large-v3 on.
    """

    def __init__(self, num_mels: int) -> None:
        self.num_mels = num_mels
        filters = mel_filter_bank(
            1 + WINDOW // 2, num_mels, 0.0, 8000.0, RATE, norm="slaney", mel_scale="slaney"
        )
        self._filters_MF = torch.from_numpy(filters).to(torch.float32).T.contiguous()  # mels, frequencies
        self._window = torch.hann_window(WINDOW)

    def num_frames(self, samples: int) -> int:
        """Frames of a waveform of so many samples."""
        return -(-samples // HOP)

    def __call__(self, waveform: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Features (num_mels, T) float32 of a waveform (N,) at 16 kHz.

        Raises:
            ValueError: the waveform is empty, not one-dimensional or not finite.
        """
        samples = torch.as_tensor(waveform, dtype=torch.float32)
        if samples.ndim != 1 or not len(samples):
            raise ValueError(
                f"features of a waveform of shape {tuple(samples.shape)}, expected (N,) with N >= 1"
            )
        # Two windows: then torch.stft's mirroring at the end, which it drops, mirrors nothing but silence.
        silent = pad(samples, (0, 2 * WINDOW))
        spectrum = torch.stft(silent, WINDOW, HOP, window=self._window, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        logarithm = (self._filters_MF @ power).clamp_(min=1e-10).log10_()
        loudest = logarithm.max()
        if not torch.isfinite(loudest):
            raise ValueError(
                "features of a waveform that holds samples that are not finite, or far beyond full scale"
            )
        kept = logarithm[:, : self.num_frames(len(samples))]
        return torch.maximum(kept, loudest - 8.0).add_(4.0).div_(4.0)
