"""`/v1/audio/transcriptions` as the official client uses it: formats, streams, fields, bad audio, many at once."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from steermoe.asr.recognizer import Recognizer
from steermoe.asr.transcript import Transcript, render
from steermoe.models.steermoe import SteerMoE

from .conftest import NAME, TEXTS, Running, transcribe, wav


@pytest.fixture(scope="module")
def transcripts(model: SteerMoE, waveforms: list[np.ndarray]) -> list[Transcript]:
    """What the library writes of each recording, one by one."""
    recognizer = Recognizer(model, words=True)
    return [recognizer.transcript(samples) for samples in waveforms]


@pytest.fixture(scope="module")
def said(transcripts: list[Transcript]) -> list[str]:
    return [transcript.text for transcript in transcripts]


def test_the_model_understands_what_is_said(said: list[str]) -> None:
    assert sum(found == text for found, text in zip(said, TEXTS, strict=True)) >= 4


def test_every_format(server: Running, recordings: list[bytes], transcripts: list[Transcript]) -> None:
    data, transcript = recordings[0], transcripts[0]
    json = transcribe(server, data)
    assert json.text == transcript.text
    assert (json.usage.type, json.usage.seconds) == ("duration", transcript.seconds)
    for kind in ("text", "srt", "vtt"):
        assert transcribe(server, data, response_format=kind) == render(transcript, kind)
    verbose = transcribe(server, data, response_format="verbose_json")
    assert (verbose.text, verbose.duration, verbose.language) == (transcript.text, transcript.seconds, "en")
    (segment,), (expected,) = verbose.segments, transcript.segments
    assert (segment.text, segment.start, segment.end) == (expected.text, expected.start, expected.end)
    assert segment.confidence == pytest.approx(expected.confidence, abs=1e-4)
    assert verbose.words is None


def test_times_of_segments_and_words(
    server: Running, recordings: list[bytes], transcripts: list[Transcript]
) -> None:
    kinds: list[Any] = [["word"], ["segment"], ["word", "segment"]]
    expected = [word for segment in transcripts[0].segments for word in segment.words]
    for kind in kinds:
        form: Any = {"response_format": "verbose_json", "timestamp_granularities": kind}
        found = transcribe(server, recordings[0], **form)
        assert (found.segments is not None) == ("segment" in kind) and (found.words is not None) == (
            "word" in kind
        )
        words = [(w.word, w.start, w.end) for w in found.words or []]
        assert words == ([(w.word, w.start, w.end) for w in expected] if "word" in kind else [])


def test_long_audio_is_written_down_piece_by_piece(
    server: Running, model: SteerMoE, waveforms: list[np.ndarray]
) -> None:
    pause = np.zeros(16000, np.float32)
    samples = np.concatenate([part for wave in waveforms for part in (wave, pause)])
    assert len(samples) > 16000 * 19  # the encoder takes 8 s
    expected = Recognizer(model).transcript(samples)
    data = wav(samples, 16000)
    found = transcribe(server, data, response_format="verbose_json")
    assert found.text == expected.text
    assert [(s.start, s.end) for s in found.segments] == [(s.start, s.end) for s in expected.segments]
    *deltas, done = transcribe(server, data, stream=True)
    assert len(deltas) == len(expected.segments) > 4
    assert "".join(event.delta for event in deltas) == done.text == expected.text


def test_silence_is_no_text(server: Running) -> None:
    data = wav(np.zeros(32000), 16000)
    assert transcribe(server, data).text == ""
    assert transcribe(server, data, response_format="verbose_json").segments == []
    assert [event.type for event in transcribe(server, data, stream=True)] == ["transcript.text.done"]


def test_a_text_that_was_cut_says_so(serve: Callable[..., Any], recordings: list[bytes]) -> None:
    with serve(max_tokens=2) as small:
        found = transcribe(small, recordings[0], response_format="verbose_json")
        assert found.segments[0].truncated and "cut at the limit of tokens" in found.warnings[0]
        *_, done = transcribe(small, recordings[0], stream=True)
        assert "cut at the limit of tokens" in done.warnings[0]


def test_a_prompt_is_context(
    server: Running, model: SteerMoE, recordings: list[bytes], waveforms: Any
) -> None:
    expected = Recognizer(model, context="kate and nine").transcript(waveforms[0]).text
    assert transcribe(server, recordings[0], prompt="kate and nine").text == expected


def test_many_at_once_get_what_each_gets_alone(
    server: Running, recordings: list[bytes], said: list[str]
) -> None:
    order = [number % len(recordings) for number in range(24)]
    names = [f"steermoe_{name}" for name in ("batch_rows_count", "batch_rows_sum", "audio_seconds_total")]
    before = [server.metric(name) for name in names]
    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda place: transcribe(server, recordings[place]).text, order))
    assert found == [said[place] for place in order]
    rows, total, seconds = (server.metric(name) - first for name, first in zip(names, before, strict=True))
    assert rows == 24 and total >= 48 and seconds > 24  # so batches were made
    assert server.metric("steermoe_queue_length") == server.metric("steermoe_running") == 0


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"language": "fr"}, "language", "found 'fr'; steermoe is for en"),
        ({"language": "no language"}, "language", "expected a code such as en"),
        ({"prompt": "word " * 4000}, "prompt", "more than 16000 characters"),
        ({"temperature": 3}, "temperature", "less than or equal to 1; found '3'"),
        ({"response_format": "srt", "stream": True}, "stream", "not possible with response_format srt"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities[]", "needs response_format verbose_json"),
        ({"include": ["logprobs"]}, "include[]", "not supported by this server; leave it out"),
        ({"extra_body": {"stream": "maybe"}}, "stream", "should be a valid boolean"),
    ],
)  # fmt: skip
def test_bad_fields_are_named(
    server: Running, recordings: list[bytes], fields: dict[str, Any], param: str, said: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        transcribe(server, recordings[0], **fields)
    assert (refused.value.param, refused.value.type) == (param, "invalid_request_error")
    assert said in str(refused.value)


def test_ways_to_write_a_language(server: Running, calling: Running, recordings: list[bytes]) -> None:
    expected = {server: {"en": "en", "en_GB": "en", "English": "en", "auto": "en", "": "en"},
                calling: {"en-US": "en", "fr": "fr", "auto": "und"}}  # fmt: skip
    for where, languages in expected.items():
        for language, code in languages.items():
            found = transcribe(where, recordings[3], language=language, response_format="verbose_json")
            assert found.language == code


def test_a_client_that_leaves_during_its_upload_is_no_failure(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    for path, kind in (
        ("audio/transcriptions", "multipart/form-data; boundary=x"),
        ("chat/completions", "text/json"),
    ):
        before = server.metric("steermoe_requests_total")
        with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2]))) as connection:
            head = f"POST /v1/{path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\n"
            connection.sendall(head.encode() + b"content-length: 9000\r\n\r\n--x\r\n")
        until = time.monotonic() + 300
        while (
            server.metric("steermoe_requests_total") < before + 2 and time.monotonic() < until
        ):  # one is ours
            time.sleep(0.01)
    assert not [
        record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL") or record.exc_info
    ]


def test_another_model_is_not_found(server: Running, recordings: list[bytes]) -> None:
    with pytest.raises(
        openai.NotFoundError, match="found 'whisper-1'; this server has 'steermoe'"
    ) as refused:
        server.client.audio.transcriptions.create(model="whisper-1", file=("a.wav", recordings[0]))
    assert refused.value.code == "model_not_found"
    assert [row.id for row in server.client.models.list()] == [NAME]
    assert server.client.models.retrieve(NAME).owned_by == "steermoe"
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("gpt-9")


def flac_of_ten_hours(data: bytes) -> bytes:
    fields = int.from_bytes(data[18:26], "big") & ~(2**36 - 1)
    return data[:18] + (fields | 10 * 3600 * 16000).to_bytes(8, "big") + data[26:]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("empty", "empty, 0 bytes"),
        ("text", "not readable as audio"),
        ("truncated", "corrupt FLAC audio"),
        ("ten hours", "36000.0 s by its header, allowed are at most 60"),
    ],
)
def test_bad_audio_is_named(server: Running, encode: Callable[..., bytes], kind: str, said: str) -> None:
    flac = encode(np.linspace(-0.5, 0.5, 32000), 16000, "FLAC", "PCM_16")
    data = {
        "empty": lambda: b"",
        "text": lambda: b"What is this? It is a text. " * 99,
        "truncated": lambda: flac[: len(flac) // 2],
        "ten hours": lambda: flac_of_ten_hours(flac),
    }[kind]()
    with pytest.raises(openai.BadRequestError) as refused:
        transcribe(server, data)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"data": {"model": NAME, "file": "a.wav"}}, "file: "),
        ({"json": {"model": NAME}}, "file: Field required"),
        ({"content": b"--x\r\nnonsense", "headers": {"content-type": "multipart/form-data; boundary=x"}}, ""),
    ],
)
def test_a_body_that_is_no_form_with_a_file(server: Running, content: dict[str, Any], said: str) -> None:
    answer = httpx.post(f"{server.address}/v1/audio/transcriptions", trust_env=False, **content)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_unknown_addresses_and_methods_have_the_same_errors(server: Running) -> None:
    assert server.get("/v1/nothing").json()["error"]["message"] == "GET /v1/nothing: Not Found"
    answer = server.get("/v1/chat/completions")
    assert (answer.status_code, answer.json()["error"]["type"]) == (405, "invalid_request_error")
    assert answer.headers["allow"] == "POST"
    for path in ("/health", "/health/live", "/health/ready", "/metrics"):
        answer = httpx.head(server.address + path, trust_env=False)
        assert (answer.status_code, answer.content) == (200, b"")
