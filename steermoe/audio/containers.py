"""Split a file into its recordings, and decode with FFmpeg's libraries (PyAV) what libsndfile does not.

`cat a.ogg b.ogg`, radio streams and the like put several recordings into one file. Decoders stop after the first, so
each is decoded separately. A file that ends before the size in its header was cut off; a size of 0, or the largest
number, says nothing.

G.722 (`.g722`) alone has no header: it is recognised by its name.

FFmpeg gets an open stream and nothing else: it can open no other file and no network address (MP4 and playlists may
point to some). Only the formats and codecs listed here are decoded, and never video.
"""

import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
JITTER = 0.1  # seconds by which a packet may be late before that is a gap
RESTART = 1.0  # seconds by which a packet is early where the clock was set back
SILENT = 1e-3  # peak of a track without sound, -60 dB
UNKNOWN = 0x7FFF0000  # writers to a pipe leave 32-bit sizes from here on
SEARCHED = 2**20  # bytes read at a time in a search
HEAD = 27 + 255  # bytes of the longest header, an Ogg page's
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A recording in a file.

    Attributes:
        file: has this recording alone, and can be sought in.
        format: a key of BEGINS, HEADERLESS, or "" for another.
        surplus: bytes that the size in its header does not count; 0 if the header has none.
    """

    file: BinaryIO
    format: str
    surplus: int


def parts(file: BinaryIO, name: str) -> Iterator[Part]:
    """Yield the recordings in a seekable file, at least one; nothing is decoded.

    Raises:
        AudioError: the file is empty, or ends before the size in a header; `name` is its name in messages.
    """
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise AudioError(f"{name}: empty, 0 bytes")
    if _headerless(file, name):
        yield Part(file, HEADERLESS, 0)
        return
    start = 0
    while (head := _at(file, start, 10)).startswith(b"ID3") and len(
        head
    ) == 10:  # tags; 7 bits of a byte count
        start += 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    while start < size:
        head = _at(file, start, HEAD)
        format = next((each for each, begins in BEGINS.items() if begins.match(head)), "")
        end = _end(file, start, size, format)
        if end > size + 1:  # a last byte that is padding may be missing
            raise AudioError(f"{name}: truncated audio, {size} of {end} bytes are there")
        stop = _search(file, BEGINS[format], max(end, start + 8), size) if format else size
        with _cut(file, start, stop, size) as alone:
            yield Part(alone, format, max(0, stop - end) if end > start else 0)
        start = stop


def _headerless(file: BinaryIO, name: str) -> bool:
    """Return whether a file is G.722, by its name, unless it begins as a recording of another format."""
    if not name.lower().endswith(f".{HEADERLESS}"):
        return False
    head = _at(file, 0, HEAD)
    return not any(begins.match(head) for begins in BEGINS.values())


@contextmanager
def _cut(file: BinaryIO, start: int, stop: int, size: int) -> Iterator[BinaryIO]:
    """Open bytes `start` to `stop` of a file as a file: a copy, unless they are all of it."""
    if (start, stop) == (0, size):
        yield file
        return
    with tempfile.TemporaryFile() as copy:
        for place in range(start, stop, SEARCHED):
            copy.write(_at(file, place, min(SEARCHED, stop - place)))
        yield copy


def _at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _search(file: BinaryIO, wanted: re.Pattern[bytes], place: int, size: int) -> int:
    while place < size:
        if found := wanted.search(_at(file, place, SEARCHED + HEAD)):
            return place + found.start()
        place += SEARCHED
    return size


def _end(file: BinaryIO, start: int, size: int, format: str) -> int:
    """Return where the units of a recording end: before the next recording, or a unit of unknown size."""
    place, first = start, True
    while place < size:
        head = _at(file, place, HEAD)
        begins = bool(format and BEGINS[format].match(head))
        first = place == start or (
            first and begins and format == "ogg"
        )  # which begins with a page for each track
        length = _length(head, format) if first or not begins else None
        if length is None:
            break
        place += length
    return place


def _length(head: bytes, format: str) -> int | None:
    """Return the bytes of the unit that begins so (chunk, box, page, element); None: unknown, or no unit."""
    if format == "matroska":
        return _element(head)
    if format == "ogg":
        lacing = head[27 : 27 + head[26]] if len(head) > 26 else b""
        return 27 + len(lacing) + sum(lacing) if head.startswith(b"OggS") else None
    for pattern, order, origin in SIZES.get(format, ()):
        if found := re.match(pattern, head, re.DOTALL):
            count = int.from_bytes(found[1], order)
            known = 0 < count < (UNKNOWN if len(found[1]) == 4 else 2**62)
            return (found.end(1) if origin is None else origin) + count if known else None
    return None


def _element(head: bytes) -> int | None:
    """Return the bytes of a Matroska element; one of unknown size, as written to a pipe, is entered."""
    width = 9 - head[0].bit_length()
    if head[:width] not in ELEMENTS or len(head) <= width:
        return None
    more = 9 - head[width].bit_length()
    unknown = (1 << 7 * more) - 1
    count = int.from_bytes(head[width : width + more], "big") & unknown
    return width + more + (0 if count == unknown else count)


BEGINS = {
    format: re.compile(pattern, re.DOTALL)
    for format, pattern in {
        "wav": rb"RIFF.{4}WAVE", "rf64": rb"RF64.{4}WAVE", "w64": rb"riff\x2e\x91\xcf\x11",
        "aiff": rb"FORM.{4}AIF[FC]", "flac": rb"fLaC[\0\x80]\0\0\x22", "ogg": rb"OggS\0\x02",
        "matroska": rb"\x1aE\xdf\xa3", "caf": rb"caff\0\x01",
        "mp4": rb".{4}ftyp",
    }.items()
}  # fmt: skip
# Headers with the size of a unit: the pattern, the byte order of its group, and from where the size counts (None: from
# the end of the group). Key "" is MP3, which may have the size of the file in its first frame.
SIZES: dict[str, list[tuple[bytes, Literal["little", "big"], int | None]]] = {
    "wav": [(rb"RIFF(.{4})WAVE", "little", None)],
    "rf64": [(rb"RF64.{16}(.{8})", "little", 8)],
    "w64": [(rb"riff.{12}(.{8})", "little", 0)],
    "aiff": [(rb"FORM(.{4})AIF", "big", None)],
    "caf": [(rb"(?:caff.{4})?\w{3}[\w ](.{8})", "big", None)],
    "mp4": [
        (rb"\0\0\0\x01\w{3}[\w ](.{8})", "big", 0),
        (rb"((?!\0\0\0[\0-\x07]).{4})\w{3}[\w ]", "big", 0),
    ],
    "": [
        (rb"\xff.{3,200}?(?:Xing|Info).{3}(?:[\x02\x06\x0a\x0e]|[\x03\x07\x0b\x0f].{4})(.{4})", "big", 0),
        (rb"\xff.{3,200}?VBRI.{6}(.{4})", "big", 0),
    ],
}
ELEMENTS = frozenset(  # of Matroska: EBML, Segment, and what is in segments and clusters
    bytes.fromhex(each)
    for each in "1a45dfa3 18538067 1f43b675 114d9b74 1549a966 1654ae6b 1c53bb6b 1254c367 1043a770 1941a469 "
    "ec bf e7 a3 a0 a7 ab 5854 af".split()
)


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
    try:
        format = HEADERLESS if _headerless(file, name) else None
        file.seek(0)
        return av.open(file, format=format, options=OPTIONS)
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
