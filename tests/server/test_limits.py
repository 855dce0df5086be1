"""What the server does not take on, and how it says so."""

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from steermoe.models.steermoe import SteerMoE
from steermoe.server.auth import api_key, is_loopback
from steermoe.server.batching import Job, Join
from steermoe.server.engine import Answered, Engine

from .conftest import NAME, Running, wav


class Held(Engine):
    """Answers when it is let go."""

    def __init__(self, model: SteerMoE) -> None:
        super().__init__(model)
        self.go, self.batches = threading.Event(), 0

    def answer(self, jobs: Sequence[Job], join: Join) -> Any:
        self.batches += 1
        assert self.go.wait(300)
        return super().answer(jobs, join)


@pytest.fixture
def held(model: SteerMoE) -> Iterator[Held]:
    engine = Held(model)
    yield engine
    engine.go.set()


def transcribe(server: Running, data: bytes) -> Any:
    return server.client.audio.transcriptions.create(model=NAME, file=("a.wav", data))


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_bytes(serve: Callable[..., Any], recordings: list[bytes]) -> None:
    with serve(max_bytes=20_000) as server:
        with pytest.raises(openai.APIStatusError, match="larger than the 20,000 bytes") as refused:
            transcribe(server, recordings[0])
        assert refused.value.status_code == 413
        assert refused.value.code == "request_too_large"

        def chunks() -> Iterator[bytes]:  # of a body that does not say how long it is
            for _ in range(100):
                yield b"x" * 1000

        url = f"{server.address}/v1/chat/completions"
        assert httpx.post(url, content=chunks(), trust_env=False).status_code == 413
        assert server.metric("steermoe_requests_total") >= 2


def test_seconds(serve: Callable[..., Any], recordings: list[bytes]) -> None:
    with (
        serve(max_seconds=1.0) as server,
        pytest.raises(
            openai.BadRequestError, match="s by its header, allowed are at most 1; cut it"
        ) as refused,
    ):
        transcribe(server, recordings[0])
    assert (refused.value.param, refused.value.code) == ("file", "invalid_audio")


def test_a_full_queue(serve: Callable[..., Any], held: Held, recordings: list[bytes]) -> None:
    with serve(held, queue=2, batch_rows=1, linger=0) as server, ThreadPoolExecutor(3) as pool:
        first = pool.submit(transcribe, server, recordings[0])
        wait_for(lambda: held.batches == 1)
        others = [pool.submit(transcribe, server, recordings[1]) for _ in range(2)]
        wait_for(lambda: server.metric("steermoe_queue_length") == 2)
        with pytest.raises(openai.RateLimitError, match=r"2 recordings .* wait for their turn") as refused:
            transcribe(server, recordings[0])
        assert refused.value.code == "queue_full"
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
        held.go.set()
        assert first.result(300).text
        assert all(other.result(300).text for other in others)


def test_a_long_recording_waits_for_room_instead_of_failing(
    serve: Callable[..., Any], waveforms: list[np.ndarray]
) -> None:
    pause = np.zeros(12000, np.float32)
    samples = np.concatenate([part for wave in waveforms for part in (wave, pause)])
    with serve(queue=1, batch_rows=1) as server:
        assert len(transcribe(server, wav(samples, 16000)).text.split()) > 20


def test_decoded_audio_at_once(serve: Callable[..., Any], held: Held, recordings: list[bytes]) -> None:
    """A recording whose model has it already is in memory, too."""
    with serve(held, queue_seconds=4.0) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(transcribe, server, recordings[0])
        wait_for(lambda: held.batches == 1)
        with pytest.raises(openai.RateLimitError, match=r"recordings of \d s are being answered") as refused:
            transcribe(server, recordings[0])
        assert refused.value.code == "queue_full"
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
        held.go.set()
        assert first.result(300).text == transcribe(server, recordings[0]).text


def test_requests_at_once(serve: Callable[..., Any], held: Held, recordings: list[bytes]) -> None:
    with serve(held, requests=1) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(transcribe, server, recordings[0])
        wait_for(lambda: held.batches == 1)
        with pytest.raises(openai.RateLimitError, match="1 requests are being answered") as refused:
            transcribe(server, recordings[0])
        assert refused.value.response.headers["retry-after"] == "1"
        assert server.get("/health/ready").status_code == 200
        held.go.set()
        assert first.result(300).text
        assert transcribe(server, recordings[0]).text == first.result().text


