"""Features against transformers' own, frame by frame, the last ones included."""

import numpy as np
import pytest
import torch
from transformers import (
    ParakeetFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from steermoe.audio.features import FRAMES_PER_SECOND, KaldiFbank, LibraryFeatures, LogMel
from steermoe.audio.io import RATE


def speechlike(samples: int, seed: int) -> np.ndarray:
    """Noise that swells towards the end, so that what happens there matters."""
    noise = np.random.default_rng(seed).standard_normal(samples)
    return (noise * np.linspace(1e-4, 0.3, samples)).astype(np.float32)


@pytest.fixture(scope="module", params=[80, 128])
def pair(request: pytest.FixtureRequest) -> tuple[LogMel, WhisperFeatureExtractor]:
    return LogMel(request.param), WhisperFeatureExtractor(feature_size=request.param)


def test_mel_filters_are_whisper_s(pair):
    features, extractor = pair
    expected = torch.from_numpy(extractor.mel_filters.T).float()
    assert torch.equal(features._filters_MF, expected)  # librosa's, to the last bit of single precision


@pytest.mark.parametrize("samples", [1, 160, 161, 201, 400, 32_001])
@pytest.mark.parametrize("ending", ["swell", "click", "silence"])
def test_equals_whisper_on_every_frame(pair, samples: int, ending: str):
    """The last frames included: they see silence after the end, not its mirror image."""
    features, extractor = pair
    waveform = speechlike(samples, samples)
    if ending == "click":  # the loudest frame is then one behind the end
        waveform[-1] = 0.9
    elif ending == "silence":
        waveform[samples // 2 :] = 0.0
    expected = extractor(waveform, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
    found = features(waveform)
    frames = int(expected["attention_mask"].sum())
    assert (
        found.shape == (features.channels, frames) == (extractor.feature_size, features.num_frames(samples))
    )
    torch.testing.assert_close(found, expected["input_features"][0, :, :frames], atol=1e-5, rtol=0)


def test_silence_and_lengths():
    features = LogMel(80)
    assert torch.equal(features(np.zeros(1600, np.float32)), torch.full((80, 10), -1.5))
    assert features(np.zeros(RATE, np.float32)).shape[1] == FRAMES_PER_SECOND == 100
    waveform = speechlike(4000, 1)
    assert torch.equal(features(waveform), features(waveform.astype(np.float64)))


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros(0, np.float32), r"shape \(0,\)"),
        (np.zeros((2, 400), np.float32), r"shape \(2, 400\)"),
        (np.ones(400, np.int16), "waveform of int16, expected floats, full scale at 1"),
        (np.array([0.1, np.nan] * 200), "not finite"),
        (np.array([0.1, np.inf] * 200), "not finite"),
    ],
)
def test_refused(waveform: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        LogMel(80)(waveform)


@pytest.mark.parametrize("samples", [1, 200, 201, 32_001])
def test_after_a_tail_there_is_nothing_but_silence(pair, samples: int):
    plain, extractor = pair
    features = LogMel(plain.channels, tail=2)
    waveform = speechlike(samples, samples)
    expected = extractor(waveform, sampling_rate=RATE, return_tensors="pt")["input_features"][0]
    found = features(waveform)
    frames = found.shape[1]
    assert frames == plain.num_frames(samples) + 2 == features.num_frames(samples)
    torch.testing.assert_close(found, expected[:, :frames], atol=1e-5, rtol=0)
    assert (expected[:, frames:] == expected[0, -1]).all()


def kaldi_reference(waveform: np.ndarray, num_mels: int) -> np.ndarray:
    """Kaldi's filter bank by transformers' general spectrogram, in double precision."""
    filters = mel_filter_bank(
        257, num_mels, 20.0, 8000.0, RATE, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    return spectrogram(
        waveform.astype(np.float64) * 2**15, window_function(400, "povey", periodic=False), 400, 160,
        fft_length=512, power=2.0, center=False, preemphasis=0.97, mel_filters=filters, log_mel="log",
        mel_floor=1.192092955078125e-07, remove_dc_offset=True,
    )  # fmt: skip


@pytest.mark.parametrize("num_mels", [80, 40])
@pytest.mark.parametrize("samples", [400, 560, 32_001])
@pytest.mark.parametrize("offset", [0.0, 0.2])
def test_kaldi_on_every_frame(num_mels: int, samples: int, offset: float):
    waveform = speechlike(samples, samples) + np.float32(offset)
    expected = torch.from_numpy(kaldi_reference(waveform, num_mels)).float()
    found = KaldiFbank(num_mels)(waveform)
    assert found.shape == (num_mels, 1 + (samples - 400) // 160) == expected.shape
    # Single precision, as Kaldi's own: what is 1e-7 of the loudest band is noise.
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-4)


def test_kaldi_of_silence_is_its_floor_and_is_normalised():
    silence = np.zeros(1600, np.float32)
    floor = np.log(np.finfo(np.float32).eps)
    torch.testing.assert_close(KaldiFbank(80)(silence), torch.full((80, 8), float(floor)))
    mean, inverse_std = torch.randn(80), torch.rand(80)
    waveform = speechlike(8_000, 3)
    expected = (KaldiFbank(80)(waveform) - mean[:, None]) * inverse_std[:, None]
    assert torch.equal(KaldiFbank(80, mean, inverse_std)(waveform), expected)


@pytest.mark.parametrize(
    ("extractor", "channels", "shortest", "options"),
    [
        (Wav2Vec2FeatureExtractor(), 1, 400, {}),
        (SeamlessM4TFeatureExtractor(), 160, 560, {"padding": False, "pad_to_multiple_of": None}),
        (ParakeetFeatureExtractor(), 80, 320, {}),
    ],
    ids=["wav2vec2", "seamless", "parakeet"],
)
def test_library_features_are_unpadded(extractor, channels: int, shortest: int, options: dict[str, object]):
    features = LibraryFeatures(extractor, channels, shortest, **options)
    waveforms = [speechlike(samples, samples) for samples in (16_001, 9_999, 16_160)]
    together = extractor(
        waveforms, sampling_rate=RATE, padding=True, return_tensors="pt", return_attention_mask=True
    )
    padded, mask = together[extractor.model_input_names[0]], together["attention_mask"].bool()
    for row, waveform in enumerate(waveforms):
        found = features(waveform)
        expected = padded[row][mask[row]]
        expected = expected.T if expected.ndim == 2 else expected[None]
        assert found.shape[0] == channels == features.channels and found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
        assert torch.equal(found, features(torch.from_numpy(waveform).double()))
    assert features(speechlike(shortest, 1)).isfinite().all()
    with pytest.raises(ValueError, match=f"N >= {shortest}"):
        features(speechlike(shortest - 1, 1))
    with pytest.raises(ValueError, match="not finite"):
        features(np.array([0.1, np.nan] * 2_000))


def test_library_features_of_another_rate_are_refused():
    with pytest.raises(ValueError, match="found sampling_rate 8000, audio here is at 16000 Hz"):
        LibraryFeatures(Wav2Vec2FeatureExtractor(sampling_rate=8000), 1, 400)


def test_kaldi_refuses_less_than_a_window():
    with pytest.raises(ValueError, match=r"expected \(N,\) with N >= 400, which is 0\.0250 s"):
        KaldiFbank(80)(np.zeros(399, np.float32))
