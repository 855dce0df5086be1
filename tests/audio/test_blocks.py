"""Recordings in blocks are the recordings; containers; and what is refused, with which words."""

import io
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from steermoe.audio import waveform
from steermoe.audio.blocks import blocks
from steermoe.audio.waveform import RATE, AudioError


def sound(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    tones = [0.3 * np.sin(2 * np.pi * (300 + 170 * channel) * time) for channel in range(channels)]
    return np.stack(tones, axis=1).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def contained(
    samples: np.ndarray, rate: int, kind: str, codec: str, options: dict[str, str] | None = None
) -> bytes:
    """A file of a container, as FFmpeg writes it."""
    with (
        tempfile.NamedTemporaryFile() as file,
        av.open(file.name, "w", format=kind, options=options or {}) as output,
    ):
        layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[1]]
        track: Any = output.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=layout)
        frame.sample_rate = rate
        for part in av.AudioResampler(format=track.format, frame_size=track.frame_size).resample(frame):
            output.mux(track.encode(part))
        output.mux(track.encode(None))
        output.close()
        return Path(file.name).read_bytes()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (8_000, 1)])
def test_blocks_are_the_recording(kind: str, rate: int, channels: int):
    data = encoded(sound(2.3, rate, channels), rate, kind)
    whole, parts = waveform.load(data), list(blocks(data, block_seconds=0.25))
    assert len(parts) > 5 and max(map(len, parts)) <= 0.6 * RATE
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "codec", "rate", "channels"),
    [("mp4", "aac", 44_100, 2), ("mp4", "alac", 48_000, 6), ("webm", "libopus", 48_000, 1),
     ("matroska", "aac", 16_000, 1)],
)  # fmt: skip
def test_containers(tmp_path: Path, kind: str, codec: str, rate: int, channels: int):
    samples = sound(2.3, rate, channels)
    path = tmp_path / "talk.wav"  # the name does not matter
    path.write_bytes(contained(samples, rate, kind, codec))
    loaded = waveform.load(path)
    reference = waveform.load(encoded(samples, rate, subtype="FLOAT"))
    assert abs(len(loaded) - len(reference)) < 0.1 * RATE
    begin = min(range(0, 600), key=lambda n: np.abs(loaded[4000 + n : 8000 + n] - reference[4000:8000]).sum())
    middle = loaded[4000 + begin : 24_000 + begin] - reference[4000:24_000]
    assert np.sqrt(np.mean(middle**2)) < 0.1 * np.sqrt(np.mean(reference**2))  # but for the codec's delay
    np.testing.assert_allclose(np.concatenate(list(blocks(path, block_seconds=0.3))), loaded, atol=1e-6)


def test_a_browser_s_recording_has_no_duration():
    data = contained(sound(1.5, 48_000), 48_000, "webm", "libopus", {"live": "1"})
    assert abs(len(waveform.load(data)) / RATE - 1.5) < 0.1


M4A = contained(sound(3, 44_100), 44_100, "mp4", "aac", {"movflags": "faststart"})
WEBM = contained(sound(3, 48_000), 48_000, "webm", "libopus")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (M4A[:200], "truncated audio"),
        (M4A[: len(M4A) // 2], "truncated audio"),
        (WEBM[: len(WEBM) // 2], "truncated audio"),
        (contained(sound(1, 48_000), 48_000, "matroska", "ac3"), "matroska with ac3 is not admitted"),
    ],
)  # fmt: skip
def test_bad_containers(data: bytes, message: str):
    for read in (waveform.load, lambda source: list(blocks(source))):
        with pytest.raises(AudioError, match=message):
            read(data)


def flac_that_claims(seconds: int) -> bytes:
    """A FLAC of one second whose header says more."""
    data = encoded(sound(1, RATE), RATE, "FLAC")
    samples = seconds * RATE
    return (
        data[:21] + bytes([data[21] & 0xF0 | samples >> 32]) + (samples & 2**32 - 1).to_bytes(4) + data[26:]
    )


FLAC = encoded(np.random.default_rng(1).uniform(-0.5, 0.5, 60_000), RATE, "FLAC")
BAD = {
    "empty.wav": (b"", "empty, 0 bytes"),
    "text.wav": (b"frank made fourteen chairs\n" * 20, "not readable as audio"),
    "truncated.flac": (FLAC[: len(FLAC) // 2], "corrupt FLAC audio|truncated audio"),
    "nothing.wav": (encoded(np.zeros(0), RATE), "no samples"),
    "nan.wav": (encoded(np.array([0, 0.1, np.nan, 0.2]), RATE, subtype="FLOAT"), "sample 2 is nan"),
    "fast.wav": (encoded(sound(0.1, 384_000), 384_000), "sampled at 384000 Hz, allowed are 4000 to 192000"),
    "wide.wav": (encoded(np.zeros((100, 9)), RATE), "9 channels, allowed are 1 to 8"),
    "ten_hours.flac": (flac_that_claims(36_000), "36000.0 s by its header, allowed are at most 28800"),
    "two_hours.flac": (flac_that_claims(7200), "corrupt FLAC audio|truncated audio, 16000 of 115200000 samples"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str):
    data, message = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AudioError, match=message) as error:
        list(blocks(tmp_path / name))
    assert name in str(error.value)


def test_eight_channels_and_a_wrong_suffix_are_fine(tmp_path: Path):
    path = tmp_path / "eight.mp3"
    path.write_bytes(encoded(sound(0.5, 22_050, 8), 22_050))
    np.testing.assert_allclose(np.concatenate(list(blocks(path))), waveform.load(path), atol=1e-6)