def test_who_has_gone_leaves_the_queue(
    serve: Callable[..., Any], held: Held, recordings: list[bytes]
) -> None:
    with serve(held, batch_rows=1, linger=0) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(transcribe, server, recordings[0])
        wait_for(lambda: held.batches == 1)
        content: Any = {"files": {"file": ("a.wav", recordings[1])}, "data": {"model": NAME}}
        request = httpx.Request("POST", f"{server.address}/v1/audio/transcriptions", **content)
        body, headers = (
            request.read(),
            "".join(f"{name}: {value}\r\n" for name, value in request.headers.items()),
        )
        with socket.create_connection((request.url.host, request.url.port or 0)) as connection:
            connection.sendall(f"POST {request.url.path} HTTP/1.1\r\n{headers}\r\n".encode() + body)
            wait_for(lambda: server.metric("steermoe_queue_length") == 1)
        wait_for(lambda: server.metric("steermoe_dropped_total") == 1)
        assert server.metric("steermoe_queue_length") == 0
        held.go.set()
        assert first.result(300).text
        assert held.batches == 1


def test_an_answer_that_nobody_reads_ends_early(
    serve: Callable[..., Any], model: SteerMoE, recordings: list[bytes]
) -> None:
    steps: list[int] = []

    class Counting(Engine):
        def answer(self, jobs: Sequence[Job], join: Join) -> Any:
            for job, found in super().answer(jobs, join):
                assert isinstance(found, Answered)
                steps.append(found.tokens)
                yield job, found

    # Sampled at a temperature at which the mini model finds no end.
    with serve(Counting(model), max_tokens=900) as server:
        data = base64.b64encode(recordings[0]).decode()
        turn: Any = {
            "role": "user",
            "content": [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}],
        }
        stream = server.client.chat.completions.create(
            model=NAME, messages=[turn], stream=True, temperature=2.0, seed=1
        )
        next(iter(stream))
        stream.close()
        wait_for(lambda: bool(steps))
        assert steps[0] < 900


def test_a_body_that_never_comes(serve: Callable[..., Any]) -> None:
    with serve(upload_seconds=0.3) as server:
        host, port = server.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{"
            )
            answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408")


def test_a_key(serve: Callable[..., Any], recordings: list[bytes]) -> None:
    key = "correct-horse-battery-staple"
    with serve(key=key) as server:
        assert transcribe(server, recordings[0]).text
        for wrong in ("x", "correct-horse-battery-stapl", key + "x", "none", "ключ"):
            headers = {b"authorization": b"Bearer " + wrong.encode()}
            for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
                answer = httpx.get(server.address + path, headers=headers, trust_env=False)
                assert answer.status_code == 401
        with pytest.raises(openai.AuthenticationError) as refused:
            server.connect("guess").models.list()
        assert refused.value.code == "invalid_api_key"
        assert refused.value.response.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/health/live", "/health/ready"):
            assert httpx.get(server.address + path, trust_env=False).status_code == 200


def test_without_a_key_only_names_of_this_machine(server: Running) -> None:
    answer = httpx.get(f"{server.address}/v1/models", headers={"host": "evil.example"}, trust_env=False)
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in server.get("/v1/models").headers


def test_where_a_key_comes_from(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEERMOE_API_KEY", raising=False)
    assert api_key("127.0.0.1", None) == api_key("localhost", None) == api_key("::1", None) == (None, False)
    (first, made), (second, _) = api_key("0.0.0.0", None), api_key("0.0.0.0", None)
    assert made and first != second and len(first or "") > 40
    (tmp_path / "key").write_text("0123456789abcdef\n")
    assert api_key("127.0.0.1", tmp_path / "key") == ("0123456789abcdef", False)
    monkeypatch.setenv("STEERMOE_API_KEY", "short")
    with pytest.raises(
        ValueError, match="STEERMOE_API_KEY: found 5 characters; expected a key of at least 16"
    ):
        api_key("0.0.0.0", None)
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org") and not is_loopback("10.0.0.1")


def test_health_and_metrics(server: Running, recordings: list[bytes]) -> None:
    transcribe(server, recordings[0])
    assert server.get("/health/live").json() == {"status": "live"}
    assert server.get("/health/ready").json() == server.get("/health").json() == {"status": "ready"}
    text = server.get("/metrics").text
    line = 'steermoe_requests_total{method="POST",path="/v1/audio/transcriptions",status="200"} '
    assert line in text
    assert 'steermoe_request_seconds_bucket{le="0.1",path="/v1/audio/transcriptions"}' in text
    assert server.metric("steermoe_audio_seconds_total") > 1
    assert 0 < server.metric("steermoe_real_time_factor") < 10
    assert server.metric("steermoe_tokens_total") > 3


def test_a_request_has_a_number(server: Running) -> None:
    first, second = (server.client.models.list()._request_id for _ in range(2))
    assert first and second and first != second


def test_what_breaks_down_is_an_error_of_the_server(
    serve: Callable[..., Any], model: SteerMoE, recordings: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Engine):
        def answer(self, jobs: Sequence[Job], join: Join) -> Any:
            raise RuntimeError("out of something")

    with serve(Broken(model)) as server:
        with pytest.raises(openai.InternalServerError) as refused:
            transcribe(server, recordings[0])
        assert "out of something" not in str(refused.value)
        assert refused.value.type == "server_error"
        assert server.get("/health/ready").status_code == 200
    assert "out of something" in caplog.text
