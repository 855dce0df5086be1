"""Recordings that FFmpeg's libraries decode, through PyAV: all but WAV, AIFF and FLAC of known length.

Input is an open stream and nothing else: no other file, no network address (MP4 and playlists may point to some) can
be opened from it. Only the formats and codecs listed here are, video is never decoded.
"""

import logging
from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import numpy as np
from av.error import FFmpegError, InvalidDataError
from av.stream import Disposition

from steermoe.audio.base import AudioError, as_floats
from steermoe.audio.parts import Part, View

FORMATS = (
    "mov",
    "matroska",
    "ogg",
    "mp3",
    "aac",
    "amr",
    "caf",
    "flac",
    "wav",
    "w64",
    "aiff",
    "au",
    "nistsphere",
)
CODECS = (
    *("aac", "alac", "opus", "vorbis", "mp3", "mp3float", "flac", "amrnb", "amrwb"),
    *("pcm_u8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be"),
    *("pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be", "pcm_alaw", "pcm_mulaw"),
)
OPTIONS = {
    "format_whitelist": ",".join(FORMATS), "codec_whitelist": ",".join(CODECS),
    "protocol_whitelist": "none", "enable_drefs": "0",
}  # fmt: skip
CLOCKED = ("mov", "matroska", "ogg")  # whose packets have times of their own
JITTER = 0.1  # seconds by which a packet may be late before that is a gap
RESTART = 1.0  # seconds by which a packet is early where the clock was set back
SILENT = 1e-3  # peak, -60 dB: of a track that has no sound
log = logging.getLogger(__name__)


def frames(
    file: BinaryIO, part: Part, name: str, max_seconds: float, track: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """An audio track as it is decoded, on the container's clock, which begins where its first track does.

    Where the clock says that nothing was recorded (the track begins late, packets lack), there is silence. Samples are
    never dropped: what is early follows what was before.

    Args:
        file: can be sought in.
        part: of the file.
        name: what it is called in messages.
        max_seconds: longer recordings are refused.
        track: which audio track, from 1; None: the one that the container calls the default, or the first, but
            another where that is silent.

    Yields:
        The sampling rate in Hz, and samples (n, channels) float32 with full scale at 1.

    Raises:
        AudioError: corrupt, without audio or the track, of a codec that is not admitted, or too long.
    """
    with _open(file, part, name) as container:
        number = _chosen(file, part, container, name, track)
        clocked = _kind(container) in CLOCKED
        origin, seconds = (container.start_time or 0) / av.time_base, 0.0
        for frame, samples in _decoded(container, number, name):
            rate = frame.sample_rate
            late = (
                float(frame.pts * frame.time_base) - origin - seconds
                if clocked and frame.pts is not None
                else 0
            )
            if late < -RESTART:
                origin += late
            if late > JITTER:
                if seconds + late > max_seconds:
                    raise AudioError(
                        f"{name}: {seconds + late:.1f} s by its clock, allowed are at most {max_seconds:g}; cut it"
                    )
                for silence in _silence(round(late * rate), rate, samples.shape[1]):
                    yield rate, silence
                seconds += late
            yield rate, samples
            seconds += len(samples) / rate


def has_audio(file: BinaryIO, part: Part) -> bool:
    """Whether it can be opened, and has an audio track."""
    try:
        with _open(file, part, "") as container:
            return bool(container.streams.audio)
    except AudioError:
        return False


def _open(file: BinaryIO, part: Part, name: str) -> Any:
    try:
        return av.open(View(file, part), options=OPTIONS)
    except (FFmpegError, ValueError) as error:  # a plain ValueError where FFmpeg's own has no number
        found = getattr(error, "strerror", None) or error
        raise AudioError(
            f"{name}: not readable as audio ({found}); expected WAV, FLAC, AIFF, MP3, Ogg, MP4 (m4a, mov), "
            "Matroska (WebM), AAC, AMR, CAF or W64; convert others, for instance by "
            "`ffmpeg -i <file> -ac 1 -ar 16000 <file>.flac`"
        ) from error


def _kind(container: Any) -> str:
    return container.format.name.split(",")[0]


def _chosen(file: BinaryIO, part: Part, container: Any, name: str, track: int | None) -> int:
    """Which audio track is read, from 0."""
    tracks = container.streams.audio
    if not tracks:
        raise AudioError(f"{name}: {container.format.long_name} without audio")
    if track is not None and not 1 <= track <= len(tracks):
        raise AudioError(f"{name}: no audio track {track}; it has {len(tracks)}, counted from 1")
    if track is not None or len(tracks) == 1:
        return (track or 1) - 1
    order = sorted(range(len(tracks)), key=lambda n: not tracks[n].disposition & Disposition.default)
    chosen = next((n for n in order if _sounds(file, part, n, name)), order[0])
    why = "" if chosen == order[0] else f", for track {order[0] + 1} is silent"
    log.warning("%s: audio track %d of %d is read%s", name, chosen + 1, len(tracks), why)
    return chosen


def _sounds(file: BinaryIO, part: Part, number: int, name: str) -> bool:
    with _open(file, part, name) as container:
        if container.streams.audio[number].codec_context.name not in CODECS:
            return False
        return any(np.abs(samples).max() > SILENT for _, samples in _decoded(container, number, name))


def _decoded(container: Any, number: int, name: str) -> Iterator[tuple[Any, np.ndarray]]:
    """Frames of a track, and their samples (n, channels)."""
    stream = container.streams.audio[number]
    kind, codec = _kind(container), stream.codec_context.name
    if codec not in CODECS:
        raise AudioError(f"{name}: {kind} with {codec} is not admitted; expected one of {', '.join(CODECS)}")
    good = bad = 0
    try:
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except InvalidDataError:
                if kind in CLOCKED:
                    raise
                bad += 1  # tags and rests of frames, as between joined files
                continue
            for frame in decoded:
                good += 1
                yield frame, _samples(frame)
    except FFmpegError as error:
        raise AudioError(f"{name}: corrupt {kind} audio ({error.strerror})") from error
    if bad > max(2, good // 10):
        raise AudioError(f"{name}: corrupt {kind} audio ({bad} of {bad + good} packets cannot be decoded)")


def _samples(frame: Any) -> np.ndarray:
    data = frame.to_ndarray()
    return as_floats(data.T if frame.format.is_planar else data.reshape(-1, frame.layout.nb_channels))


def _silence(count: int, rate: int, channels: int) -> Iterator[np.ndarray]:
    for first in range(0, count, 10 * rate):
        yield np.zeros((min(10 * rate, count - first), channels), np.float32)
