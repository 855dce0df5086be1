"""Arrays of samples as waveforms, and waveforms as FLAC."""

import io

import numpy as np
import pytest
import soundfile

from steermoe.audio.io import RATE, AudioError, Header, as_waveform, encode_flac, flac_header, load

A = 0.3 * np.sin(2 * np.pi * 400 * np.arange(RATE) / RATE).astype(np.float32)


def test_flac_keeps_16_bits_and_clips_overshoot():
    samples = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    decoded = load(flac := encode_flac(samples, RATE))
    assert np.abs(decoded - samples).max() <= 1 / 32768 and encode_flac(decoded, RATE) == flac
    assert soundfile.info(io.BytesIO(flac)).subtype == "PCM_16"
    clipped = load(encode_flac(np.array([1.3, -1.3, 0.0], np.float32), RATE))
    assert clipped.tolist() == [32767 / 32768, -1.0, 0.0]


@pytest.mark.parametrize(("rate", "channels", "samples"), [(8000, 2, 2001), (96_000, 8, 77)])
def test_flac_header(rate: int, channels: int, samples: int):
    file = io.BytesIO()
    soundfile.write(file, np.zeros((samples, channels)), rate, format="FLAC")
    assert flac_header(file.getvalue()) == Header(rate, channels, samples)


@pytest.mark.parametrize(
    ("kind", "scale", "offset"), [("int16", 2**15, 0), ("int32", 2**31, 0), ("uint8", 2**7, 128)]
)
def test_arrays_of_integers_are_scaled_by_their_type(kind: str, scale: int, offset: int):
    array = (A.astype(float) * scale + offset).astype(kind)
    np.testing.assert_allclose(as_waveform(array, "array"), A, atol=1.01 / min(scale, 2**15))


@pytest.mark.parametrize(
    ("array", "message"),
    [(A * 32768, r"a sample of \d+.* by 32768"), (A.astype(np.int64), "samples of int64"), (A[None], "shape"),
     (A[:0], "shape"), (np.array([0, np.nan, 9]), "sample 1 is nan"), (A.astype(bool), "samples of bool")],
    ids=lambda value: "",
)  # fmt: skip
def test_arrays_that_are_refused(array: np.ndarray, message: str):
    with pytest.raises(AudioError, match=f"x: .*{message}"):
        as_waveform(array, "x")


@pytest.mark.parametrize(
    ("samples", "message"),
    [(A[:0], r"shape \(0,\)"), (A * np.nan, "sample 0 is nan"), (A * 65_536, "a sample of 19"),
     (A.astype(np.int16), "int16")],
    ids=lambda value: "",
)  # fmt: skip
def test_waveforms_that_are_not_encoded(samples: np.ndarray, message: str):
    with pytest.raises(AudioError, match=message):
        encode_flac(samples, RATE)
