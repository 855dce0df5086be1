"""Audio as it comes: blocks (n,) float32 at 16 kHz, each with the time (`time.monotonic()`) at which it was there."""

import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from steermoe.audio import blocks
from steermoe.audio.waveform import RATE, AudioError

BLOCK = RATE // 10  # samples
WAITING = 600  # blocks that a slow listener may leave waiting

Arrived = tuple[float, np.ndarray]


def microphone(device: str | None = None) -> Iterator[Arrived]:
    """The microphone, until the reader stops.

    Raises:
        ValueError: sounddevice or PortAudio is not installed, or there is no such microphone.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: PortAudio lacks
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
    """Blocks until Ctrl-C, which ends them as their own end does: what was said becomes final. A second one raises."""
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
    """Raw signed 16-bit little-endian samples at 16 kHz, mono; read by a thread, so that times are true.

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
    """A recording as if it were spoken now, `speed` times as fast.

    Raises:
        AudioError, OSError: as `blocks.blocks`.
    """
    begin, samples = time.monotonic(), 0
    for block in blocks.blocks(path, block_seconds=BLOCK / RATE):
        samples += len(block)
        due = begin + samples / RATE / speed
        time.sleep(max(0.0, due - time.monotonic()))
        yield due, block
