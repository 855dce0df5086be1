"""Untrusted audio: what the process that decodes it says, what it may take, and that it goes on afterwards."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from steermoe.audio import waveform
from steermoe.audio.blocks import blocks
from steermoe.serving.decoding import Decoder, DecodingError
from steermoe.serving.limits import Limits


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
    began = time.monotonic()
    try:
        with pytest.raises(DecodingError, match="more than 1 s of processor time"):
            decoder.load(costly)
    finally:
        decoder.close()
    assert time.monotonic() - began < 10


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
