"""Recordings to transcripts: texts, times, confidence; bad ones among good ones; bounded memory; live audio."""

import json
import logging
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile
import torch

from steermoe.asr.recognizer import Recognizer, implausible, longest
from steermoe.asr.transcript import Transcript
from steermoe.audio.io import RATE, AudioError
from steermoe.data.prompts import encode_prompt
from steermoe.models.inference import answer_all

ROOT = Path(__file__).parents[2]
Spoken = list[SimpleNamespace]


@pytest.fixture(scope="module")
def transcript(mini: Any, talk: np.ndarray) -> Transcript:
    return Recognizer(mini, words=True).transcript(talk)


@pytest.fixture
def breath(spoken: Spoken, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Three sentences without a pause, which are cut with an overlap."""
    monkeypatch.setattr("steermoe.audio.vad.PAUSE", 10**6)
    return np.concatenate([each.samples for each in spoken[:3]])


def test_sentences_are_segments(transcript: Transcript, spoken: Spoken, talk: np.ndarray):
    texts = [each.text for each in spoken[:4]]
    assert transcript.seconds == pytest.approx(len(talk) / RATE)
    assert jiwer.wer(texts, [segment.text for segment in transcript.segments]) < 0.2
    place = 0.0
    for segment, each in zip(transcript.segments, spoken, strict=False):
        begin, end = place + each.onsets[0], place + len(each.samples) / RATE
        assert abs(segment.start - begin) < 0.5 and abs(segment.end - end) < 0.5
        assert segment.confidence is not None and 0.3 < segment.confidence <= 1
        assert " ".join(word.word for word in segment.words) == segment.text
        place = end + 0.8


def test_confidence_is_the_model_s_own(mini: Any, spoken: Spoken):
    """The mean log-likelihood is minus the loss of the model on its own answer, without the end token."""
    samples = spoken[0].samples
    (answer,) = answer_all(mini, [samples], scored=True)
    (plain,) = answer_all(mini, [samples])
    assert plain.confidence is None and plain.text == answer.text and answer.confidence is not None
    prompt = encode_prompt(mini.config.prompts, mini.tokenizer, "transcribe", "")
    target = mini.tokenizer.encode(answer.text)
    features = mini.features(samples)[None]
    rows = {
        "features": features, "feature_lengths": torch.tensor([features.shape[2]]),
        "prefix_ids": torch.zeros(1, 0, dtype=torch.int64), "prefix_lengths": torch.tensor([0]),
        "prompt_ids": torch.tensor([prompt.suffix]), "prompt_lengths": torch.tensor([len(prompt.suffix)]),
        "target_ids": torch.tensor([target]), "target_lengths": torch.tensor([len(target)]),
    }  # fmt: skip
    with torch.no_grad():
        loss = mini(**rows).loss
    assert answer.confidence == pytest.approx(float(torch.exp(-loss)), rel=1e-3)


@pytest.mark.parametrize("max_batch_seconds", [None, 4.0])
def test_bad_ones_among_good_ones_whatever_the_batches(
    mini: Any, talk: np.ndarray, tmp_path: Path, transcript: Transcript, max_batch_seconds: float | None
):
    soundfile.write(tmp_path / "talk.flac", talk, RATE)
    flac = (tmp_path / "talk.flac").read_bytes()
    given = [
        talk, tmp_path / "none.wav", flac[: len(flac) // 2], np.zeros(0, np.float32), tmp_path / "talk.flac",
        talk.astype(int),
    ]  # fmt: skip
    recognizer = Recognizer(mini, words=True, max_batch_seconds=max_batch_seconds)
    found = dict(recognizer.recordings(given))
    assert sorted(found) == list(range(6))
    assert isinstance(found[0], Transcript) and isinstance(found[4], Transcript)
    assert found[4].text == transcript.text
    for segment, alone in zip(found[0].segments, transcript.segments, strict=True):
        assert segment.confidence == pytest.approx(alone.confidence, abs=1e-3)  # padding rounds otherwise
        assert replace(segment, confidence=alone.confidence) == alone
    assert isinstance(found[1], FileNotFoundError)
    assert all(isinstance(found[n], AudioError) for n in (2, 3, 5)), found


def test_silence_is_an_empty_transcript(mini: Any):
    quiet = 1e-3 * np.random.default_rng(2).standard_normal(20 * RATE).astype(np.float32)
    for samples in (np.zeros(5 * RATE, np.float32), quiet):
        assert Recognizer(mini).transcript(samples) == Transcript((), len(samples) / RATE)


def test_speech_without_pauses(mini: Any, breath: np.ndarray):
    """Whatever the LLM makes of it, times stay in order, and live audio gives the same text."""
    recognizer = Recognizer(mini, words=True, silence=3.0)
    recognizer.longest = 4.0
    found = recognizer.transcript(breath)
    times = [t for segment in found.segments for word in segment.words for t in (word.start, word.end)]
    assert len(found.segments) >= 2 and times[-1] <= found.seconds + 0.01
    assert times == sorted(times)
    events = recognizer.stream([breath[i : i + 8000] for i in range(0, len(breath), 8000)])
    final = [event for event in events if event.kind == "final"]
    assert [event.number for event in final] == list(range(len(final))) and len(final) >= 2
    assert " ".join(e.segment.text for e in final if e.segment.text) == found.text


def test_implausible_answers_are_left_out(
    mini: Any, talk: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    assert not implausible("i am sorry that i cannot come", 2.0)
    assert "refusal" in implausible("I'm sorry, but as an AI I have no ears.", 9.0)
    assert "refusal" in implausible("I cannot listen to audio files", 9.0)
    assert implausible("word " * 30, 2.0) == "150 letters in 2.0 s"
    monkeypatch.setattr("steermoe.asr.recognizer.LETTERS_A_SECOND", 1)
    with caplog.at_level(logging.WARNING):
        assert Recognizer(mini).transcript(talk).segments == ()
    assert caplog.text.count("left out, ") == 4 and "recording 0: " in caplog.text


def test_context_is_before_the_prompt(mini: Any):
    assert Recognizer(mini).prompt == mini.config.prompts.transcribe
    asked = Recognizer(mini, context="lamps, Anna").prompt
    assert "lamps, Anna" in asked and asked.endswith(mini.config.prompts.transcribe)
    assert Recognizer(mini, prompt="say it: ", context="lamps").prompt.endswith("say it: ")
    assert longest(mini) == 8.0  # of a segment: what encoder and training allow


def test_live_audio(mini: Any, talk: np.ndarray, transcript: Transcript):
    blocks = [talk[i : i + 1600] for i in range(0, len(talk), 1600)]
    events = list(Recognizer(mini).stream(blocks, partial_seconds=0.8))
    final = [event for event in events if event.kind == "final"]
    assert [event.segment.text for event in final] == [segment.text for segment in transcript.segments]
    assert [event.number for event in final] == [0, 1, 2, 3]
    assert all(event.latency >= 0 for event in events)
    for number in range(4):  # partial results come first, then the one that stays
        kinds = [event.kind for event in events if event.number == number]
        assert kinds.count("final") == 1 and kinds[-1] == "final" and len(kinds) > 1


def test_live_audio_too_short_or_too_late_for_partial_results(mini: Any, talk: np.ndarray):
    begin = int(np.argmax(np.abs(talk) > 0.05))
    pause = np.zeros(16000, np.float32)
    burst = np.concatenate([pause[:8000], talk[begin : begin + 2560], pause])  # too short to become final
    blocks = [burst[i : i + 1600] for i in range(0, len(burst), 1600)]
    assert list(Recognizer(mini).stream(blocks, partial_seconds=0.1)) == []
    late = ((time.monotonic() - 5, talk[i : i + 1600]) for i in range(0, len(talk), 1600))
    events = list(Recognizer(mini).stream(late))
    assert [event.kind for event in events] == ["final"] * 4
    assert all(event.latency >= 5 for event in events)


MEASURE = """
import json, resource, sys
from steermoe import SteerMoE
from steermoe.asr.recognizer import Recognizer
recognizer = Recognizer(SteerMoE.from_pretrained("pretrained/adapters/mini/steermoe"))
for path in sys.argv[1:]:
    found = recognizer.transcript(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"text": found.text, "seconds": found.seconds, "segments": len(found.segments), "peak": peak}))
