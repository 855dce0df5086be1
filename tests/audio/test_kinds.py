"""Difficult but legal recordings: all that can be decoded is read, at the right time and at any level.

Everything holds a tone of 400 Hz for a second (A), a second of silence, and one of 900 Hz (B); or says otherwise.
"""

import io
import os
import struct
import threading
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from steermoe.audio import waveform
from steermoe.audio.base import as_waveform
from steermoe.audio.blocks import blocks, is_audio
from steermoe.audio.level import LEVEL, levelled
from steermoe.audio.waveform import RATE, AudioError

TIME = np.arange(RATE) / RATE
A, B = (0.3 * np.sin(2 * np.pi * hertz * TIME).astype(np.float32) for hertz in (400, 900))
AB = np.concatenate([A, np.zeros(RATE, np.float32), B])
A1 = AB[: 3 * RATE // 2]  # A, and half a second of silence


def encoded(samples: np.ndarray, kind: str = "WAV", subtype: str | None = None, *, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def tones(samples: np.ndarray) -> list[tuple[float, float]]:
    """Where tones begin in a waveform, in seconds, and their frequencies in Hz."""
    loud = np.sqrt(np.convolve(samples**2, np.ones(160) / 160, "same")) > 0.3 * np.abs(samples).max()
    starts = np.flatnonzero(np.diff(loud.astype(int), prepend=0) == 1)
    found: list[tuple[float, float]] = []
    for start in starts:
        piece = samples[start + 2000 : start + 10_000]
        hertz = np.fft.rfft(piece * np.hanning(len(piece))).__abs__().argmax() * RATE / max(1, len(piece))
        if not found or abs(hertz - found[-1][1]) > 50:
            found.append((start / RATE, hertz))
    return found


def holds(samples: np.ndarray, first: float, second: float, within: float = 0.1) -> None:
    """A begins at the first time, B at the second."""
    (begin, low), (again, high) = tones(samples)
    assert (begin, again) == pytest.approx((first, second), abs=within)
    assert (low, high) == pytest.approx((400, 900), abs=10)


def muxed(
    kind: str,
    codec: str,
    video: float = 0,
    offset: float = 0,
    gap: float = 0,
    tracks: int = 1,
    rate: int = 48_000,
) -> bytes:
    """AB in a container.

    Args:
        video: seconds of pictures beside it.
        offset: seconds that its clock is late; from 1.5 s on by `gap` more.
        tracks: of audio, all but the last silent.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=kind, options={"live": "1"} if kind == "webm" else {}) as output:
        packets: list[Any] = []
        if video:
            pictures: Any = output.add_stream("mpeg4", rate=10)
            pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        streams: list[Any] = [output.add_stream(codec, rate=rate, layout="mono") for _ in range(tracks)]
        output.start_encoding()
        for number in range(round(video * 10)):
            picture = av.VideoFrame.from_ndarray(np.zeros((72, 64), np.uint8), format="yuv420p")
            picture.pts, picture.time_base = number, Fraction(1, 10)
            packets += pictures.encode(picture)
        packets += pictures.encode(None) if video else []
        for number, stream in enumerate(streams):
            samples = AB if number == tracks - 1 else 0 * AB
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate, made, place = RATE, [], 0
            resampler, fifo = av.AudioResampler(stream.format, "mono", rate), av.AudioFifo()
            for part in (*resampler.resample(frame), *resampler.resample(None)):
                part.pts = None
                fifo.write(part)
            while (part := fifo.read(stream.frame_size or 960, partial=True)) is not None:
                part.pts, part.time_base, place = place, Fraction(1, rate), place + part.samples
                made += stream.encode(part)
            for packet in made + stream.encode(None):
                late = offset + gap * (float(packet.pts * packet.time_base) >= 1.5)
                packet.pts += round(late / packet.time_base)
                packet.dts = packet.pts
                packets.append(packet)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize(
    ("made", "first", "second"),
    [
        (dict(kind="matroska", codec="aac", video=6), 0, 2),
        (dict(kind="matroska", codec="aac", video=9, offset=5), 5, 7),
        (dict(kind="mp4", codec="aac", video=9, offset=5), 5, 7),
        (dict(kind="mov", codec="pcm_s16le", video=4), 0, 2),
        (dict(kind="3gp", codec="aac", video=2, offset=1), 1, 3),
        (dict(kind="webm", codec="libopus", gap=3), 0, 5),
        (dict(kind="webm", codec="libopus", offset=20), 0, 2),
        (dict(kind="ogg", codec="libopus"), 0, 2),
        (dict(kind="adts", codec="aac"), 0, 2),
        (dict(kind="caf", codec="alac"), 0, 2),
        (dict(kind="matroska", codec="libopus", video=2, tracks=2), 0, 2),
        (dict(kind="mp4", codec="aac", tracks=3), 0, 2),
    ],
    ids=str,
)  # fmt: skip
def test_times_are_on_the_container_s_clock(made: dict[str, Any], first: float, second: float):
    data = muxed(**made)
    loaded = waveform.load(data)
    holds(loaded, first, second)
    assert len(loaded) / RATE == pytest.approx(second + 1, abs=0.15)
    np.testing.assert_allclose(np.concatenate(list(blocks(data, block_seconds=0.3))), loaded, atol=1e-6)


def test_small_irregularities_of_a_clock_are_no_gaps():
    smooth, late = (waveform.load(muxed("webm", "libopus", gap=gap)) for gap in (0, 0.06))
    np.testing.assert_array_equal(smooth, late)


def test_a_clock_beyond_the_limit_is_refused():
    with pytest.raises(AudioError, match=r"s by its clock, allowed are at most 60"):
        waveform.load(muxed("webm", "libopus", gap=7000), max_seconds=60)


def test_tracks(caplog: pytest.LogCaptureFixture):
    data = muxed("matroska", "aac", tracks=2)
    assert np.abs(waveform.load(data, track=1)).max() < 0.01
    assert not caplog.records
    holds(waveform.load(data), 0, 2)
    assert "track 2 of 2 is read, for track 1 is silent" in caplog.text
    np.testing.assert_array_equal(waveform.load(data, track=2), waveform.load(data))
    for source in (data, encoded(AB)):
        with pytest.raises(AudioError, match="no audio track 3"):
            waveform.load(source, track=3)


MP3, OPUS, VORBIS, FLAC = (
    encoded(AB, *kind) for kind in (("MP3",), ("OGG", "OPUS"), ("OGG", "VORBIS"), ("FLAC",))
)
FRAME = MP3.index(b"\xff", 100)  # behind the first frame, which tells the length
UNKNOWN = FLAC[:21] + bytes([FLAC[21] & 0xF0]) + bytes(4) + FLAC[26:]
ID3 = b"ID3\3\0\0\0\0\x17\x38" + bytes(3000)
WAV = encoded(AB)


def wav(riff: int, data: int) -> bytes:
    """AB with other sizes in the header."""
    return WAV[:4] + struct.pack("<I", riff) + WAV[8:40] + struct.pack("<I", data) + WAV[44:]


@pytest.mark.parametrize(
    ("data", "second"),
    [
        *((wav(*sizes), 2) for sizes in ((0, 0), (36, 0), (2**32 - 1, 2**32 - 1), (0x7FFFF024, 0x7FFFF000))),
        (WAV + b"LIST\x05\0\0\0INFO!\0id3 \x02\0\0\0ab", 2),
        (WAV + b"TAG" + bytes(125), 2),
        (UNKNOWN, 2),
        (ID3 * 2 + FLAC, 2),
        (MP3[FRAME:], 2),
        (ID3 * 2 + MP3, 2),
        (ID3 * 400 + MP3, 2),  # as with a picture
        (b"\0\x01garbage" * 300 + MP3[FRAME:], 2),
        *((whole + b"TAG" + bytes(125), 2) for whole in (MP3, FLAC, OPUS, muxed("mp4", "aac"), encoded(AB, "AIFF"))),
        (encoded(AB, "AIFF")[:4] + bytes(4) + encoded(AB, "AIFF")[8:], 2),
        *((encoded(A1, *kind) + encoded(B, *kind), 1.5) for kind in (
            ("WAV",), ("WAV", "FLOAT"), ("AIFF",), ("FLAC",), ("W64",), ("CAF",), ("MP3",),
            ("OGG", "OPUS"), ("OGG", "VORBIS"))),
        (encoded(A1, "MP3") + ID3 + encoded(B, "MP3"), 1.5),
        (encoded(A1, "MP3")[FRAME:] + encoded(B, "MP3")[FRAME:], 1.5),
        (encoded(A1, "OGG", "VORBIS") + encoded(np.stack([B, B], 1)[::2], "OGG", "VORBIS", rate=8000), 1.5),
        (encoded(A1, "OGG", "VORBIS") + encoded(B, "OGG", "OPUS"), 1.5),
        (encoded(A1, "MP3") + encoded(np.stack([B, B], 1)[::2], "MP3", rate=8000), 1.5),
        (muxed("webm", "libopus") + muxed("webm", "libopus", offset=7), None),
        (muxed("mp4", "aac") + muxed("mp4", "aac"), None),
        (encoded(AB, "RF64"), 2),
        (encoded(AB[::2], "WAV", "ULAW", rate=8000), 2),
        (encoded(AB, "AIFF", "FLOAT"), 2),
    ],
    ids=lambda value: "",
)  # fmt: skip
def test_all_that_can_be_decoded_is_read(data: bytes, second: float | None):
    loaded = waveform.load(data)
    flac, seconds = waveform.as_flac(data)  # so in preprocessing
    assert seconds == len(loaded) / RATE
    np.testing.assert_allclose(waveform.load(flac), loaded, atol=1 / 32768)
    if second is None:  # AB twice
        assert len(loaded) / RATE == pytest.approx(6, abs=0.2)
        holds(loaded[-3 * RATE :], 0, 2, within=0.2)
    else:
        holds(loaded, 0, second, within=0.2)  # an MP3 that does not tell its padding has it between the parts


def test_lossless_formats_without_a_length_are_the_same_samples():
    for data, known in ((UNKNOWN, FLAC), (wav(0, 0), WAV)):
        np.testing.assert_array_equal(waveform.load(data), waveform.load(known))


@pytest.mark.parametrize(
    "data",
    [WAV, FLAC, OPUS, VORBIS, MP3, *(encoded(AB, kind) for kind in ("AIFF", "W64", "CAF", "RF64")),
     muxed("mp4", "aac"), muxed("webm", "libopus"), encoded(A, "OGG", "OPUS") + OPUS, WAV + WAV],
    ids=lambda value: "",
)  # fmt: skip
def test_what_is_cut_is_reported(data: bytes):
    with pytest.raises(AudioError, match=r"truncated audio|corrupt"):
        waveform.load(data[: len(data) * 7 // 10])


def test_audio_that_the_header_does_not_count_is_reported(caplog: pytest.LogCaptureFixture):
    assert len(waveform.load(wav(36 + 8000, 8000) + bytes(2**16))) == 4000
    assert f"{len(WAV) - 8044 + 2**16} bytes behind the audio are not read" in caplog.text


def test_channels_of_opposite_phase_do_not_cancel():
    plain = waveform.load(encoded(AB, "WAV", "FLOAT"))
    for channels in ([AB, -AB], [-AB, AB, AB, -AB], [AB, -0.9 * AB]):
        mixed = waveform.load(encoded(np.stack(channels, 1), "WAV", "FLOAT"))
        assert (
            abs(np.corrcoef(mixed, plain)[0, 1]) > 0.999 and np.abs(mixed).max() > 0.9 * np.abs(plain).max()
        )
    for channels in ([AB, AB], [AB, 0 * AB], [A, B]):
        stacked = np.stack(channels, 1)
        mixed = waveform.load(encoded(stacked, "WAV", "FLOAT"))
        np.testing.assert_array_equal(mixed, stacked.mean(axis=1, dtype=np.float32))


@pytest.mark.parametrize("gain", [8.0, 1.0, 0.05, 10**-2.5])
def test_every_level_becomes_one(gain: float):
    np.testing.assert_allclose(levelled(np.float32(gain) * AB), levelled(AB), rtol=1e-4, atol=1e-7)
    assert np.sqrt(np.mean(levelled(gain * A) ** 2)) == pytest.approx(LEVEL, rel=1e-3)


def test_silence_stays_silence():
    assert not levelled(np.zeros(1000, np.float32)).any()
    assert np.abs(levelled(np.full(1000, 1e-7, np.float32))).max() < 1e-3 * LEVEL * 10


@pytest.mark.parametrize(
    ("kind", "scale", "offset"), [("int16", 2**15, 0), ("int32", 2**31, 0), ("uint8", 2**7, 128)]
)
def test_arrays_of_integers_are_scaled_by_their_type(kind: str, scale: int, offset: int):
    array = (AB.astype(float) * scale + offset).astype(kind)
    np.testing.assert_allclose(as_waveform(array, "array"), AB, atol=1.01 / min(scale, 2**15))


@pytest.mark.parametrize(
    ("array", "message"),
    [(AB * 32768, r"a sample of \d+.* by 32768"), (AB.astype(np.int64), "samples of int64"), (AB[None], "shape"),
     (AB[:0], "shape"), (np.array([0, np.nan, 9]), "sample 1 is nan"), (AB.astype(bool), "samples of bool")],
    ids=lambda value: "",
)  # fmt: skip
def test_arrays_that_are_refused(array: np.ndarray, message: str):
    with pytest.raises(AudioError, match=f"x: .*{message}"):
        as_waveform(array, "x")


@pytest.mark.parametrize("data", [WAV, FLAC, MP3, muxed("mp4", "aac")], ids=lambda value: "")
def test_pipes(tmp_path: Path, data: bytes):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for opened in (False, True):
        writer = threading.Thread(target=pipe.write_bytes, args=[data])
        writer.start()
        with pipe.open("rb") if opened else nullcontext(pipe) as source:
            np.testing.assert_array_equal(waveform.load(source), waveform.load(data))
        writer.join()


def test_devices_and_folders_are_refused(tmp_path: Path):
    with pytest.raises(AudioError, match="/dev/zero: a device"):
        waveform.load("/dev/zero")
    with pytest.raises(IsADirectoryError):
        waveform.load(tmp_path)


def test_content_tells_what_is_audio(tmp_path: Path):
    there = {
        "a.mov": muxed("mov", "aac", video=1), "b": WAV, "c.dat": MP3, "d.WAVE": WAV, "e.bin": OPUS,
        "f.x": muxed("adts", "aac"), "g.wav": b"",
    }  # fmt: skip
    others = {
        "a.txt": b"frank made fourteen chairs " * 50,
        "b.json": b"{}",
        "c": b"",
        "d.png": b"\x89PNG\r\n\x1a\n" + bytes(99),
    }
    for name, data in (there | others).items():
        (tmp_path / name).write_bytes(data)
    assert {path.name for path in tmp_path.iterdir() if is_audio(path)} == set(there)
