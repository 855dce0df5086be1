"""`steermoe serve`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from steermoe.serving.options import Device, Model

LLM_KEY = "STEERMOE_LLM_API_KEY"


def main(
    model: Model = None,
    device: Device = None,
    name: Annotated[
        str | None, typer.Option(help="what requests call the model; default: the adapter's last name")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="that the adapter was trained on, as requests give it (en)")
    ] = None,
    host: Annotated[
        str, typer.Option(help="the address to listen at; another than this machine's needs an API key")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="holds the API key; or STEERMOE_API_KEY does, or one is made up")
    ] = None,
    llm_url: Annotated[
        str | None,
        typer.Option(
            help="a vLLM server that has the LLM (http://host:8000/v1); its key is STEERMOE_LLM_API_KEY"
        ),
    ] = None,
    llm_model: Annotated[
        str | None, typer.Option(help="what the LLM is called there, if it has several")
    ] = None,
    max_mb: Annotated[float, typer.Option(min=0.001, help="a request's body, MiB")] = 25.0,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="a recording")] = 1800.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="an answer")] = 200,
    concurrency: Annotated[int, typer.Option(min=1, help="requests being answered at once")] = 128,
    queue: Annotated[int, typer.Option(min=1, help="recordings that wait for the model")] = 256,
    batch_rows: Annotated[int, typer.Option(min=1, help="recordings in a batch")] = 16,
    batch_seconds: Annotated[float, typer.Option(min=0.1, help="audio in a batch, with padding")] = 120.0,
    drain_seconds: Annotated[
        float, typer.Option(min=0.1, help="for finishing what was accepted, after SIGTERM or Ctrl-C")
    ] = 30.0,
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
    from steermoe.serving.access import api_key

    if llm_model is not None and llm_url is None:
        raise ValueError("--llm-model: has no effect without --llm-url")
    key, made_up = api_key(host, api_key_file)

    from steermoe.serving.engine import Engine
    from steermoe.serving.limits import Limits
    from steermoe.serving.opening import DEFAULT_MODEL, open_model
    from steermoe.serving.server import Server
    from steermoe.serving.service import Service

    limits = Limits(
        max_bytes=int(max_mb * 2**20), max_seconds=max_seconds, max_tokens=max_tokens, requests=concurrency,
        queue=queue, batch_rows=batch_rows, batch_seconds=batch_seconds, drain_seconds=drain_seconds,
    )  # fmt: skip
    if llm_url is None:
        engine = Engine(open_model(model, device))
    else:
        from steermoe.serving.remote import RemoteLlm, load_embeddings

        loaded = open_model(model, device, load_embeddings)
        stops = loaded.llm.generation_config.eos_token_id
        engine = Engine(loaded, RemoteLlm(llm_url, llm_model, stops, os.environ.get(LLM_KEY)))
    called = name or Path(model or DEFAULT_MODEL).name
    service = Service(engine, limits, called, language)

    def announce(address: str) -> None:
        said = [f"steermoe: serving {called} at {address}/v1"]
        if made_up:
            said.append(f"steermoe: API key, made up for this run: {key}")
        print(*said, sep="\n", file=sys.stderr, flush=True)

    Server(service, host, port, key, announce).run()