"""
MINUTES = 5


def test_a_long_recording_takes_the_memory_of_a_short_one(spoken: Spoken, tmp_path: Path):
    """5 minutes in stereo at 32 kHz, which would be 73 MiB decoded; and its text is that of its minutes."""
    minute = np.zeros(60 * RATE // 512 * 512, np.float32)  # whole windows of voice activity
    for place, each in zip((2, 17, 40), spoken, strict=False):
        minute[place * RATE : place * RATE + len(each.samples)] = each.samples
    upsampled = np.repeat(minute, 2)
    for name, minutes in (("short", 1), ("long", MINUTES)):
        with soundfile.SoundFile(tmp_path / f"{name}.flac", "w", 2 * RATE, 2, format="FLAC") as file:
            for _ in range(minutes):
                file.write(np.stack([upsampled, upsampled], axis=1))
    run = [sys.executable, "-c", MEASURE, str(tmp_path / "short.flac"), str(tmp_path / "long.flac")]
    done = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True)
    short, long = map(json.loads, done.stdout.splitlines())
    assert short["segments"] == 3 and long["seconds"] == pytest.approx(MINUTES * short["seconds"])
    assert long["text"] == " ".join([short["text"]] * MINUTES)
    assert long["peak"] - short["peak"] < 40, (short["peak"], long["peak"])
