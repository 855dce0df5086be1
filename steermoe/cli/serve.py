"""`steermoe serve`."""

import os
import sys
from typing import TYPE_CHECKING

from steermoe.cli import server_options as options
from steermoe.cli.options import Device, Model

if TYPE_CHECKING:
    from steermoe.server.engine import Engine

LLM_KEY = "STEERMOE_LLM_API_KEY"


def main(
    model: Model = None,
    device: Device = None,
    name: options.Name = None,
    language: options.Language = None,
    host: options.Host = "127.0.0.1",
    port: options.Port = 8000,
    api_key_file: options.ApiKeyFile = None,
    llm_url: options.LlmUrl = None,
    llm_model: options.LlmModel = None,
    max_mb: options.MaxMb = 25.0,
    max_seconds: options.MaxSeconds = 1800.0,
    max_tokens: options.MaxTokens = 200,
    concurrency: options.Concurrency = 128,
    queue: options.Queue = 256,
    batch_rows: options.BatchRows = 16,
    max_batch_seconds: options.BatchSeconds = 120.0,
    drain_seconds: options.DrainSeconds = 30.0,
) -> None:
    """Serve a model over HTTP as OpenAI's API does: /v1/audio/transcriptions and /v1/chat/completions.

    Requests that wait share batches; limits answer 413, 400, 429 and 503; /health and /metrics tell how it goes.
    It listens on this machine only, unless told otherwise, and then asks for an API key.

    Examples:

        steermoe serve
        steermoe serve --model models/mini/steermoe --port 8080 --language en
        steermoe serve --host 0.0.0.0 --api-key-file key.txt
        steermoe serve --llm-url http://localhost:8001/v1
    """
    from steermoe.server.auth import api_key, check_address

    if llm_model is not None and llm_url is None:
        raise ValueError("--llm-model: has no effect without --llm-url")
    key, made_up = api_key(host, api_key_file)
    check_address(host, port)  # before the model is loaded
    from steermoe.cli.options import model_name
    from steermoe.server.app import Server
    from steermoe.server.limits import Limits
    from steermoe.server.schema import language_code
    from steermoe.server.service import Service

    limits = Limits(
        max_bytes=int(max_mb * 2**20), max_seconds=max_seconds, max_tokens=max_tokens, requests=concurrency,
        queue=queue, batch_rows=batch_rows, max_batch_seconds=max_batch_seconds, drain_seconds=drain_seconds,
    )  # fmt: skip
    called = name or model_name(model)
    spoken = language_code(language)
    service = Service(_engine(model, device, llm_url, llm_model), limits, called, spoken)

    def announce(address: str) -> None:
        said = [f"steermoe: serving {called} at {address}/v1"]
        if made_up:
            said.append(f"steermoe: API key, made up for this run: {key}")
        if service.notice is not None:
            said.append(f"steermoe: {service.notice}")
        print(*said, sep="\n", file=sys.stderr, flush=True)

    Server(service, host, port, key, announce).run()


def _engine(model: str | None, device: str | None, llm_url: str | None, llm_model: str | None) -> "Engine":
    """What answers: the model, with its LLM here or on a server."""
    from steermoe.cli.options import open_model
    from steermoe.server.engine import Engine

    if llm_url is None:
        return Engine(open_model(model, device))
    from steermoe.server.vllm_client import RemoteLlm, load_embeddings

    loaded = open_model(model, device, load_embeddings)
    stops = loaded.llm.generation_config.eos_token_id
    return Engine(loaded, RemoteLlm(llm_url, llm_model, stops, os.environ.get(LLM_KEY)))
