"""Decode with FFmpeg's libraries (PyAV) what libsndfile does not, and find files that end too early.

FFmpeg reads joined MP3, Ogg and WebM files by itself. It does not report that a file was cut off, so the size in the
header is compared with the file; a size of 0, or the largest number, means that the writer did not know it.

G.722 (`.g722`) alone has no header: it is recognised by its name.

FFmpeg gets an open stream and nothing else: it can open no other file and no network address (MP4 and playlists may
point to some). Only the formats and codecs listed here are decoded, and never video.
"""

import logging
import os
import re
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

import av
import numpy as np
from av.error import FFmpegError, InvalidDataError
from av.stream import Disposition

from steermoe.audio.samples import AudioError, as_floats

FORMATS = "mov matroska ogg mp3 aac amr caf flac wav w64 aiff au nistsphere g722".split()
CODECS = (
    "aac alac opus vorbis mp3 mp3float flac amrnb amrwb pcm_u8 pcm_s16le pcm_s16be pcm_s24le pcm_s24be pcm_s32le "
    "pcm_s32be pcm_f32le pcm_f32be pcm_f64le pcm_f64be pcm_alaw pcm_mulaw g722"
).split()
OPTIONS = {
    "format_whitelist": ",".join(FORMATS), "codec_whitelist": ",".join(CODECS),
    "protocol_whitelist": "none", "enable_drefs": "0",
}  # fmt: skip
CLOCKED = ("mov", "matroska", "ogg")  # formats whose packets have times
HEADERLESS = "g722"  # at 16 kHz, a byte for two samples
WITH_HEADER = re.compile(rb"RIFF|RF64|riff|FORM|fLaC|OggS|\x1aE\xdf\xa3|caff|ID3|....ftyp", re.DOTALL)
JITTER = 0.1  # seconds by which a packet may be late before that is a gap
RESTART = 1.0  # seconds by which a packet is early where the clock was set back
SILENT = 1e-3  # peak of a track without sound, -60 dB
HEAD = 400  # bytes that are searched for a size
UNKNOWN = 0x7FFF0000  # writers to a pipe leave 32-bit sizes from here on
PAGE = 65_307  # bytes of the longest Ogg page
SIZES: list[
    tuple[bytes, Literal["little", "big"], int]
] = [  # header, byte order of its group, where the size begins
    (rb"RIFF(.{4})WAVE", "little", 8),
    (rb"RF64.{16}(.{8})", "little", 8),
    (rb"riff.{12}(.{8})", "little", 0),  # W64
    (rb"FORM(.{4})AIF", "big", 8),
    (rb"\xff.{3,200}?(?:Xing|Info).{3}(?:[\x02\x06\x0a\x0e]|[\x03\x07\x0b\x0f].{4})(.{4})", "big", 0),  # MP3
]
log = logging.getLogger(__name__)


def declared_end(file: BinaryIO) -> int | None:
    """Return how many bytes a seekable file should have by its header; None where that does not say."""
    size, start = file.seek(0, os.SEEK_END), 0
    while (head := _at(file, start, HEAD)).startswith(b"ID3") and len(
        head
    ) > 9:  # tags; 7 bits of a byte count
        start += 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    for pattern, order, origin in SIZES:
        if found := re.match(pattern, head, re.DOTALL):
            count = int.from_bytes(found[1], order)
            known = 0 < count < (UNKNOWN if len(found[1]) == 4 else 2**62)
            return start + origin + count if known else None
    if head.startswith(b"OggS"):
        return _last_page_end(file, size)
    if head.startswith(b"\x1aE\xdf\xa3"):
        return _segment_end(head)
    if head.startswith(b"caff"):
        return _chunks_end(file, size)
    return _boxes_end(file, size) if head[4:8] == b"ftyp" else None


def _at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _last_page_end(file: BinaryIO, size: int) -> int:
    """Return where the last page of an Ogg file ends; its lengths come after its 27 bytes."""
    first = max(0, size - PAGE)
    tail = _at(file, first, PAGE)
    place = max(0, tail.rfind(b"OggS"))
    lengths = tail[place + 27 : place + 27 + tail[place + 26]] if len(tail) > place + 26 else bytes(255)
    return first + place + 27 + len(lengths) + sum(lengths)


def _segment_end(head: bytes) -> int | None:
    """Return where the segment of a Matroska file ends; None if it was written to a pipe."""
    place = head.find(b"\x18\x53\x80\x67") + 4
    width = 9 - head[place].bit_length() if 4 <= place < len(head) else 9
    count = int.from_bytes(head[place : place + width], "big") & (1 << 7 * width) - 1
    return None if width > 8 or count == (1 << 7 * width) - 1 else place + width + count


def _boxes_end(file: BinaryIO, size: int) -> int | None:
    """Return where the boxes of an MP4 file end."""
    place = 0
    while place < size:
        length, kind, long = struct.unpack(">I4sQ", _at(file, place, 16).ljust(16, b"\0"))
        if length == 0:  # up to the end of the file
            return None
        if not re.match(rb"\w{3}[\w ]", kind):  # tags
            return place
        place += max(8, long if length == 1 else length)
    return place


