"""The LLM elsewhere: a small server that implements vLLM's request with the mini LLM, and gives the same texts.

It stands for vLLM by its documents and its source (`/v1/completions` with `prompt_embeds`, `return_token_ids`); a
real vLLM was not run.
"""

import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from transformers import AutoModelForCausalLM

from steermoe.asr.recognizer import Recognizer
from steermoe.models.steermoe import SteerMoE
from steermoe.server.engine import Engine
from steermoe.server.vllm_client import RemoteError, RemoteLlm, encoded, load_embeddings

from .conftest import NAME, ROOT, Running, wav
from .test_process import started

LLM, KEY = "mini-llm", "key-of-the-llm"


def vllm(requests: list[dict[str, Any]]) -> FastAPI:
    """`vllm serve pretrained/llm --served-model-name mini-llm --enable-prompt-embeds --api-key ...`."""
    llm: Any = AutoModelForCausalLM.from_pretrained(ROOT / "pretrained/llm", dtype=torch.float32)
    app = FastAPI()

    def refused(request: Request) -> bool:
        return request.headers.get("authorization") != f"Bearer {KEY}"

    @app.get("/v1/models")
    async def models(request: Request) -> Any:
        if refused(request):
            return JSONResponse({"error": "Unauthorized"}, 401)
        return {"object": "list", "data": [{"id": LLM, "object": "model"}]}

    @app.post("/v1/completions")
    async def completions(request: Request) -> Any:
        if refused(request):
            return JSONResponse({"error": "Unauthorized"}, 401)
        body = await request.json()
        requests.append({**body, "prompt_embeds": len(body["prompt_embeds"])})
        choices = []
        for index, embeds in enumerate(body["prompt_embeds"]):
            content = base64.b64decode(embeds, validate=True)
            prompt = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
            assert prompt.dtype in (torch.float32, torch.bfloat16, torch.float16)
            assert prompt.dim() == 2 and prompt.shape[1] == llm.config.hidden_size
            ids = llm.generate(
                inputs_embeds=prompt[None].float(), attention_mask=torch.ones(1, len(prompt)).long(),
                max_new_tokens=body["max_tokens"], do_sample=False, eos_token_id=body["stop_token_ids"],
            )[0].tolist()  # fmt: skip
            stopped = ids[-1] in body["stop_token_ids"]
            choices.insert(0, {"index": index, "text": "...", "token_ids": ids, "stop_reason": stopped})
        return {"object": "text_completion", "model": LLM, "choices": choices}

    return app


@contextmanager
def listening(app: Any) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 300
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def requests() -> list[dict[str, Any]]:
    return []


@pytest.fixture(scope="module")
def url(requests: list[dict[str, Any]]) -> Iterator[str]:
    with listening(vllm(requests)) as address:
        yield address


@pytest.fixture(scope="module")
def half(adapter: Path) -> SteerMoE:
    """The model without its LLM's layers."""
    return SteerMoE.from_pretrained(adapter, load=load_embeddings)


@pytest.fixture(scope="module")
def remote(serve: Callable[..., Any], half: SteerMoE, url: str) -> Iterator[Running]:
    llm = RemoteLlm(url, LLM, half.llm.generation_config.eos_token_id, KEY)
    with serve(Engine(half, llm)) as running:
        yield running


def test_nothing_of_the_llm_is_here_but_its_embeddings(half: SteerMoE, model: SteerMoE) -> None:
    assert sum(p.numel() for p in half.llm.parameters()) < 0.07 * sum(
        p.numel() for p in model.llm.parameters()
    )
    ids = torch.arange(20)
    ours, theirs = (m.llm.get_input_embeddings()(ids) for m in (half, model))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert half.llm.generation_config.eos_token_id == model.llm.generation_config.eos_token_id


def test_first_layers_of_an_llm_are_on_no_server(model: SteerMoE) -> None:
    with pytest.raises(ValueError, match=r"llm\.layers: found 2; a server runs all layers of its LLM"):
        load_embeddings(model.config.llm.model_copy(update={"layers": 2}))


def test_texts_are_those_of_the_llm_here(
    remote: Running,
    model: SteerMoE,
    requests: list[dict[str, Any]],
    recordings: list[bytes],
    waveforms: list[np.ndarray],
) -> None:
    recognizer = Recognizer(model)
    for data, samples in zip(recordings, waveforms, strict=True):
        found = remote.client.audio.transcriptions.create(model=NAME, file=("a.wav", data))
        assert found.text == recognizer.transcript(samples).text
    sent = requests[-1]
    assert {name: sent[name] for name in ("model", "temperature", "top_p", "top_k", "repetition_penalty")} == {
        "model": LLM, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0,
    }  # fmt: skip
    assert sent["max_tokens"] == 200 and sent["return_token_ids"] is True


