"""Silence is answered as silence, low confidence is a warning, and models say what they know."""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pretrained import NOTICE
from steermoe.asr.recognizer import Recognizer
from steermoe.audio.vad import speaks
from steermoe.models import inference
from steermoe.models.tools import Answer

REAL_SPEECH = True  # see conftest.py
Spoken = list[SimpleNamespace]
RNG = np.random.default_rng(4)
TIME = np.arange(32_000) / 16_000
QUIET: dict[str, np.ndarray] = {
    "silence": np.zeros(32_000, np.float32),
    "a moment of silence": np.zeros(160, np.float32),
    "soft noise": (1e-3 * RNG.standard_normal(32_000)).astype(np.float32),
    "noise": (0.1 * RNG.standard_normal(32_000)).astype(np.float32),
    "a tone": (0.5 * np.sin(2 * np.pi * 440 * TIME)).astype(np.float32),
}


def audio_turn(samples: np.ndarray, question: str | None = None) -> list[dict[str, Any]]:
    text = [] if question is None else [{"type": "text", "text": question}]
    return [{"role": "user", "content": [{"type": "audio", "audio": samples}, *text]}]


@pytest.mark.parametrize("kind", QUIET)
def test_where_nobody_speaks_the_text_is_empty(mini: Any, kind: str) -> None:
    samples, question, nothing = QUIET[kind], "which animal is it", Answer("")
    assert mini.transcribe([samples, samples]) == [mini.transcribe(samples)] * 2 == ["", ""]
    assert mini.ask(samples, question) == mini.ask(samples, prompt="summarize: ") == nothing
    assert mini.ask(samples, question).warnings == (inference.NO_SPEECH,)
    assert mini.chat(audio_turn(samples)) == mini.chat(audio_turn(samples, question)) == nothing


@pytest.mark.parametrize("gain", [1.0, 3e-3])  # -50 dB
def test_speech_is_answered_at_any_level(mini: Any, spoken: Spoken, gain: float) -> None:
    for each in spoken:
        assert speaks((gain * each.samples).astype(np.float32))
    one = (gain * spoken[0].samples).astype(np.float32)
    assert mini.transcribe([one, QUIET["silence"], one]) == [mini.transcribe(one), "", mini.transcribe(one)]
    assert mini.transcribe(one)


def test_questions_about_sounds_are_about_whatever_is_not_silent(
    mini: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = mini.config.model_copy(update={"train_splits": {"clothoaqa": ["train"]}})
    monkeypatch.setattr(mini, "config", variant)
    assert inference.NO_SPEECH not in mini.ask(QUIET["noise"], "is it raining").warnings  # the LLM was asked
    assert mini.ask(QUIET["silence"], "is it raining").warnings == (inference.NO_SPEECH,)
    assert mini.transcribe(QUIET["noise"]) == ""


def test_low_confidence_is_a_warning(mini: Any, spoken: Spoken, caplog: pytest.LogCaptureFixture) -> None:
    backwards = spoken[0].samples[::-1].copy()  # speech, of no words
    answer = mini.ask(backwards)
    assert answer.confidence is not None and answer.confidence < inference.UNSURE
    assert "low confidence" in answer.warnings[0]
    assert mini.ask(spoken[0].samples).warnings == ()
    caplog.clear()
    found = Recognizer(mini).transcript(backwards)
    assert "low confidence" in found.warnings[0] and found.warnings[0] in caplog.text


def test_the_mini_models_say_what_they_know_once(
    mini: Any, spoken: Spoken, caplog: pytest.LogCaptureFixture, tiny_variant: Callable[..., Any]
) -> None:
    from steermoe import SteerMoE

    assert inference.notice(mini) == NOTICE
    assert inference.notice(SteerMoE.from_config(tiny_variant("linear"))) is None
    inference.say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            mini.transcribe(spoken[0].samples)
            Recognizer(mini).transcript(spoken[0].samples)
    assert caplog.text.count(NOTICE) == 1
