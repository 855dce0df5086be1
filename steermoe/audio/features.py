"""Compute what a speech encoder takes of a waveform: log-mel spectrograms, Kaldi's filter banks, a library's features.

Shapes: N samples, M channels, T frames, F frequencies, W samples of a window.
"""

from typing import Any, Protocol

import librosa
import numpy as np
import torch
from torch.nn.functional import pad
from transformers.audio_utils import mel_filter_bank

from steermoe.audio.io import RATE

WINDOW = 400  # samples: 25 ms
HOP = 160  # samples: 10 ms
FRAMES_PER_SECOND = RATE // HOP
KALDI_FFT = 512  # the window, padded with zeros to a power of two
EPSILON = float(np.finfo(np.float32).eps)  # Kaldi takes no logarithm of less


class Features(Protocol):
    """What every kind of features offers.

    Attributes:
        channels: M; mel bands, or 1 where the encoder takes the waveform itself; of video, the values of a frame.
    """

    channels: int

    def __call__(self, waveform: np.ndarray | torch.Tensor, /) -> torch.Tensor:
        """Return features (M, T) float32, unpadded, of a waveform (N,) at 16 kHz; of video, of its T frames.

        Raises:
            ValueError: the waveform is too short for a frame, not one-dimensional or not finite.
        """
        ...


