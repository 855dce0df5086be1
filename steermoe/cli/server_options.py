"""The options of `steermoe serve`."""

from pathlib import Path
from typing import Annotated

import typer

Name = Annotated[
    str | None, typer.Option(help="what requests call the model; default: the adapter's last name")
]
Language = Annotated[
    str | None, typer.Option(help="that the adapter was trained on, as requests give it (en)")
]
Host = Annotated[
    str, typer.Option(help="the address to listen at; another than this machine's needs an API key")
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")]
ApiKeyFile = Annotated[
    Path | None, typer.Option(help="holds the API key; or STEERMOE_API_KEY does, or one is made up")
]
LlmUrl = Annotated[
    str | None,
    typer.Option(
        help="a vLLM server that has the LLM (http://host:8000/v1); its key is STEERMOE_LLM_API_KEY"
    ),
]
LlmModel = Annotated[str | None, typer.Option(help="what the LLM is called there, if it has several")]
MaxMb = Annotated[float, typer.Option(min=0.001, help="a request's body, MiB")]
MaxSeconds = Annotated[float, typer.Option(min=0.1, help="a recording")]
MaxTokens = Annotated[int, typer.Option(min=1, help="an answer")]
Concurrency = Annotated[int, typer.Option(min=1, help="requests being answered at once")]
Queue = Annotated[int, typer.Option(min=1, help="recordings that wait for the model")]
BatchRows = Annotated[int, typer.Option(min=1, help="recordings in a batch")]
BatchSeconds = Annotated[float, typer.Option(min=0.1, help="audio in a batch, with padding")]
DrainSeconds = Annotated[
    float, typer.Option(min=0.1, help="for finishing what was accepted, after SIGTERM or Ctrl-C")
]
