"""Recordings in and out: all that can be decoded is read, at the right time; what cannot be used is refused by name.

AB is a tone of 400 Hz for a second (A), a second of silence, and one of 900 Hz (B).
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
import librosa
import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from steermoe.audio.io import (
    FLAC_HEADER,
    RATE,
    AudioError,
    Header,
    as_flac,
    blocks,
    flac_header,
    is_audio,
    load,
)

TIME = np.arange(RATE) / RATE
A, B = (0.3 * np.sin(2 * np.pi * hertz * TIME).astype(np.float32) for hertz in (400, 900))
AB = np.concatenate([A, np.zeros(RATE, np.float32), B])
A1 = AB[: 3 * RATE // 2]  # A, and half a second of silence


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples: Any, kind: str = "WAV", subtype: str | None = None, *, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def tones(samples: np.ndarray) -> list[tuple[float, float]]:
    """Where tones begin in a waveform, in seconds, and their frequencies in Hz."""
    loud = np.sqrt(np.convolve(samples**2, np.ones(160) / 160, "same")) > 0.3 * np.abs(samples).max()
    found: list[tuple[float, float]] = []
    for start in np.flatnonzero(np.diff(loud.astype(int), prepend=0) == 1):
        piece = samples[start + 2000 : start + 10_000]
        hertz = np.abs(np.fft.rfft(piece * np.hanning(len(piece)))).argmax() * RATE / max(1, len(piece))
        if not found or abs(hertz - found[-1][1]) > 50:
            found.append((start / RATE, hertz))
    return found


def holds(samples: np.ndarray, first: float, second: float, within: float = 0.1) -> None:
    """A begins at the first time, B at the second."""
    (begin, low), (again, high) = tones(samples)
    assert (begin, again) == pytest.approx((first, second), abs=within)
    assert (low, high) == pytest.approx((400, 900), abs=10)


def muxed(
    kind: str, codec: str, video: float = 0, offset: float = 0, gap: float = 0, tracks: int = 1, rate: int = 48_000,
    channels: int = 1,
) -> bytes:  # fmt: skip
    """AB in a container.

    Args:
        video: seconds of pictures beside it.
        offset: seconds that its clock is late; from 1.5 s on by `gap` more.
        tracks: of audio, all but the last silent.
    """
    file, layout = io.BytesIO(), {1: "mono", 6: "5.1"}[channels]
    with av.open(file, "w", format=kind, options={"live": "1"} if kind == "webm" else {}) as output:
        packets: list[Any] = []
        if video:
            pictures: Any = output.add_stream("mpeg4", rate=10)
            pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        streams: list[Any] = [output.add_stream(codec, rate=rate, layout=layout) for _ in range(tracks)]
        output.start_encoding()
        for number in range(round(video * 10)):
            picture = av.VideoFrame.from_ndarray(np.zeros((72, 64), np.uint8), format="yuv420p")
            picture.pts, picture.time_base = number, Fraction(1, 10)
            packets += pictures.encode(picture)
        packets += pictures.encode(None) if video else []
        for number, stream in enumerate(streams):
            samples = AB if number == tracks - 1 else 0 * AB
            frame = av.AudioFrame.from_ndarray(np.stack([samples] * channels), format="fltp", layout=layout)
            frame.sample_rate, made, place = RATE, [], 0
            resampler, fifo = av.AudioResampler(stream.format, layout, rate), av.AudioFifo()
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


def test_same_from_every_source(tmp_path: Path):
    path = tmp_path / "tone.mp3"  # the name does not matter
    path.write_bytes(data := encoded(tone(0.1, RATE)))
    expected = soundfile.read(path, dtype="float32")[0]
    with path.open("rb") as file:
        for source in (path, str(path), data, io.BytesIO(data), file):
            np.testing.assert_array_equal(load(source), expected)


@pytest.mark.parametrize(
    ("kind", "subtype", "rate", "channels"),
    [("WAV", "PCM_U8", RATE, 1), ("WAV", "FLOAT", 8_000, 1), ("FLAC", "PCM_16", RATE, 1),
     ("FLAC", "PCM_24", 96_000, 2), ("AIFF", "PCM_16", 22_050, 8), ("OGG", "OPUS", 48_000, 1),
     ("MP3", "MPEG_LAYER_III", 44_100, 2)],
)  # fmt: skip
def test_formats_whole_in_blocks_and_as_flac(kind: str, subtype: str, rate: int, channels: int):
    samples = tone(2.3, rate)
    data = encoded(np.stack([samples] * channels, axis=1), kind, subtype, rate=rate)
    whole, parts = load(data), list(blocks(data, block_seconds=0.25))
    assert len(parts) > 5 and max(map(len, parts)) <= 0.6 * RATE and whole.dtype == np.float32
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    reference = resample_poly(samples, RATE, rate) if rate != RATE else samples
    assert abs(len(whole) - len(reference)) <= (1 if kind in ("WAV", "FLAC", "AIFF") else 0.02 * RATE)
    error = np.linalg.norm((whole[:20_000] - reference[:20_000])[2000:]) / np.linalg.norm(
        reference[2000:20_000]
    )
    assert error < (0.12 if subtype in ("OPUS", "ULAW", "PCM_U8") or kind == "MP3" else 0.02)
    flac, seconds = as_flac(data)
    assert flac_header(flac) == flac_header(flac[:FLAC_HEADER]) == Header(RATE, 1, round(seconds * RATE))
    assert np.abs(load(flac) - np.clip(whole, -1, 1)).max() <= 1 / 32768
    assert (flac == data) == ((kind, subtype, rate, channels) == ("FLAC", "PCM_16", RATE, 1))
    assert as_flac(flac) == (flac, seconds)  # what is kept once is kept for ever


def test_whole_recordings_are_resampled_by_librosa():
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 44_100).astype(np.float32)
    expected = librosa.resample(samples, orig_sr=44_100, target_sr=RATE, res_type="soxr_hq")
    np.testing.assert_array_equal(load(encoded(samples, "WAV", "FLOAT", rate=44_100)), expected)


@pytest.mark.parametrize(
    ("made", "first", "second"),
    [
        (dict(kind="matroska", codec="aac", video=9, offset=5), 5, 7),
        (dict(kind="mp4", codec="aac", video=9, offset=5), 5, 7),
        (dict(kind="mp4", codec="alac", channels=6), 0, 2),
        (dict(kind="mov", codec="pcm_s16le", video=4), 0, 2),
        (dict(kind="3gp", codec="aac", video=2, offset=1), 1, 3),
        (dict(kind="webm", codec="libopus", gap=3), 0, 5),
        (dict(kind="webm", codec="libopus", offset=20), 0, 2),
        (dict(kind="adts", codec="aac"), 0, 2),
        (dict(kind="caf", codec="alac"), 0, 2),
        (dict(kind="mp4", codec="aac", tracks=3), 0, 2),
    ],
    ids=str,
)  # fmt: skip
def test_times_are_on_the_container_s_clock(made: dict[str, Any], first: float, second: float):
    data = muxed(**made)
    loaded = load(data)
    holds(loaded, first, second)
    assert len(loaded) / RATE == pytest.approx(second + 1, abs=0.15)
    np.testing.assert_allclose(np.concatenate(list(blocks(data, block_seconds=0.3))), loaded, atol=1e-5)


def test_small_irregularities_of_a_clock_are_no_gaps():
    smooth, late = (load(muxed("webm", "libopus", gap=gap)) for gap in (0, 0.06))
    np.testing.assert_array_equal(smooth, late)


def test_tracks(caplog: pytest.LogCaptureFixture):
    data = muxed("matroska", "aac", tracks=2)
    assert np.abs(load(data, track=1)).max() < 0.01 and not caplog.records
    holds(load(data), 0, 2)
    assert "track 2 of 2 is read, for track 1 is silent" in caplog.text
    np.testing.assert_array_equal(load(data, track=2), load(data))
    for source in (data, encoded(AB)):
        with pytest.raises(AudioError, match="no audio track 3"):
            load(source, track=3)


MP3, OPUS, VORBIS, FLAC = (
    encoded(AB, *kind) for kind in (("MP3",), ("OGG", "OPUS"), ("OGG", "VORBIS"), ("FLAC",))
)
FRAME = MP3.index(b"\xff", 100)  # after the first frame, which has the length
UNKNOWN = FLAC[:21] + bytes([FLAC[21] & 0xF0]) + bytes(4) + FLAC[26:]
ID3 = b"ID3\3\0\0\0\0\x17\x38" + bytes(3000)
TAG = b"TAG" + bytes(125)
WAV, AIFF, M4A = encoded(AB), encoded(AB, "AIFF"), muxed("mp4", "aac")


def wav(riff: int, data: int) -> bytes:
    """AB with other sizes in the header."""
    return WAV[:4] + struct.pack("<I", riff) + WAV[8:40] + struct.pack("<I", data) + WAV[44:]


def claims(seconds: int) -> bytes:
    """A FLAC of one second whose header has another length."""
    data, samples = encoded(A, "FLAC"), seconds * RATE
    return (
        data[:21] + bytes([data[21] & 0xF0 | samples >> 32]) + (samples & 2**32 - 1).to_bytes(4) + data[26:]
    )


@pytest.mark.parametrize(
    ("data", "second"),
    [
        *((wav(*sizes), 2) for sizes in ((0, 0), (36, 0), (2**32 - 1, 2**32 - 1), (0x7FFFF024, 0x7FFFF000))),
        (WAV + b"LIST\x05\0\0\0INFO!\0id3 \x02\0\0\0ab", 2),
        (UNKNOWN, 2),
        (ID3 * 2 + FLAC, 2),
        (MP3[FRAME:], 2),
        (ID3 * 400 + MP3, 2),  # as with a picture
        (b"\0\x01garbage" * 300 + MP3[FRAME:], 2),
        *((whole + TAG, 2) for whole in (WAV, MP3, FLAC, OPUS, M4A, AIFF)),
        (AIFF[:4] + bytes(4) + AIFF[8:], 2),
        *((encoded(A1, *kind) + encoded(B, *kind), 1.5) for kind in (("MP3",), ("OGG", "OPUS"), ("OGG", "VORBIS"))),
        (encoded(A1, "MP3") + ID3 + encoded(B, "MP3"), 1.5),
        (encoded(A1, "MP3")[FRAME:] + encoded(B, "MP3")[FRAME:], 1.5),
        (encoded(A1, "MP3") + encoded(np.stack([B, B], 1)[::2], "MP3", rate=8000), 1.5),
        (encoded(AB, "RF64"), 2),
    ],
    ids=lambda value: "",
)  # fmt: skip
def test_all_that_can_be_decoded_is_read(data: bytes, second: float):
    loaded = load(data)
    flac, seconds = as_flac(data)  # as in preprocessing
    assert seconds == len(loaded) / RATE
    np.testing.assert_allclose(load(flac), loaded, atol=1 / 32768)
    holds(loaded, 0, second, within=0.2)  # between joined MP3s there may be padding


def test_joined_webm_files_are_read_on_their_clocks():
    loaded = load(muxed("webm", "libopus") + muxed("webm", "libopus", offset=7))
    holds(loaded[: 3 * RATE], 0, 2)
    holds(loaded[7 * RATE :], 0, 2)


def test_lossless_formats_without_a_length_are_the_same_samples():
    for data, known in ((UNKNOWN, FLAC), (wav(0, 0), WAV)):
        np.testing.assert_array_equal(load(data), load(known))


@pytest.mark.parametrize(
    "data",
    [WAV, FLAC, OPUS, VORBIS, MP3, AIFF, *(encoded(AB, kind) for kind in ("W64", "CAF", "RF64")),
     M4A, muxed("matroska", "aac")],
    ids=lambda value: "",
)  # fmt: skip
def test_what_is_cut_is_reported(data: bytes):
    for read in (load, lambda source: list(blocks(source))):
        with pytest.raises(AudioError, match=r"truncated audio|corrupt"):
            read(data[: len(data) * 7 // 10])


def test_audio_that_the_header_does_not_count_is_reported(caplog: pytest.LogCaptureFixture):
    assert len(load(wav(36 + 8000, 8000) + bytes(2**16))) == 4000
    assert f"{len(WAV) - 8044 + 2**16} bytes after the audio are not read" in caplog.text


DAMAGED = FLAC[:9000] + b"\x55" * 200 + FLAC[9200:]
BAD = {
    "empty": (b"", "empty, 0 bytes"),
    "text": (b"frank made fourteen chairs\n" * 20, "not readable as audio .*convert"),
    "RIFF": (b"RIFF, or so it says", "not readable as audio"),
    "ftyp": (b"\x00\x00\x00\x20ftypM4A " + bytes(100), "truncated audio|not readable as audio"),
    "FLAC's middle": (DAMAGED, "corrupt FLAC audio"),
    "no samples": (encoded(np.zeros(0)), "no samples"),
    "nan": (encoded([0, 0.1, np.nan, 0.2], subtype="FLOAT"), "sample 2 is nan"),
    "integers": (encoded([0, 1.0, -20_000.0], subtype="DOUBLE"), "a sample of 20000.* by 32768"),
    "ADPCM": (encoded(A, subtype="IMA_ADPCM"), "WAV with IMA_ADPCM is not admitted"),
    "AC-3": (muxed("matroska", "ac3"), "matroska with ac3 is not admitted"),
    "slow": (encoded(A, rate=2000), "sampled at 2000 Hz, allowed are 4000 to 192000"),
    "wide": (encoded(np.zeros((100, 9))), "9 channels, allowed are 1 to 8"),
    "ten hours": (claims(36_000), "36000.0 s by its header, allowed are at most"),
    "half an hour": (claims(1800), "corrupt FLAC audio|truncated audio, 16000 of 28800000 samples"),
    "joined WAV": (WAV + WAV, "not readable as audio"),
    "joined FLAC": (FLAC + FLAC, "several FLAC recordings"),
    "joined Ogg": (VORBIS + OPUS, "corrupt ogg audio"),
    "late clock": (muxed("webm", "libopus", gap=70_000), r"s by its clock, allowed are at most"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_refused_by_name(tmp_path: Path, name: str):
    data, message = BAD[name]
    path = tmp_path / f"{name}.wav"
    path.write_bytes(data)
    for read in (load, lambda source: list(blocks(source)), as_flac):
        with pytest.raises(AudioError, match=message) as error:
            read(path)
        assert str(path) in str(error.value)


def test_longer_than_allowed():
    assert len(load(encoded(tone(2.0, 8000), rate=8000), max_seconds=2.0)) == 2 * RATE
    for data, words in (
        (WAV, "3.0 s by its header, allowed are at most 2.9"),
        (OPUS, "longer than the 2.9 s"),
    ):
        with pytest.raises(AudioError, match=words):
            load(data, max_seconds=2.9)


def test_channels_are_averaged_and_do_not_cancel():
    plain = load(encoded(AB, "WAV", "FLOAT"))
    for channels in ([AB, -AB], [-AB, AB, AB, -AB], [AB, -0.9 * AB]):
        mixed = load(encoded(np.stack(channels, 1), "WAV", "FLOAT"))
        assert abs(np.corrcoef(mixed, plain)[0, 1]) > 0.999
        assert np.abs(mixed).max() > 0.9 * np.abs(plain).max()
    for channels in ([AB, AB], [AB, 0 * AB], [A, B]):
        stacked = np.stack(channels, 1)
        mixed = load(encoded(stacked, "WAV", "FLOAT"))
        np.testing.assert_array_equal(mixed, stacked.mean(axis=1, dtype=np.float32))


@pytest.mark.parametrize("data", [WAV, MP3, M4A], ids=lambda value: "")
def test_pipes(tmp_path: Path, data: bytes):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for opened in (False, True):
        writer = threading.Thread(target=pipe.write_bytes, args=[data])
        writer.start()
        with pipe.open("rb") if opened else nullcontext(pipe) as source:
            np.testing.assert_array_equal(load(source), load(data))
        writer.join()


def test_devices_folders_and_missing_files(tmp_path: Path):
    with pytest.raises(AudioError, match="/dev/zero: a device"):
        load("/dev/zero")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.wav"):
        load(tmp_path / "none.wav")


def test_content_decides_what_is_audio(tmp_path: Path):
    there = {
        "a.mov": muxed("mov", "aac", video=1), "b": WAV, "c.dat": MP3, "d.WAVE": WAV, "e.bin": OPUS,
        "f.x": muxed("adts", "aac"), "g.wav": b"",
    }  # fmt: skip
    others = {
        "a.txt": b"frank made fourteen chairs " * 50, "b.json": b"{}", "c": b"",
        "d.png": b"\x89PNG\r\n\x1a\n" + bytes(99),
    }  # fmt: skip
    for name, data in (there | others).items():
        (tmp_path / name).write_bytes(data)
    assert {path.name for path in tmp_path.iterdir() if is_audio(path)} == set(there)


def test_g722_is_known_by_its_name(tmp_path: Path):
    """It has no header; a file that begins as another format is of that one."""
    file = io.BytesIO()
    with av.open(file, "w", format="g722") as output:
        stream: Any = output.add_stream("g722", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray((32767 * AB).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        output.mux([*stream.encode(frame), *stream.encode(None)])
    path = tmp_path / "ab.G722"
    path.write_bytes(data := file.getvalue())
    whole = load(path)
    assert is_audio(path) and len(whole) == 2 * len(data) == len(AB)
    holds(whole, 0, 2)
    np.testing.assert_array_equal(np.concatenate(list(blocks(path, block_seconds=0.5))), whole)
    with path.open("rb") as opened:
        assert flac_header(as_flac(opened)[0]).samples == len(whole)
    with pytest.raises(AudioError):
        load(data)  # without its name
    path.write_bytes(WAV)
    np.testing.assert_array_equal(load(path), load(WAV))
    path.write_bytes(b"")
    with pytest.raises(AudioError, match=r"ab\.G722: empty"):
        load(path)