class LogMel:
    """Whisper's log-mel spectrogram of a whole waveform (Radford et al. 2022), without its padding to 30 s.

    A waveform of N samples has ceil(N / 160) frames, centred on samples 0, 160, ... inside it. They equal the
    first frames that `transformers.WhisperFeatureExtractor` gives for the waveform padded with silence, the last
    ones included: these see silence after the waveform, not its mirror image, and the loudest frame, against which
    Whisper cuts off at 80 dB, may be after the end, too.

    Args:
        num_mels: mel bands, 80 for Whisper up to large-v2, 128 from large-v3 on.
        tail: number of additional frames, centred after the end; with 2, all frames that see a sample.
    """

    def __init__(self, num_mels: int, tail: int = 0) -> None:
        self.channels, self.tail = num_mels, tail
        filters = librosa.filters.mel(sr=RATE, n_fft=WINDOW, n_mels=num_mels, dtype=np.float64)
        self._filters_MF = torch.from_numpy(filters).to(torch.float32).contiguous()
        self._window = torch.hann_window(WINDOW)

    def num_frames(self, samples: int) -> int:
        """Return the number of frames of a waveform."""
        return -(-samples // HOP) + self.tail

    def __call__(self, waveform: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Return features (num_mels, T), see `Features`."""
        samples = _samples(waveform, at_least=1)
        # Two windows: then torch.stft's mirroring at the end, which it drops, mirrors nothing but silence.
        silent = pad(samples, (0, 2 * WINDOW))
        spectrum = torch.stft(silent, WINDOW, HOP, window=self._window, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        logarithm = (self._filters_MF @ power).clamp_(min=1e-10).log10_()
        loudest = _finite(logarithm.max())
        kept = logarithm[:, : self.num_frames(len(samples))]
        return torch.maximum(kept, loudest - 8.0).add_(4.0).div_(4.0)


class KaldiFbank:
    """Kaldi's log mel filter bank as its programs compute it (compute-fbank-feats, no dither), normalised.

    Windows of 25 ms every 10 ms that are wholly inside the waveform (snip_edges), of samples at the scale of
    16-bit integers: mean removed, pre-emphasis 0.97, Povey window, power spectrum, triangles on Kaldi's mel
    scale from 20 Hz to 8 kHz, natural logarithm. A waveform of N samples has 1 + (N - 400) // 160 frames.

    Args:
        num_mels: mel bands.
        mean, inverse_std: (num_mels,) each; features are (log mel - mean) * inverse_std.
    """

    def __init__(
        self, num_mels: int, mean: torch.Tensor | None = None, inverse_std: torch.Tensor | None = None
    ) -> None:
        self.channels = num_mels
        # Double precision as Kaldi's options, single precision as its arithmetic.
        self._window = torch.hann_window(WINDOW, periodic=False, dtype=torch.float64).pow(0.85).float()
        filters = mel_filter_bank(  # librosa has no Kaldi scale
            1 + KALDI_FFT // 2, num_mels, 20.0, RATE / 2, RATE,
            norm=None, mel_scale="kaldi", triangularize_in_mel_space=True,
        )  # fmt: skip
        self._filters_MF = torch.from_numpy(filters).to(torch.float32).T.contiguous()
        self._mean_M1 = torch.zeros(num_mels, 1) if mean is None else _column(mean)
        self._inverse_std_M1 = torch.ones(num_mels, 1) if inverse_std is None else _column(inverse_std)

    def __call__(self, waveform: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Return features (num_mels, T), see `Features`."""
        samples = _samples(waveform, at_least=WINDOW)
        windows_TW = (samples * 2**15).unfold(0, WINDOW, HOP)
        windows_TW = windows_TW - windows_TW.mean(1, keepdim=True)
        before_TW = torch.cat([windows_TW[:, :1], windows_TW[:, :-1]], dim=1)  # the first precedes itself
        windows_TW = (windows_TW - 0.97 * before_TW) * self._window
        spectrum_TF = torch.fft.rfft(windows_TW, KALDI_FFT)
        power_TF = spectrum_TF.real.square() + spectrum_TF.imag.square()
        logarithm_MT = (self._filters_MF @ power_TF.T).clamp_(min=EPSILON).log_()
        _finite(logarithm_MT.max())
        return (logarithm_MT - self._mean_M1) * self._inverse_std_M1


class LibraryFeatures:
    """What a feature extractor of transformers makes of a single waveform, without its padding.

    Args:
        extractor: a feature extractor for 16 kHz; what it calls its first input is taken.
        channels: M.
        samples: the shortest waveform that it can work on.
        options: arguments of its call.

    Raises:
        ValueError: the extractor is for another sampling rate.
    """

    def __init__(self, extractor: Any, channels: int, samples: int, **options: Any) -> None:
        if extractor.sampling_rate != RATE:
            raise ValueError(
                f"feature extractor: found sampling_rate {extractor.sampling_rate}, audio here is at {RATE} Hz"
            )
        self.channels = channels
        self._extractor, self._samples, self._options = extractor, samples, options

    def __call__(self, waveform: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Return features (M, T), see `Features`."""
        samples = _samples(waveform, at_least=self._samples).numpy()
        made = self._extractor(samples, sampling_rate=RATE, return_tensors="pt", **self._options)
        features = made[self._extractor.model_input_names[0]][0].to(torch.float32)
        _finite(features.abs().max())
        if features.ndim == 1:
            return features[None]
        return features[made["attention_mask"][0].bool()].T.contiguous()


def _samples(waveform: np.ndarray | torch.Tensor, at_least: int) -> torch.Tensor:
    if not torch.as_tensor(waveform).is_floating_point():
        raise ValueError(f"features of a waveform of {waveform.dtype}, expected floats, full scale at 1")
    samples = torch.as_tensor(waveform, dtype=torch.float32)
    if samples.ndim != 1 or len(samples) < at_least:
        raise ValueError(
            f"features of a waveform of shape {tuple(samples.shape)}, expected (N,) with N >= {at_least}, "
            f"which is {at_least / RATE:.4f} s"
        )
    return samples


def _finite(largest: torch.Tensor) -> torch.Tensor:
    """Return the largest of the features, which is not finite if any sample is not."""
    if not torch.isfinite(largest):
        raise ValueError("features of a waveform with samples that are not finite, or far beyond full scale")
    return largest


def _column(values_M: torch.Tensor) -> torch.Tensor:
    return values_M.detach().to("cpu", torch.float32).clone()[:, None]
