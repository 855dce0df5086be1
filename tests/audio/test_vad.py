"""Segments of speech: the same whatever the blocks, nothing lost, and none where there is no speech."""

import itertools
from typing import Any

import librosa
import numpy as np
import pytest
import torch

from steermoe.audio import synthesis
from steermoe.audio.io import RATE
from steermoe.audio.vad import WINDOW, Segmenter, SpeechSegment, VoiceActivity

TEXTS = ("frank made fourteen yellow chairs", "the big dog was in the kitchen", "two eight four zero")


@pytest.fixture(scope="module")
def pieces() -> list[np.ndarray]:
    engine, voice = synthesis.Synthesizer(), synthesis.Voice("en-us", "Mike", 160, 50, 50)
    said = [engine.speak(text, voice)[0] for text in TEXTS]
    return [librosa.resample(samples, orig_sr=synthesis.RATE, target_sr=RATE) for samples in said]


def with_gaps(pieces: list[np.ndarray], seconds: float) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """All pieces with silence around each, and where each begins and ends, in seconds."""
    gap = np.zeros(int(seconds * RATE), np.float32)
    parts, times, place = [gap], [], len(gap)
    for piece in pieces:
        times.append((place / RATE, (place + len(piece)) / RATE))
        parts += [piece, gap]
        place += len(piece) + len(gap)
    return np.concatenate(parts), times


def segments(samples: np.ndarray, block: int, longest: float = 8.0) -> list[SpeechSegment]:
    segmenter = Segmenter(longest)
    found = [s for i in range(0, len(samples), block) for s in segmenter.push(samples[i : i + block])]
    return found + segmenter.finish()


@pytest.mark.parametrize("block", [100, 1777, 10**9])
def test_each_sentence_is_a_segment_whatever_the_blocks(pieces: list[np.ndarray], block: int):
    samples, times = with_gaps(pieces, 0.7)
    found = segments(samples, block)
    for segment, other, (begin, end) in zip(found, segments(samples, 3 * RATE), times, strict=True):
        assert (segment.start, segment.overlap, segment.broken) == (other.start, 0, False)
        inside = samples[segment.start : segment.start + len(segment.samples)]
        np.testing.assert_array_equal(segment.samples, inside)
        assert np.abs(np.subtract(segment.speech, (begin, end))).max() < 0.35
        assert segment.start / RATE <= segment.speech[0]


@pytest.mark.parametrize("kind", ["silence", "noise", "tone", "click"])
def test_no_speech_no_segment(kind: str):
    rng, time = np.random.default_rng(1), np.arange(6 * RATE) / RATE
    samples = {
        "silence": np.zeros(6 * RATE),
        "noise": 0.05 * rng.standard_normal(6 * RATE),
        "tone": 0.3 * np.sin(2 * np.pi * 440 * time),
        "click": np.eye(1, 6 * RATE, 3 * RATE)[0],
    }[kind]
    assert segments(samples.astype(np.float32), RATE) == []


def test_what_is_too_long_is_cut_in_a_pause(pieces: list[np.ndarray]):
    found = segments(with_gaps(pieces, 0.2)[0], RATE, longest=3.0)
    assert len(found) > 1 and all(s.seconds <= 3.0 for s in found)
    assert not any(s.overlap or s.broken for s in found)


def test_without_a_pause_there_is_an_overlap(pieces: list[np.ndarray], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("steermoe.audio.vad.PAUSE", 10**6)
    found = segments(with_gaps(pieces, 0.15)[0], RATE, longest=3.0)
    assert len(found) >= 2
    for one, other in itertools.pairwise(found):
        assert one.broken and one.seconds <= 3.0
        assert one.start + len(one.samples) == other.start + other.overlap
        np.testing.assert_array_equal(one.samples[-other.overlap :], other.samples[: other.overlap])
    assert not found[-1].broken


def test_the_open_segment_grows_into_the_one_that_is_returned(pieces: list[np.ndarray]):
    samples, _ = with_gaps(pieces[:1], 0.5)
    segmenter, grown = Segmenter(8.0), []
    for i in range(0, len(samples), WINDOW):
        segmenter.push(samples[i : i + WINDOW])
        if segmenter.open is not None:
            grown.append(segmenter.open)
    (given,) = segments(samples, RATE)
    assert {segment.start for segment in grown} == {given.start}
    assert [segment.seconds for segment in grown] == sorted(segment.seconds for segment in grown)


@pytest.mark.parametrize("decibels", [10, -50])
def test_the_level_does_not_matter(pieces: list[np.ndarray], decibels: int):
    samples, _ = with_gaps(pieces, 1.0)
    samples += 1e-3 * np.random.default_rng(0).standard_normal(len(samples)).astype(np.float32)
    quiet = np.float32(10 ** (decibels / 20)) * samples
    for one, other in zip(segments(samples, RATE), segments(quiet, RATE), strict=True):
        np.testing.assert_allclose(one.speech, other.speech, atol=0.05)


def test_probabilities_are_silero_s_own(pieces: list[np.ndarray], monkeypatch: pytest.MonkeyPatch):
    from silero_vad import load_silero_vad

    monkeypatch.setattr(VoiceActivity, "_gains", lambda _, windows: np.ones(len(windows), np.float32))
    threads = torch.get_num_threads()
    silero: Any = load_silero_vad(sequence=True)
    reference = silero.audio_forward(pieces[0])
    whole = pieces[0][: len(pieces[0]) // WINDOW * WINDOW]
    activity = VoiceActivity()
    found = np.concatenate([activity(whole[: 7 * WINDOW]), activity(whole[7 * WINDOW :])])
    np.testing.assert_allclose(found, reference[: len(found)], atol=1e-5)
    assert torch.get_num_threads() == threads


def test_too_short_for_the_overlap():
    with pytest.raises(ValueError, match=r"longest: found 2 s, legal: at least 2\.32"):
        Segmenter(2.0)
