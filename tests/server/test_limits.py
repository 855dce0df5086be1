"""Limits, keys, cancellation and failures of the server, as clients see them."""

import base64
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from steermoe.models.generation import GREEDY
from steermoe.models.pretrained import LOCK
from steermoe.models.steermoe import SteerMoE
from steermoe.server.access import api_key, is_loopback
from steermoe.server.engine import Engine, Limits

from .conftest import NAME, Running, transcribe, wait_for, wav

KEY = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def small(serve: Callable[..., Any]) -> Iterator[Running]:
    """A server with a key, one row, and low limits."""
    with serve(
        key=KEY, batch_rows=1, queue_length=2, max_seconds=30.0, max_bytes=2**20, max_tokens=900,
        upload_seconds=1.0,
    ) as found:  # fmt: skip
        yield found


def in_model(server: Running) -> bool:
    return server.metric("steermoe_running") == 1


def test_size_and_duration(small: Running) -> None:
    with pytest.raises(openai.APIStatusError, match="larger than 1,048,576 bytes") as refused:
        transcribe(small, bytes(2**20))
    assert (refused.value.status_code, refused.value.code) == (413, "request_too_large")

    def chunks() -> Iterator[bytes]:  # of a body that does not say how long it is
        for _ in range(100):
            yield bytes(2**14)

    url, headers = f"{small.address}/v1/chat/completions", {"authorization": f"Bearer {KEY}"}
    assert httpx.post(url, content=chunks(), headers=headers, trust_env=False).status_code == 413
    with pytest.raises(
        openai.BadRequestError, match=r"31\.0 s by its header, allowed are at most 30"
    ) as refused:
        transcribe(small, wav(np.zeros(31 * 16000), 16000, "FLAC", "PCM_16"))
    assert (refused.value.param, refused.value.code) == ("file", "invalid_audio")


def test_a_body_that_does_not_arrive(small: Running) -> None:
    host, port = small.address.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
    with socket.create_connection((host, int(port)), 30) as connection:
        connection.sendall(f"{head}content-length: 99\r\n\r\n{{".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_overload_is_429(small: Running, recordings: list[bytes]) -> None:
    with ThreadPoolExecutor(4) as pool, LOCK:  # the model waits for the lock
        others = [pool.submit(transcribe, small, recordings[0])]
        wait_for(lambda: in_model(small))
        others += [pool.submit(transcribe, small, recordings[1]) for _ in range(2)]
        wait_for(lambda: small.metric("steermoe_queue_length") == 2)
        for request in (ask, transcribe):
            with pytest.raises(openai.RateLimitError, match="2 recordings wait for the model") as refused:
                request(small, recordings[0])
            assert refused.value.code == "queue_full"
            assert int(refused.value.response.headers["retry-after"]) > 0
        assert small.get("/health/ready").status_code == 200
    assert all(other.result(300).text for other in others)


def test_more_requests_than_allowed_are_429(serve: Callable[..., Any], recordings: list[bytes]) -> None:
    with serve(max_requests=1) as busy, ThreadPoolExecutor(1) as pool:
        with LOCK:
            other = pool.submit(transcribe, busy, recordings[0])
            wait_for(lambda: in_model(busy))
            with pytest.raises(openai.RateLimitError, match="1 requests are being answered"):
                ask(busy, recordings[0])
        assert other.result(300).text


def ask(server: Running, data: bytes, **fields: Any) -> Any:
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}
    messages: Any = [{"role": "user", "content": [part]}]
    return server.client.chat.completions.create(model=NAME, messages=messages, **fields)


def test_a_client_that_disconnects_leaves_the_queue(small: Running, recordings: list[bytes]) -> None:
    with ThreadPoolExecutor(1) as pool, LOCK:
        first = pool.submit(transcribe, small, recordings[0])
        wait_for(lambda: in_model(small))
        content: Any = {"files": {"file": ("a.wav", recordings[1])}, "data": {"model": NAME}}
        headers = {"authorization": f"Bearer {KEY}"}
        request = httpx.Request(
            "POST", f"{small.address}/v1/audio/transcriptions", headers=headers, **content
        )
        body = request.read()
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        with socket.create_connection((request.url.host, request.url.port or 0)) as connection:
            connection.sendall(f"POST {request.url.path} HTTP/1.1\r\n{head}\r\n".encode() + body)
            wait_for(lambda: small.metric("steermoe_queue_length") == 1)
        wait_for(lambda: small.metric("steermoe_queue_length") == 0)
    assert first.result(300).text


