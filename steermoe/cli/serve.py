"""`steermoe serve`."""

import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from steermoe.cli.options import Device, Host, KeyFile, MaxMb, MaxSeconds, Model, Port, Yes

if TYPE_CHECKING:
    from steermoe.server.engine import Engine, Limits

LLM_KEY_VARIABLE = "STEERMOE_LLM_API_KEY"
Name = Annotated[
    str | None, typer.Option(help="model name in requests; default: last part of the adapter's path")
]
Language = Annotated[str | None, typer.Option(help="language that the adapter was trained on, such as en")]
LlmUrl = Annotated[
    str | None,
    typer.Option(help="vLLM server that runs the LLM (http://host:8000/v1); its key is STEERMOE_LLM_API_KEY"),
]
LlmModel = Annotated[str | None, typer.Option(help="name of the LLM there, if it has several")]
MaxTokens = Annotated[int, typer.Option(min=1, help="maximum tokens per answer")]
Queue = Annotated[int, typer.Option(min=1, help="recordings that may wait before requests get 429")]
BatchRows = Annotated[int, typer.Option(min=1, help="maximum recordings per batch")]
BatchSeconds = Annotated[float, typer.Option(min=0.1, help="maximum audio per batch (s), padding included")]


def main(
    model: Model = None,
    device: Device = None,
    yes: Yes = False,
    name: Name = None,
    language: Language = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key_file: KeyFile = None,
    llm_url: LlmUrl = None,
    llm_model: LlmModel = None,
    max_mb: MaxMb = 25.0,
    max_seconds: MaxSeconds = 1800.0,
    max_tokens: MaxTokens = 200,
    queue: Queue = 256,
    batch_rows: BatchRows = 16,
    max_batch_seconds: BatchSeconds = 120.0,
) -> None:
    """Serve a model with OpenAI's API: /v1/audio/transcriptions and /v1/chat/completions.

    Waiting requests share batches; requests beyond a limit get 413, 400 or 429; /health and /metrics show the state.
    By default it listens on this machine only; with another host, requests need an API key.

    Examples:

        steermoe serve
        steermoe serve --model models/mini/steermoe --port 8080 --language en
        steermoe serve --host 0.0.0.0 --api-key-file key.txt
        steermoe serve --llm-url http://localhost:8001/v1
    """
    from steermoe.server.access import api_key, bind, local_names

    if llm_model is not None and llm_url is None:
        raise ValueError("--llm-model: has no effect without --llm-url")
    key, generated = api_key(host, api_key_file)
    with bind(host, port) as listening:  # before the model is loaded
        from steermoe.cli.options import model_name
        from steermoe.models.inference import notice
        from steermoe.server.app import create_app, create_server
        from steermoe.server.engine import Limits
        from steermoe.server.schema import language_code

        limits = Limits(
            max_bytes=int(max_mb * 2**20), max_seconds=max_seconds, max_tokens=max_tokens, queue_length=queue,
            batch_rows=batch_rows, max_batch_seconds=max_batch_seconds,
        )  # fmt: skip
        name, code = name or model_name(model), language_code(language)
        engine = _engine(model, device, yes, limits, llm_url, llm_model)
        app = create_app(engine, name, code, key, local_names(host) if key is None else None)
        # uvicorn finishes what it accepted, and then raises the signal again, which would end us with an error.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        address = f"[{host}]" if ":" in host else host
        lines = [f"serving {name} at http://{address}:{listening.getsockname()[1]}/v1", notice(engine.model)]
        lines += [f"API key, generated for this run: {key}"] * generated
        for line in filter(None, lines):
            print(f"steermoe: {line}", file=sys.stderr)
        with suppress(KeyboardInterrupt):
            create_server(app).run(sockets=[listening])


def _engine(
    model: str | None,
    device: str | None,
    yes: bool,
    limits: "Limits",
    llm_url: str | None,
    llm_model: str | None,
) -> "Engine":
    """Load the model, with its LLM or with that of a server."""
    from steermoe.cli.options import open_model
    from steermoe.server.engine import Engine

    if llm_url is None:
        return Engine(open_model(model, device, yes), limits)
    from steermoe.server.vllm_client import RemoteLlm, load_embeddings

    loaded = open_model(model, device, yes, load_embeddings)
    if weight := loaded.generation.ctc_weight:
        raise ValueError(
            f"--llm-url: the adapter has generation.ctc_weight {weight:g}, which needs each token's probability, "
            "which servers do not give; serve it without --llm-url, or give another --model"
        )
    stops = loaded.llm.generation_config.eos_token_id
    return Engine(loaded, limits, RemoteLlm(llm_url, llm_model, stops, os.environ.get(LLM_KEY_VARIABLE)))
