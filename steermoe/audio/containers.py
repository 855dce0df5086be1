"""Recordings in containers that libsndfile does not read, decoded by FFmpeg's libraries through PyAV.

Nothing is probed: the container is the one that the first bytes name, its codec one of a list. Input is an open
stream and nothing else: no other file, no network address (MP4 may point to some) can be opened from it.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO, Self

import av
import numpy as np
from av.error import FFmpegError

NAMES = {"mov": "MP4", "matroska": "Matroska or WebM"}  # by FFmpeg's demuxer
CODECS = ("aac", "alac", "opus", "vorbis", "mp3", "flac")
OPTIONS = {"protocol_whitelist": "none", "enable_drefs": "0"}
SLACK = 0.5  # seconds by which codec delay may make a recording other than as long as the container says


class ContainerError(ValueError):
    """A container cannot be used: corrupt, truncated, without audio, or with a codec that is not admitted."""


class Container:
    """The first audio stream of a container, with what `soundfile.SoundFile` offers of reading.

    Args:
        stream: the file, which can be sought in.
        demuxer: FFmpeg's for it, one of NAMES.

    Attributes:
        format, subtype: of the container and of its codec, in capitals.
        samplerate, channels: as decoded; Hz.
        frames: samples of each channel by the container's duration, which is exact to SLACK.

    Raises:
        ContainerError: see there.
    """

    def __init__(self, stream: BinaryIO, demuxer: str) -> None:
        self._stream, self._demuxer = stream, demuxer
        self.format = NAMES[demuxer]
        self._left: list[np.ndarray] = []
        self._decoded = 0
        try:
            seconds = self._seconds()
            self._input, track = self._open()
            self.subtype = track.codec_context.name.upper()
            self._frames = self._blocks(track)
            first = next(self._frames, None)
        except FFmpegError as error:
            raise ContainerError(f"not readable as audio ({self.format}: {error.strerror})") from error
        if first is None:
            raise ContainerError("no samples")
        self.channels, self.samplerate = first.shape[1], self._rate
        self.frames = round(seconds * self.samplerate)
        self._left = [first]

    def _open(self) -> tuple[Any, Any]:
        self._stream.seek(0)
        opened = av.open(self._stream, format=self._demuxer, options=OPTIONS)
        if not opened.streams.audio:
            raise ContainerError(f"{self.format} without audio")
        track = opened.streams.audio[0]
        if track.codec_context.name.removesuffix("float") not in CODECS:
            raise ContainerError(
                f"{self.format} with {track.codec_context.name} is not admitted; expected one of {', '.join(CODECS)}"
            )
        return opened, track

    def _seconds(self) -> float:
        """Length by the header, else (browsers write none) by the packets' times, without decoding."""
        opened, track = self._open()
        with opened:
            if track.duration is not None:
                return float(track.duration * track.time_base)
            if opened.duration is not None:
                return opened.duration / av.time_base
            ends = [
                float((packet.pts + (packet.duration or 0)) * packet.time_base)
                for packet in opened.demux(track)
                if packet.pts is not None
            ]
        return max(ends, default=0.0)

    def _blocks(self, track: Any) -> Iterator[np.ndarray]:
        """Samples (n, channels) as they are decoded."""
        self._rate = 0
        resampler = av.AudioResampler(format="fltp")
        for frame in self._input.decode(track):
            for part in resampler.resample(frame):
                samples = part.to_ndarray().T
                if self._rate and (part.sample_rate, samples.shape[1]) != (self._rate, self.channels):
                    raise ContainerError("sampling rate or channels change within the recording")
                self._rate = part.sample_rate
                yield samples

    def read(self, frames: int = -1, dtype: str = "float32", always_2d: bool = True) -> np.ndarray:
        """The next samples (n, channels) float32, `frames` of them or all; fewer at the end.

        Raises:
            ContainerError: what is in the container is corrupt, or longer or shorter than it says.
        """
        slack = round(SLACK * self.samplerate)
        count = sum(map(len, self._left))
        try:
            while frames < 0 or count < frames:
                block = next(self._frames, None)
                if block is None:
                    break
                self._left.append(block)
                count += len(block)
                if self._decoded + count > self.frames + slack:
                    raise ContainerError(f"longer than the {self.frames / self.samplerate:.1f} s it says")
        except FFmpegError as error:
            raise ContainerError(f"corrupt {self.format} audio ({error.strerror})") from error
        samples = np.concatenate(self._left) if self._left else np.zeros((0, self.channels), np.float32)
        taken = samples if frames < 0 else samples[:frames]
        self._left = [samples[len(taken) :]] if len(taken) < len(samples) else []
        self._decoded += len(taken)
        if (frames < 0 or len(taken) < frames) and self._decoded < self.frames - slack:
            raise ContainerError(
                f"truncated audio, {self._decoded} of {self.frames} samples could be decoded"
            )
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._input.close()
