"""Uploads are decoded in processes of their own: same samples, same errors, and limits."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from steermoe.audio import io as waveform
from steermoe.server.decoding import DecodingError, decode


def test_samples_are_those_of_the_library(encode: Callable[..., bytes]) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal((44100, 2))
    kinds = [("WAV", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")] * 2
    files = [encode(noise, 44100, *kind) for kind in kinds]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda data: decode(data, 30.0), files))
    for data, samples in zip(files, found, strict=True):
        np.testing.assert_array_equal(samples, waveform.load(data))


@pytest.mark.parametrize("data", [b"", b"no audio at all, but a text. " * 50, b"RIFF\x00\x00\x00\x00WAVE"])
def test_errors_are_those_of_the_library(data: bytes) -> None:
    with pytest.raises(waveform.AudioError) as ours:
        waveform.load(data)
    with pytest.raises(waveform.AudioError) as theirs:
        decode(data, 30.0)
    assert str(theirs.value) == str(ours.value)


def test_memory_and_time_are_limited_and_a_crash_is_an_error(encode: Callable[..., bytes]) -> None:
    wide = encode(np.zeros((192_000 * 20, 8), np.int16), 192_000, "FLAC", "PCM_16")
    with pytest.raises(waveform.AudioError, match="more than 8 MiB of memory"):
        decode(wide, 600.0, memory_bytes=2**23)
    costly = encode(np.zeros(4 * 3600 * 4000, np.int16), 4000, "FLAC", "PCM_16")  # hours in few bytes
    with pytest.raises(DecodingError, match=r"more than 0\.3 s"):
        decode(costly, 4 * 3600.0, timeout=0.3)
    known = {process.pid for process in psutil.Process().children(recursive=True)}
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(decode, costly, 4 * 3600.0)
        new: list[psutil.Process] = []
        while not new and not found.done():
            new = [each for each in psutil.Process().children(recursive=True) if each.pid not in known]
        new[0].kill()
        with pytest.raises(DecodingError, match="crashed"):
            found.result(60)
    assert len(decode(encode(np.zeros(1600), 16000), 30.0)) == 1600
