"""LogMel against transformers' WhisperFeatureExtractor, frame by frame, the last ones included."""

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from steermoe.audio.features import FRAMES_PER_SECOND, HOP, LogMel
from steermoe.audio.waveform import RATE


def floats(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


def speechlike(samples: int, seed: int) -> np.ndarray:
    """Noise that swells towards the end, so that what happens there matters."""
    noise = np.random.default_rng(seed).standard_normal(samples)
    return (noise * np.linspace(1e-4, 0.3, samples)).astype(np.float32)


@pytest.fixture(scope="module", params=[80, 128])
def pair(request: pytest.FixtureRequest) -> tuple[LogMel, WhisperFeatureExtractor]:
    return LogMel(request.param), WhisperFeatureExtractor(feature_size=request.param)


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 200, 201, 399, 400, 401, 8_000, 32_001, 47_999])
@pytest.mark.parametrize("ending", ["swell", "click", "silence"])
def test_equals_whisper_on_every_frame(pair, samples: int, ending: str):
    features, extractor = pair
    waveform = speechlike(samples, samples)
    if ending == "click":  # the loudest frame is then one behind the end
        waveform[-1] = 0.9
    elif ending == "silence":
        waveform[samples // 2 :] = 0.0
    expected = extractor(waveform, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
    found = features(waveform)
    frames = int(expected["attention_mask"].sum())
    assert found.shape == (features.num_mels, frames) == (features.num_mels, features.num_frames(samples))
    torch.testing.assert_close(found, expected["input_features"][0, :, :frames], atol=1e-5, rtol=0)


def test_the_end_hears_silence_not_an_echo():
    """A plain torch.stft of the unpadded waveform mirrors the end: its last frames are not Whisper's."""
    features = LogMel(80)
    waveform = speechlike(16_001, 0)  # the last frame is centred on the last sample
    spectrum = torch.stft(
        torch.from_numpy(waveform), 400, HOP, window=torch.hann_window(400), return_complex=True
    )
    logarithm = (features._filters_MF @ spectrum.abs() ** 2).clamp(min=1e-10).log10()
    mirrored = (torch.maximum(logarithm, logarithm.max() - 8) + 4) / 4
    found = features(waveform)
    torch.testing.assert_close(found[:, :-2], mirrored[:, :-2], atol=1e-5, rtol=0)
    assert (found[:, -1] - mirrored[:, -1]).abs().mean() > 0.05


def test_silence_and_lengths():
    features = LogMel(80)
    assert torch.equal(features(np.zeros(1600, np.float32)), torch.full((80, 10), -1.5))
    assert features(np.zeros(RATE, np.float32)).shape[1] == FRAMES_PER_SECOND == 100
    assert features(torch.zeros(RATE)).dtype == torch.float32


def test_float64_gives_the_same():
    features = LogMel(80)
    waveform = speechlike(4000, 1)
    assert torch.equal(features(waveform), features(waveform.astype(np.float64)))


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros(0, np.float32), r"shape \(0,\)"),
        (np.zeros((2, 400), np.float32), r"shape \(2, 400\)"),
        (floats([0.1, np.nan] * 200), "not finite"),
        (floats([0.1, np.inf] * 200), "not finite"),
    ],
)
def test_refused(waveform: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        LogMel(80)(waveform)
