"""`steermoe params`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from steermoe.cli.options import EncoderName, Json, LlmName, Params


def main(
    variant: Annotated[
        list[str] | None,
        typer.Option(help="variant of params.yaml, can be repeated; default: those selected"),
    ] = None,
    encoder: EncoderName = None,
    llm: LlmName = None,
    params: Params = Path("params.yaml"),
    as_json: Json = False,
) -> None:
    """Count the parameters of a configuration, frozen and trained, part by part.

    The real modules are built on the meta device: no weights, no network, no memory.

    Examples:

        steermoe params
        steermoe params --variant steermoe-16 --encoder whisper-large-v3 --llm qwen2.5-7b-instruct
        steermoe params --json
    """
    from steermoe import config
    from steermoe.analysis.parameters import audit

    settings = config.load(params)
    found = {name: audit(settings.variant(name), encoder, llm) for name in variant or settings.compare}
    if as_json:
        print(json.dumps(found, indent=1))
        return
    from rich.table import Table

    from steermoe.cli.terminal import plain_console

    console = plain_console()
    for name, counted in found.items():
        table = Table(title=f"{name}: {counted['encoder']} + {counted['llm']}", title_justify="left")
        for column in ("part", "", "parameters"):
            table.add_column(column, justify="right" if column == "parameters" else "left")
        for kind in ("frozen", "trained"):
            for part, count in counted[kind].items():
                table.add_row(part, kind, f"{count:,}")
            table.add_section()
        table.add_row(
            "all trained", f"{100 * counted['trained_share']:.3f} % of all", f"{counted['trained_total']:,}"
        )
        console.print(table)
        console.print()
