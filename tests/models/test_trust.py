"""What speaks against an answer is said in every entry point, and silence is answered as silence."""

import base64
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile

from pretrained import NOTICE
from steermoe.asr.recognizer import Recognizer
from steermoe.asr.transcript import Segment, Transcript
from steermoe.audio.segmentation import speaks
from steermoe.training.mlflow_pyfunc import Transcriber
from steermoe.models import trust
from steermoe.models.tools import Answer

Spoken = list[SimpleNamespace]
RNG = np.random.default_rng(4)
TIME = np.arange(32_000) / 16_000
QUIET: dict[str, np.ndarray] = {
    "silence": np.zeros(32_000, np.float32),
    "a moment of silence": np.zeros(160, np.float32),
    "dither": RNG.uniform(-1e-5, 1e-5, 32_000).astype(np.float32),
    "soft noise": (1e-3 * RNG.standard_normal(32_000)).astype(np.float32),
    "noise": (0.1 * RNG.standard_normal(32_000)).astype(np.float32),
    "a tone": (0.5 * np.sin(2 * np.pi * 440 * TIME)).astype(np.float32),
    "hum": sum(np.sin(2 * np.pi * 50 * n * TIME) / n for n in range(1, 8)).astype(np.float32) * 0.2,  # pyright: ignore
}


def audio_turn(samples: np.ndarray, question: str | None = None) -> list[dict[str, Any]]:
    text = [] if question is None else [{"type": "text", "text": question}]
    return [{"role": "user", "content": [{"type": "audio", "audio": samples}, *text]}]


@pytest.mark.parametrize("kind", QUIET)
def test_where_nobody_speaks_the_text_is_empty(mini: Any, kind: str) -> None:
    samples, question = QUIET[kind], "which animal is it"
    assert mini.transcribe(samples) == mini.transcribe(samples, question) == ""
    assert mini.transcribe([samples, samples]) == ["", ""]
    nothing = Answer("")
    assert mini.ask(samples, question) == mini.ask(samples, prompt="summarize: ") == nothing
    assert mini.ask(samples, question).warnings == (trust.NO_SPEECH,)
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
    assert trust.NO_SPEECH not in mini.ask(QUIET["noise"], "is it raining").warnings  # the LLM was asked
    assert mini.ask(QUIET["silence"], "is it raining").warnings == (trust.NO_SPEECH,)
    assert mini.transcribe(QUIET["noise"]) == ""


def test_the_logged_model(mini: Any) -> None:
    logged = Transcriber()
    logged.model = mini
    frame = pd.DataFrame({"audio": [QUIET["silence"]] * 2, "question": [None, "who is in it"]})
    assert logged.predict(None, frame)["text"].tolist() == ["", ""]


def test_ask_and_chat_as_commands(
    call: Callable[..., SimpleNamespace], tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = tmp_path / "silence.wav"
    soundfile.write(path, QUIET["silence"], 16_000)
    assert call("ask", str(path), "who is in it").out == "\n"
    assert any(str(message).endswith(trust.NO_SPEECH) for message in caplog.messages)
    told = json.loads(call("ask", str(path), "who is in it", "--json").out)
    assert (told["text"], told["warnings"]) == ("", [trust.NO_SPEECH])
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/audio {path}\nwhat is two plus three\n"))
    assert call("chat").out.strip()  # the recording is no part of the conversation


def test_low_confidence_is_said(mini: Any, spoken: Spoken, caplog: pytest.LogCaptureFixture) -> None:
    backwards = spoken[0].samples[::-1].copy()  # speech, of no words
    answer = mini.ask(backwards)
    assert answer.confidence is not None and answer.confidence < trust.UNSURE
    assert "low confidence" in answer.warnings[0]
    assert mini.ask(spoken[0].samples).warnings == ()
    caplog.clear()
    found = Recognizer(mini).transcript(backwards)
    assert "low confidence" in found.warnings[0] and found.warnings[0] in caplog.text


def test_segments_of_low_confidence_are_counted() -> None:
    segments = [Segment(0, 1, "a", confidence) for confidence in (0.9, 0.2, 0.5, None)]
    (said,) = Transcript(tuple(segments), 4.0).warnings
    assert "0.20 to 0.50" in said and "2 of 4" in said
    assert Transcript(tuple(segments[:1]), 1.0).warnings == ()
    assert Transcript((), 1.0).warnings


def test_the_mini_models_say_what_they_know_once(
    mini: Any, spoken: Spoken, caplog: pytest.LogCaptureFixture
) -> None:
    assert trust.notice(mini) == NOTICE
    trust.say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            mini.transcribe(spoken[0].samples)
            Recognizer(mini).transcript(spoken[0].samples)
    assert caplog.text.count(NOTICE) == 1


def test_an_adapter_over_other_models_says_nothing(tiny_variant: Callable[..., Any]) -> None:
    from steermoe import SteerMoE

    assert trust.notice(SteerMoE.from_config(tiny_variant("linear"))) is None


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV")
    return file.getvalue()


@pytest.fixture(scope="module")
def client(mini: Any) -> Any:
    """OpenAI's paths over the mini adapter, in this process."""
    from fastapi.testclient import TestClient

    from steermoe.server.app import create_app
    from steermoe.server.engine import Engine
    from steermoe.server.limits import Limits
    from steermoe.server.service import Service

    with TestClient(create_app(Service(Engine(mini), Limits(), "mini"))) as opened:
        yield opened


def completion(samples: np.ndarray, **settings: Any) -> dict[str, Any]:
    data = base64.b64encode(wav(samples)).decode()
    parts = [
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        {"type": "text", "text": "who is in it"},
    ]
    return {"model": "mini", "messages": [{"role": "user", "content": parts}], **settings}


@pytest.mark.parametrize("kind", ["silence", "noise"])
def test_silence_by_the_api(client: Any, kind: str) -> None:
    reply = client.post("/v1/chat/completions", json=completion(QUIET[kind])).json()
    assert reply["choices"][0]["message"]["content"] == "" and reply["choices"][0]["finish_reason"] == "stop"
    assert reply["warnings"] == [trust.NO_SPEECH, NOTICE]
    streamed = client.post("/v1/chat/completions", json=completion(QUIET[kind], stream=True)).text
    assert trust.NO_SPEECH in streamed and streamed.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("form", ["json", "verbose_json", "text", "vtt"])
def test_warnings_by_the_api(client: Any, spoken: Spoken, form: str) -> None:
    backwards, clear = wav(spoken[0].samples[::-1]), wav(spoken[0].samples)
    for data, low in ((backwards, True), (clear, False)):
        files, fields = {"file": ("a.wav", data)}, {"model": "mini", "response_format": form}
        reply = client.post("/v1/audio/transcriptions", files=files, data=fields)
        said = reply.headers["x-steermoe-warnings"]
        assert ("low confidence" in said) == low and NOTICE in said
        if "json" in form:
            assert "; ".join(reply.json()["warnings"]) == said


def test_the_page(mini: Any, spoken: Spoken, tmp_path: Path, listener: Any) -> None:
    from steermoe.demo.callbacks import Visit

    path = tmp_path / "backwards.wav"
    soundfile.write(path, spoken[0].samples[::-1], 16_000)
    visit = Visit(listener, "mini")
    shown, texts, _ = visit.hear(str(path), {})
    assert "low confidence" in shown
    *_, (again, _) = visit.compare(str(path), {}, texts)
    assert "low confidence" in again
    soundfile.write(path, QUIET["silence"], 16_000)
    assert trust.NO_SPEECH in visit.answer(str(path), {}, "who is in it")
