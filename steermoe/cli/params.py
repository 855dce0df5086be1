"""`steermoe params`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steermoe.cli.options import EncoderName, Json, LlmName, Params

if TYPE_CHECKING:
    from steermoe.analysis.audit import Audit


def main(
    variant: Annotated[
        list[str] | None,
        typer.Option(help="a variant of params.yaml, again for more; default: those selected"),
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
    from steermoe.analysis import audit

    settings = config.load(params)
    found = {}
    for name in variant or settings.compare:
        chosen = settings.variant(name)
        sections = audit.Sections.of(chosen)
        found[name] = audit.audit(sections, encoder or chosen.encoder.path, llm or chosen.llm.path)
    if as_json:
        print(json.dumps({name: audited.to_json() for name, audited in found.items()}, indent=1))
        return
    from steermoe.cli.terminal import plain_console

    console = plain_console()
    for name, audited in found.items():
        _show(console, name, audited)


def _show(console: Any, name: str, audited: "Audit") -> None:
    from rich.table import Table

    table = Table(title=f"{name}: {audited.encoder} + {audited.llm}", title_justify="left")
    for column in ("part", "", "parameters"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    for kind, counts in (("frozen", audited.frozen), ("trained", audited.trained)):
        for part, count in counts.items():
            table.add_row(part, kind, f"{count:,}")
        table.add_section()
    share = f"{100 * audited.share:.3f} % of all"
    table.add_row("all trained", share, f"{audited.total:,}")
    console.print(table)
    console.print()
