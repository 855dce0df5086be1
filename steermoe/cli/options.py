"""The options that commands share."""

from pathlib import Path
from typing import Annotated

import typer

Params = Annotated[Path, typer.Option(help="the configuration")]
EncoderName = Annotated[
    str | None,
    typer.Option(
        help="instead of the configuration's: a preset (whisper-large-v3, ...), a folder, or a hub id"
    ),
]
LlmName = Annotated[
    str | None,
    typer.Option(
        help="instead of the configuration's: a preset (qwen2.5-7b-instruct, ...), a folder, or a hub id"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="write JSON instead of tables")]
Model = Annotated[
    str | None,
    typer.Option(help="a trained adapter: a folder, or a hub id; default: pretrained/adapters/steermoe"),
]
Device = Annotated[
    str | None, typer.Option(help="where it runs: cpu, cuda, cuda:1, ...; default: cuda where there is one")
]
Track = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="which audio track of a video or other container; default: its own default, unless that is silent",
    ),
]
