"""A remote LLM: a small server implements vLLM's request with the mini LLM; the texts are those of the local one.

It follows vLLM's documentation (`/v1/completions` with `prompt_embeds`, `return_token_ids`); a real vLLM was not run.
"""

import base64
import io
import threading
from collections.abc import Iterator
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
from steermoe.models.generation import GREEDY
from steermoe.models.steermoe import SteerMoE
from steermoe.server.access import bind
from steermoe.server.engine import Engine
from steermoe.server.vllm_client import RemoteError, RemoteLlm, encoded, load_embeddings

from .conftest import NAME, ROOT, running, transcribe, wav

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
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with bind("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
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
def remote(url: str, half: SteerMoE) -> Iterator[openai.OpenAI]:
    """A server with the LLM on that server."""
    stops = half.llm.generation_config.eos_token_id
    with running(Engine(half, remote=RemoteLlm(url, None, stops, KEY))) as server:
        yield server.client


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


def test_texts_are_those_of_the_local_llm(
    remote: openai.OpenAI, model: SteerMoE, requests: list[dict[str, Any]], waveforms: list[np.ndarray]
) -> None:
    recognizer = Recognizer(model)
    long = np.concatenate([part for wave in waveforms for part in (wave, np.zeros(16000, np.float32))])
    for samples in (*waveforms[:2], long):
        file = ("a.wav", wav(samples, 16000))
        found = remote.audio.transcriptions.create(model=NAME, file=file)
        assert found.text == recognizer.transcript(samples).text
    assert max(request["prompt_embeds"] for request in requests) > 1
    sent = requests[-1]
    assert {name: sent[name] for name in ("model", "temperature", "top_p", "top_k", "repetition_penalty")} == {
        "model": LLM, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0,
    }  # fmt: skip
    assert sent["max_tokens"] == 200 and sent["return_token_ids"] is True


def test_a_prompt_is_saved_without_what_it_is_a_view_of() -> None:
    rows = torch.randn(4, 100, 32)
    content = base64.b64decode(encoded(rows[1, 90:]))
    assert len(content) < 10 * 32 * 4 + 4096
    torch.testing.assert_close(torch.load(io.BytesIO(content), weights_only=True), rows[1, 90:])


def test_what_is_wrong_with_the_server_is_said(url: str) -> None:
    with pytest.raises(RemoteError, match="no model 'gpt'; available: \\['mini-llm'\\]"):
        RemoteLlm(url, "gpt", [0], KEY)
    with pytest.raises(RemoteError, match="status 401"):
        RemoteLlm(url, None, [0], "wrong")
    with pytest.raises(RemoteError, match="no answer"):
        RemoteLlm("http://127.0.0.1:9/v1", None, [0])


def test_a_server_that_is_no_vllm_is_502(half: SteerMoE, recordings: list[bytes]) -> None:
    replies: list[Any] = [{"choices": [{"index": 0, "text": "so"}]}, []]
    app = FastAPI()
    app.get("/v1/models")(lambda: {"data": [{"id": "other"}]})
    app.post("/v1/completions")(lambda: replies.pop(0))
    with listening(app) as address:
        llm = RemoteLlm(address, None, [0])
        assert llm.name == "other"
        with running(Engine(half, remote=llm)) as server:
            for said in (
                "no choices[].token_ids for each of 1 prompts",
                "found list, expected a JSON object",
            ):
                with pytest.raises(openai.InternalServerError) as refused:
                    transcribe(server, recordings[0])
                assert refused.value.status_code == 502 and said in str(refused.value)
    with pytest.raises(RemoteError, match="/completions: no answer"):
        llm([torch.zeros(1, 2)], GREEDY, 0)