def _chunks_end(file: BinaryIO, size: int) -> int | None:
    """Return where the chunks of a CAF file end."""
    place = 8
    while place < size:
        length = struct.unpack(">4sq", _at(file, place, 12).ljust(12, b"\0"))[1]
        if length < 0:  # up to the end of the file
            return None
        place += 12 + length
    return place


def frames(
    file: BinaryIO, name: str, max_seconds: float, track: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode an audio track on the container's clock, which begins where its first track does.

    Where the clock says that nothing was recorded (the track begins late, packets are missing), there is silence.
    Samples are never dropped: one that is early follows the one before.

    Args:
        track: number of the audio track, from 1; None: the container's default, or the first that is not silent.

    Yields:
        The sampling rate in Hz, and samples (n, channels) float32 with full scale at 1.

    Raises:
        AudioError: corrupt, without audio or the track, of a codec that is not listed, or too long.
    """
    with _open(file, name) as container:
        number = _track(file, container, name, track)
        clocked = _format(container) in CLOCKED
        origin, seconds = (container.start_time or 0) / av.time_base, 0.0
        for frame, samples in _decoded(container, number, name):
            rate, late = frame.sample_rate, 0.0
            if clocked and frame.pts is not None:
                late = float(frame.pts * frame.time_base) - origin - seconds
            if late < -RESTART:
                origin += late
            if late > JITTER:
                seconds += late
                if seconds > max_seconds:
                    raise AudioError(
                        f"{name}: {seconds:.1f} s by its clock, allowed are at most {max_seconds:g}; cut it"
                    )
                count = round(late * rate)
                for first in range(0, count, 10 * rate):
                    yield rate, np.zeros((min(10 * rate, count - first), samples.shape[1]), np.float32)
            yield rate, samples
            seconds += len(samples) / rate


def has_audio(file: BinaryIO) -> bool:
    """Return whether FFmpeg can open a file, and it has an audio track."""
    try:
        with _open(file, "") as container:
            return bool(container.streams.audio)
    except AudioError:
        return False


def _open(file: BinaryIO, name: str) -> Any:
    is_headerless = name.lower().endswith(f".{HEADERLESS}") and not WITH_HEADER.match(_at(file, 0, HEAD))
    try:
        file.seek(0)
        return av.open(file, format=HEADERLESS if is_headerless else None, options=OPTIONS)
    except (FFmpegError, ValueError) as error:  # a plain ValueError where FFmpeg's own has no number
        found = getattr(error, "strerror", None) or error
        raise AudioError(
            f"{name}: not readable as audio ({found}); expected WAV, FLAC, AIFF, MP3, Ogg, MP4 (m4a, mov), "
            "Matroska (WebM), AAC, AMR, CAF, W64 or G.722 (.g722); convert others, for instance by "
            "`ffmpeg -i <file> -ac 1 -ar 16000 <file>.flac`"
        ) from error


def _format(container: Any) -> str:
    return container.format.name.split(",")[0]


def _track(file: BinaryIO, container: Any, name: str, track: int | None) -> int:
    """Return which audio track to read, from 0."""
    tracks = container.streams.audio
    if not tracks:
        raise AudioError(f"{name}: {container.format.long_name} without audio")
    if track is not None and not 1 <= track <= len(tracks):
        raise AudioError(f"{name}: no audio track {track}; it has {len(tracks)}, counted from 1")
    if track is not None or len(tracks) == 1:
        return (track or 1) - 1
    order = sorted(range(len(tracks)), key=lambda n: not tracks[n].disposition & Disposition.default)
    chosen = next((n for n in order if _sounds(file, n, name)), order[0])
    why = "" if chosen == order[0] else f", for track {order[0] + 1} is silent"
    log.warning("%s: audio track %d of %d is read%s", name, chosen + 1, len(tracks), why)
    return chosen


def _sounds(file: BinaryIO, number: int, name: str) -> bool:
    with _open(file, name) as container:
        if container.streams.audio[number].codec_context.name not in CODECS:
            return False
        return any(np.abs(samples).max() > SILENT for _, samples in _decoded(container, number, name))


def _decoded(container: Any, number: int, name: str) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield the frames of a track, and their samples (n, channels)."""
    stream = container.streams.audio[number]
    format, codec = _format(container), stream.codec_context.name
    if codec not in CODECS:
        raise AudioError(
            f"{name}: {format} with {codec} is not admitted; expected one of {', '.join(CODECS)}"
        )
    good = bad = 0
    try:
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except InvalidDataError:
                if format in CLOCKED:
                    raise
                bad += 1  # tags and incomplete frames, as between joined files
                continue
            for frame in decoded:
                good += 1
                data = frame.to_ndarray()
                planar = data.T if frame.format.is_planar else data.reshape(-1, frame.layout.nb_channels)
                yield frame, as_floats(planar)
    except FFmpegError as error:
        raise AudioError(f"{name}: corrupt {format} audio ({error.strerror})") from error
    if bad > max(2, good // 10):
        raise AudioError(f"{name}: corrupt {format} audio ({bad} of {bad + good} packets cannot be decoded)")