def test_a_long_recording_goes_there_in_batches(
    remote: Running, model: SteerMoE, requests: list[dict[str, Any]], waveforms: list[np.ndarray]
) -> None:
    samples = np.concatenate([part for wave in waveforms for part in (wave, np.zeros(16000, np.float32))])
    found = remote.client.audio.transcriptions.create(model=NAME, file=("a.wav", wav(samples, 16000)))
    assert found.text == Recognizer(model).transcript(samples).text
    assert max(request["prompt_embeds"] for request in requests) > 1


def test_questions_and_streams(
    remote: Running, model: SteerMoE, recordings: list[bytes], waveforms: list[np.ndarray]
) -> None:
    encoded_audio = base64.b64encode(recordings[0]).decode()
    parts: Any = [
        {"type": "input_audio", "input_audio": {"data": encoded_audio, "format": "wav"}},
        {"type": "text", "text": "how many hammers were found?"},
    ]
    turn: Any = {"role": "user", "content": parts}
    expected = model.ask(waveforms[0], "how many hammers were found?").text
    reply = remote.client.chat.completions.create(model=NAME, messages=[turn])
    assert reply.choices[0].message.content == expected
    chunks = remote.client.chat.completions.create(model=NAME, messages=[turn], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_the_command(url: str, model: SteerMoE, recordings: list[bytes], waveforms: list[np.ndarray]) -> None:
    with started("--llm-url", url, STEERMOE_LLM_API_KEY=KEY) as process:
        assert process.transcribe(recordings[0]) == Recognizer(model).transcript(waveforms[0]).text


def test_a_prompt_is_saved_without_what_it_is_a_view_of() -> None:
    rows = torch.randn(4, 100, 32)
    content = base64.b64decode(encoded(rows[1, 90:]))
    assert len(content) < 10 * 32 * 4 + 4096
    torch.testing.assert_close(torch.load(io.BytesIO(content), weights_only=True), rows[1, 90:])


def test_what_is_wrong_with_the_server_is_said(url: str) -> None:
    with pytest.raises(RemoteError, match="has no model 'gpt'; there are: \\['mini-llm'\\]"):
        RemoteLlm(url, "gpt", [0], KEY)
    with pytest.raises(RemoteError, match="status 401"):
        RemoteLlm(url, None, [0], "wrong")
    with pytest.raises(RemoteError, match="no answer"):
        RemoteLlm("http://127.0.0.1:9/v1", None, [0])


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ({"choices": [{"index": 0, "text": "so"}]}, "no choices[].token_ids for each of 1 prompts"),
        ({"choices": [{"index": 3, "token_ids": [1]}]}, "no choices[].token_ids"),
        ({"choices": [{"index": 0, "token_ids": ["x"]}]}, "no choices[].token_ids"),
        ([], "found list, expected a JSON object"),
    ],
)
def test_a_server_that_is_no_vllm_is_502(
    serve: Callable[..., Any], half: SteerMoE, recordings: list[bytes], reply: Any, said: str
) -> None:
    app = FastAPI()
    app.get("/v1/models")(lambda: {"data": [{"id": "other"}]})
    app.post("/v1/completions")(lambda: reply)
    with listening(app) as address:
        llm = RemoteLlm(address, None, [0])
        assert llm.name == "other"
        with serve(Engine(half, llm)) as running:
            with pytest.raises(openai.InternalServerError) as refused:
                running.client.audio.transcriptions.create(model=NAME, file=("a.wav", recordings[0]))
            assert refused.value.status_code == 502
            assert said in str(refused.value)


def test_a_server_that_goes_away_within_its_answer_is_said(url: str) -> None:
    llm = RemoteLlm(url, LLM, [0], KEY)
    with socket.create_server(("127.0.0.1", 0)) as broken:

        def half_an_answer() -> None:
            connection, _ = broken.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")

        thread = threading.Thread(target=half_an_answer)
        thread.start()
        llm._url = f"http://127.0.0.1:{broken.getsockname()[1]}/v1"
        with pytest.raises(RemoteError, match="/completions: no answer"):
            llm._call("completions", {})
        thread.join(10)
