"""Untrusted audio: what the process that decodes it says, what it may take, and that it goes on afterwards."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import pytest

from steermoe.audio import io as waveform
from steermoe.audio.io import blocks
from steermoe.server.limits import Limits
from steermoe.server.sandbox import Decoder, DecodingError, _write


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    decoder = Decoder(Limits(max_seconds=30.0))
    yield decoder
    decoder.close()


def test_it_gives_what_the_library_gives(decoder: Decoder, encode: Callable[..., bytes]) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal((44100, 2))
    kinds = (("WAV", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"))
    for kind in kinds:
        data = encode(noise, 44100, *kind)
        np.testing.assert_array_equal(decoder.load(data), np.concatenate(list(blocks(data))))


@pytest.mark.parametrize("data", [b"", b"no audio at all, but a text. " * 50, b"RIFF\x00\x00\x00\x00WAVE"])
def test_messages_are_those_of_the_library(decoder: Decoder, data: bytes) -> None:
    with pytest.raises(waveform.AudioError) as ours:
        waveform.load(data)
    with pytest.raises(waveform.AudioError) as theirs:
        decoder.load(data)
    assert str(theirs.value) == str(ours.value)


def test_many_at_once(decoder: Decoder, encode: Callable[..., bytes]) -> None:
    files = [encode(np.full(1600 * count, 0.01 * count), 16000) for count in range(1, 13)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(decoder.load, files))
    assert [len(samples) for samples in found] == [1600 * count for count in range(1, 13)]
    assert [round(float(samples[0]), 2) for samples in found] == [0.01 * count for count in range(1, 13)]


def test_memory_is_limited(encode: Callable[..., bytes]) -> None:
    decoder = Decoder(Limits(decode_bytes=2**22))
    try:
        with pytest.raises(DecodingError, match="4 MiB"):
            decoder.load(encode(np.random.default_rng(0).uniform(-1, 1, 2**22), 16000, "FLAC", "PCM_16"))
        assert len(decoder.load(encode(np.zeros(1600), 16000))) == 1600
    finally:
        decoder.close()


def test_processor_time_is_limited(encode: Callable[..., bytes]) -> None:
    decoder = Decoder(Limits(decode_seconds=1, decode_bytes=2**33, max_seconds=4 * 3600.0))
    costly = encode(np.zeros(4 * 3600 * 4000, np.int16), 4000, "FLAC", "PCM_16")  # hours in few bytes
    assert len(costly) < 2**20
    try:  # on a busy machine the three seconds by the clock are over first
        with pytest.raises(DecodingError, match=r"more than (1 s of processor time|3 s by the clock)$"):
            decoder.load(costly)
    finally:
        decoder.close()


def test_a_child_that_is_killed_names_no_limit(encode: Callable[..., bytes]) -> None:
    decoder = Decoder(Limits(decode_seconds=60, decode_bytes=2**33, max_seconds=4 * 3600.0))
    costly = encode(np.zeros(4 * 3600 * 4000, np.int16), 4000, "FLAC", "PCM_16")
    try:
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(decoder.load, costly)
            processes: list[psutil.Process] = []
            while len(processes) < 2 and not found.done():  # the one that waits, and its child
                forks = decoder._process
                processes = [] if forks is None else psutil.Process(forks.pid).children(recursive=True)
            processes[-1].kill()
            with pytest.raises(DecodingError, match=r"ended by SIGKILL$"):
                found.result(60)
    finally:
        decoder.close()


def test_what_does_not_start_is_no_fault_of_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"did not start \(exit status 1\)") as error:
        Decoder(Limits()).load(b"")
    assert not isinstance(error.value, DecodingError)


def test_an_empty_part_is_written_to_nobody() -> None:
    """Whoever answered after the length of nothing may have ended."""
    ours, theirs = socket.socketpair()

    class Closing(socket.socket):
        def sendall(self, *arguments: Any) -> None:
            super().sendall(*arguments)
            theirs.close()

    with Closing(fileno=ours.detach()) as connection:
        _write(connection, b"")


def test_the_process_that_forks_is_replaced(decoder: Decoder, encode: Callable[..., bytes]) -> None:
    data = encode(np.zeros(1600), 16000)
    decoder.load(data)
    process = decoder._process
    assert process is not None
    process.kill()
    process.wait()
    assert len(decoder.load(data)) == 1600
    assert decoder._process is not process


def test_ten_hours_by_the_header_are_refused_before_they_are_decoded(
    decoder: Decoder, encode: Callable[..., bytes]
) -> None:
    data = bytearray(encode(np.zeros(1600), 16000, "FLAC", "PCM_16"))
    fields = int.from_bytes(data[18:26], "big") & ~(2**36 - 1)  # STREAMINFO: all but the number of samples
    data[18:26] = (fields | 10 * 3600 * 16000).to_bytes(8, "big")
    with pytest.raises(
        waveform.AudioError, match=r"36000\.0 s by its header, allowed are at most 30; cut it"
    ):
        decoder.load(bytes(data))
