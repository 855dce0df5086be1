"""Recordings in, recordings out: what goes through unchanged, and what is refused with which words."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from steermoe.audio import waveform
from steermoe.audio.waveform import RATE, AudioError


def floats(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def error_of(found: np.ndarray, reference: np.ndarray) -> float:
    """rms of the error against rms of the reference."""
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


def test_flac_keeps_16_bits():
    samples = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    flac = waveform.encode_flac(samples, RATE)
    decoded = waveform.load(flac)
    assert decoded.dtype == np.float32
    assert np.abs(decoded - samples).max() <= 0.5 / 32768 + 0.5 / 32768 * (samples.max() > 1 - 1 / 32768)
    assert waveform.encode_flac(decoded, RATE) == flac
    assert soundfile.info(io.BytesIO(flac)).subtype == "PCM_16"


def test_overshoot_is_clipped():
    assert waveform.load(waveform.encode_flac(floats([1.3, -1.3, 0.0]), RATE)).tolist() == [
        32767 / 32768,
        -1.0,
        0.0,
    ]


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "stream", "open file"])
def test_same_from_every_source(tmp_path: Path, kind: str):
    data = encoded(tone(0.1, RATE), RATE)
    path = tmp_path / "tone.mp3"  # the name does not matter
    path.write_bytes(data)
    with path.open("rb") as file:
        sources = {
            "path": path,
            "text": str(path),
            "bytes": data,
            "stream": io.BytesIO(data),
            "open file": file,
        }
        loaded = waveform.load(sources[kind])
    np.testing.assert_array_equal(loaded, soundfile.read(path, dtype="float32")[0])


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_U8"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("AIFF", "PCM_16"),
     ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")],
)  # fmt: skip
def test_formats(kind: str, subtype: str):
    samples = tone(0.5, RATE)
    loaded = waveform.load(encoded(samples, RATE, kind, subtype))
    assert abs(len(loaded) - len(samples)) <= (0 if kind in ("WAV", "FLAC", "AIFF") else 0.02 * RATE)
    # MP3 and Opus delay or blur the edges; the middle is what was said.
    assert error_of(loaded[2000:6000], samples[2000:6000]) < 0.1


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampled_as_by_another_resampler(rate: int):
    samples = tone(0.5, rate)
    loaded = waveform.load(encoded(samples, rate, subtype="FLOAT"))
    reference = resample_poly(samples, RATE, rate)
    assert abs(len(loaded) - 0.5 * RATE) <= 1
    middle = slice(800, min(len(loaded), len(reference)) - 800)
    assert error_of(loaded[middle], reference[middle]) < 0.01


def test_channels_are_averaged():
    left, right = tone(0.1, RATE, 300), tone(0.1, RATE, 500)
    loaded = waveform.load(encoded(np.stack([left, right], axis=1), RATE, subtype="FLOAT"))
    np.testing.assert_allclose(loaded, (left + right) / 2, atol=1e-7)


FLAC = waveform.encode_flac(np.random.default_rng(1).uniform(-0.5, 0.5, 20_000).astype(np.float32), RATE)
MP3 = encoded(np.random.default_rng(2).uniform(-0.5, 0.5, 20_000).astype(np.float32), RATE, "MP3")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty, 0 bytes"),
        (b"RIFF, or so it says", "not readable as audio"),
        (b"\x00" * 5000, "not readable as audio"),
        (FLAC[:30], "not readable as audio"),
        (FLAC[: len(FLAC) // 2], "corrupt FLAC audio"),
        (FLAC[:9000] + b"\x55" * 200 + FLAC[9200:], "corrupt FLAC audio"),
        (MP3[: len(MP3) // 2], "truncated audio"),
        (encoded(np.zeros(0, np.float32), RATE), "no samples"),
        (encoded(floats([0, 0.1, np.nan, 0.2]), RATE, subtype="FLOAT"), "sample 2 is nan"),
        (encoded(floats([0, np.inf]), RATE, subtype="FLOAT"), "sample 1 is inf"),
        (encoded(tone(0.1, RATE), RATE, subtype="IMA_ADPCM"), "WAV with IMA_ADPCM is not admitted"),
        (encoded(tone(0.1, RATE), RATE, "VOC"), "not readable as audio"),
        (b"\x00\x00\x00\x20ftypM4A " + bytes(100), "truncated audio|not readable as audio"),
        (b"0&\xb2u\x8ef\xcf\x11" + bytes(100), "not readable as audio .*convert"),
        (b"\x1aE\xdf\xa3" + bytes(100), "not readable as audio"),
        (encoded(floats([0, 20_000]), RATE, subtype="FLOAT"), "a sample of 20000.* by 32768"),
        (encoded(floats([0, 1, -20_000]), RATE, subtype="DOUBLE"), "a sample of 20000"),
        (encoded(tone(0.5, 2000), 2000), "sampled at 2000 Hz, allowed are 4000 to 192000"),
        (encoded(np.zeros((100, 9)), RATE), "9 channels, allowed are 1 to 8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # bytes of some formats hold the time
)  # fmt: skip
def test_refused(tmp_path: Path, data: bytes, message: str):
    path = tmp_path / "bad.wav"
    path.write_bytes(data)
    with pytest.raises(AudioError, match=message) as error:
        waveform.load(path)
    assert str(path) in str(error.value)


def test_longer_than_allowed():
    data = encoded(tone(2.0, 8000), 8000)
    assert len(waveform.load(data, max_seconds=2.0)) == 2 * RATE
    with pytest.raises(AudioError, match=r"2.0 s by its header, allowed are at most 1.9"):
        waveform.load(data, max_seconds=1.9)


def test_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"none\.wav"):
        waveform.load(tmp_path / "none.wav")


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0, np.float32), r"shape \(0,\)"),
        (np.zeros((2, 100), np.float32), r"shape \(2, 100\)"),
        (floats([0, np.nan]), "peak of nan"),
        (floats([0, np.inf]), "peak of inf"),
        (floats([0, 20_000]), "peak of 20000"),
        (np.zeros(10, np.int16), "int16"),
    ],
)
def test_not_encoded(samples: np.ndarray, message: str):
    with pytest.raises(AudioError, match=message):
        waveform.encode_flac(samples, RATE)


@pytest.mark.parametrize(
    ("kind", "subtype", "rate", "channels"),
    [("FLAC", "PCM_16", RATE, 1), ("FLAC", "PCM_24", 96_000, 2), ("WAV", "PCM_U8", 8_000, 1),
     ("OGG", "VORBIS", 44_100, 2), ("OGG", "OPUS", 48_000, 1), ("MP3", "MPEG_LAYER_III", 44_100, 2)],
)  # fmt: skip
def test_any_recording_becomes_flac(kind: str, subtype: str, rate: int, channels: int):
    data = encoded(np.stack([tone(0.5, rate)] * channels, axis=1), rate, kind, subtype)
    flac, seconds = waveform.as_flac(data)
    header = waveform.flac_header(flac)
    assert header == waveform.flac_header(flac[: waveform.FLAC_HEADER])
    assert (header.rate, header.channels, header.seconds) == (RATE, 1, seconds)
    assert np.abs(waveform.load(flac) - np.clip(waveform.load(data), -1, 1)).max() <= 1 / 32768
    assert (flac == data) == ((kind, subtype, rate, channels) == ("FLAC", "PCM_16", RATE, 1))
    assert waveform.as_flac(flac) == (flac, seconds)  # what is kept once is kept for ever


def test_a_damaged_flac_is_not_kept():
    with pytest.raises(AudioError, match="corrupt FLAC audio"):
        waveform.as_flac(FLAC[:9000] + b"\x55" * 200 + FLAC[9200:])
    tagged = b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10) + FLAC
    assert waveform.as_flac(tagged)[0].startswith(b"fLaC")


@pytest.mark.parametrize(("rate", "channels", "samples"), [(8000, 2, 2001), (96_000, 8, 77), (44_100, 1, 1)])
def test_flac_header(rate: int, channels: int, samples: int):
    data = encoded(np.zeros((samples, channels)), rate, "FLAC")
    assert waveform.flac_header(data) == waveform.Header(rate, channels, samples)