def test_an_answer_that_nobody_reads_ends_early(small: Running, recordings: list[bytes]) -> None:
    before = small.metric("steermoe_tokens_total")
    # Sampled at a temperature at which the mini model finds no end.
    stream = ask(small, recordings[0], stream=True, temperature=2.0, seed=1)
    next(iter(stream))
    stream.close()
    wait_for(lambda: small.metric("steermoe_running") == 0)
    assert small.metric("steermoe_tokens_total") - before < 900


def test_keys(small: Running, recordings: list[bytes]) -> None:
    for wrong in ("x", KEY[:-1], KEY + "x", "ключ"):
        headers = {b"authorization": b"Bearer " + wrong.encode()}
        for path in ("/v1/models", "/metrics", "/nothing"):
            assert httpx.get(small.address + path, headers=headers, trust_env=False).status_code == 401
    with pytest.raises(openai.AuthenticationError) as refused:
        small.connect("guess").models.list()
    assert refused.value.code == "invalid_api_key"
    assert refused.value.response.headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/health/live", "/health/ready"):
        assert httpx.get(small.address + path, trust_env=False).status_code == 200
    first, second = (small.client.models.list()._request_id for _ in range(2))
    assert first and second and first != second


def test_without_a_key_only_names_of_this_machine(server: Running) -> None:
    answer = httpx.get(f"{server.address}/v1/models", headers={"host": "evil.example"}, trust_env=False)
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in server.get("/v1/models").headers


def test_where_a_key_comes_from(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEERMOE_API_KEY", raising=False)
    assert api_key("127.0.0.1", None) == api_key("localhost", None) == api_key("::1", None) == (None, False)
    (first, generated), (second, _) = api_key("0.0.0.0", None), api_key("0.0.0.0", None)
    assert generated and first != second and len(first or "") > 40
    (tmp_path / "key").write_text("0123456789abcdef\n")
    assert api_key("127.0.0.1", tmp_path / "key") == ("0123456789abcdef", False)
    monkeypatch.setenv("STEERMOE_API_KEY", "short")
    with pytest.raises(
        ValueError, match="STEERMOE_API_KEY: found 5 characters; expected a key of at least 16"
    ):
        api_key("0.0.0.0", None)
    assert not any(map(is_loopback, ("0.0.0.0", "example.org", "10.0.0.1")))


def test_health_and_metrics(server: Running, recordings: list[bytes]) -> None:
    transcribe(server, recordings[0])
    assert server.get("/health").json() == {"status": "ready"}
    text = server.get("/metrics").text
    assert 'steermoe_requests_total{method="POST",path="/v1/audio/transcriptions",status="200"} ' in text
    assert 'steermoe_request_seconds_bucket{le="0.1",path="/v1/audio/transcriptions"}' in text
    for name in ("audio_seconds", "compute_seconds", "tokens"):
        assert server.metric(f"steermoe_{name}_total") > 0


def test_a_failure_of_the_model_is_a_500(
    serve: Callable[..., Any], recordings: list[bytes], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("out of something")

    with serve() as server:
        with monkeypatch.context() as patch, pytest.raises(openai.InternalServerError) as refused:
            patch.setattr("steermoe.server.engine.prompts_of", broken)
            transcribe(server, recordings[0])
        assert refused.value.type == "server_error" and "out of something" not in str(refused.value)
        assert "out of something" in caplog.text
        assert server.get("/health/ready").status_code == 200 and transcribe(server, recordings[0]).text


def test_order_of_the_queue_and_its_end(model: SteerMoE, waveforms: list[np.ndarray]) -> None:
    engine, ended = Engine(model, Limits(batch_rows=4)), list[int]()
    sampled = GREEDY.model_copy(update={"strategy": "sample", "temperature": 1.0, "max_new_tokens": 4})
    short = GREEDY.model_copy(update={"max_new_tokens": 4})
    with LOCK:
        answers = []
        for place in range(8):
            generation = sampled if place == 5 else short
            answers.append(engine.submit(engine.job(waveforms[place % 6], ("", "transcribe: "), generation)))
            answers[-1].add_done_callback(lambda _, place=place: ended.append(place))
    assert [answer.result(60).completion_tokens for answer in answers] == [4] * 8
    assert ended.index(5) < min(ended.index(6), ended.index(7)) and set(ended[:4]) <= {0, 1, 2, 3, 4}
    with LOCK:
        answers = [engine.submit(engine.job(waveforms[0], ("", "x"), sampled)) for _ in range(3)]
        closing = threading.Thread(target=engine.close)
        closing.start()
        with pytest.raises(CancelledError):
            answers[-1].result(60)
    closing.join(60)
    assert not engine.alive
    with pytest.raises(CancelledError):
        engine.submit(engine.job(waveforms[0], ("", "x"), sampled))
