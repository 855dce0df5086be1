"""Live audio: its sources, and recognition results with their latency.

A source yields blocks (n,) float32 at 16 kHz, each with the time of its arrival (`time.monotonic()`).
"""

import bisect
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from steermoe.asr.transcript import Segment
from steermoe.audio import io
from steermoe.audio.io import RATE, AudioError

BLOCK = RATE // 10  # samples
WAITING = 600  # blocks that a slow consumer may leave waiting
KEPT = 4096  # blocks whose arrival is remembered

Arrived = tuple[float, np.ndarray]


@dataclass(frozen=True)
class Event:
    """A result of live audio.

    Attributes:
        kind: `partial` until the segment has ended; then `final`.
        number: of the segment; a later event with the same number replaces this one.
        segment: text, times and confidence; an empty text withdraws a partial result.
        latency: seconds from the arrival of the last speech in it to this event.
    """

    kind: Literal["partial", "final"]
    number: int
    segment: Segment
    latency: float


class Arrivals:
    """Arrival times of live audio, from which the latency of results is computed."""

    def __init__(self) -> None:
        self._seconds: list[float] = []  # of audio
        self._times: list[float] = []  # when it had arrived

    def add(self, seconds: float, moment: float) -> None:
        """Note that the first `seconds` of audio had arrived at a moment (`time.monotonic()`)."""
        self._seconds.append(seconds)
        self._times.append(moment)
        del self._seconds[:-KEPT], self._times[:-KEPT]

    def event(self, kind: Literal["partial", "final"], number: int, segment: Segment) -> Event:
        """Return an event that happens now."""
        place = min(bisect.bisect_left(self._seconds, segment.end), len(self._times) - 1)
        return Event(kind, number, segment, time.monotonic() - self._times[place])


def microphone(device: str | None = None) -> Iterator[Arrived]:
    """Record from the microphone until the reader stops.

    Raises:
        ValueError: sounddevice or PortAudio is not installed, or there is no such microphone.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: PortAudio is missing
        raise ValueError(
            f"the microphone is not available: {error}; pip install 'steermoe[microphone]', and PortAudio "
            "(libportaudio2) on the machine"
        ) from error
    arrived: queue.Queue[Arrived] = queue.Queue(WAITING)

    def receive(data: np.ndarray, *_: object) -> None:
        try:
            arrived.put_nowait((time.monotonic(), data[:, 0].copy()))
        except queue.Full:
            print("steermoe: too slow for the microphone, 0.1 s was lost", file=sys.stderr)

    chosen = int(device) if device is not None and device.isdigit() else device
    try:
        with sounddevice.InputStream(RATE, BLOCK, chosen, 1, "float32", callback=receive):
            while True:
                yield arrived.get()
    except (sounddevice.PortAudioError, ValueError) as error:
        raise ValueError(f"the microphone cannot be opened: {error}") from error


def until_interrupted(blocks: Iterator[Arrived]) -> Iterator[Arrived]:
    """End a source at Ctrl-C as at its own end, so that its last segment becomes final; a second Ctrl-C raises."""
    interrupted, before = threading.Event(), signal.getsignal(signal.SIGINT)

    def interrupt(*_: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, interrupt)
    try:
        for block in blocks:
            if interrupted.is_set():
                return
            yield block
    finally:
        signal.signal(signal.SIGINT, before)


def pcm(source: BinaryIO) -> Iterator[Arrived]:
    """Read raw signed 16-bit little-endian samples at 16 kHz, mono, in a thread, so that arrival times are true.

    Raises:
        AudioError: it ends within a sample.
    """
    arrived: queue.Queue[tuple[float, bytes]] = queue.Queue(WAITING)

    def read() -> None:
        data = b"-"
        while data:
            data = source.read(2 * BLOCK)
            arrived.put((time.monotonic(), data))

    threading.Thread(target=read, daemon=True).start()
    while (item := arrived.get())[1]:
        moment, data = item
        if len(data) % 2:
            raise AudioError("standard input: ends within a sample; expected 16-bit samples, mono, at 16 kHz")
        yield moment, np.frombuffer(data, "<i2").astype(np.float32) / 32768


def played(path: Path, speed: float = 1.0) -> Iterator[Arrived]:
    """Play a recording as if it were spoken now, `speed` times as fast.

    Raises:
        AudioError, OSError: as `steermoe.audio.io.blocks`.
    """
    begin, samples = time.monotonic(), 0
    for block in io.blocks(path, block_seconds=BLOCK / RATE):
        samples += len(block)
        due = begin + samples / RATE / speed
        time.sleep(max(0.0, due - time.monotonic()))
        yield due, block
