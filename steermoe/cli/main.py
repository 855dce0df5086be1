"""The command line, `steermoe <command>`. A command is a file in `commands/` with a function `main`, and a row here.

A command's file is imported when the command is called, and what is heavy (torch, transformers) within its
function: `steermoe --help` must be there at once.
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
    steermoe analyze models/mini/steermoe data/mini/shards/synthetic
    steermoe params
    steermoe params --encoder whisper-large-v3 --llm qwen2.5-7b-instruct
    steermoe plan --encoder whisper-large-v3 --llm qwen2.5-7b-instruct --hours 100.6 --epochs 10
    steermoe serve --port 8080
    steermoe demo

`steermoe COMMAND --help` explains a command."""


class _OnDemand(TyperGroup):
    """Knows names and summaries of all commands; the one that is called is imported."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=summary) for name, summary in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, command(str(name)), rest


def command(name: str) -> Any:
    """The command called `name`, a row of COMMANDS, imported."""
    module = importlib.import_module(f"steermoe.cli.{name.replace('-', '_')}")
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
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="the version, and nothing else"),
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
        0 if all went well; 1 if something is not there or cannot be; 2 for wrong use, a wrong configuration
        included; 3 if some of many recordings could not be used.
    """
    app = typer.Typer(cls=_OnDemand, rich_markup_mode="markdown", epilog=EXAMPLES)
    app.callback()(root)
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return get_command(app).main(words or ["--help"], prog_name="steermoe", standalone_mode=False) or 0
    except (typer.Abort, KeyboardInterrupt):
        return _said("stopped", 1)
    except typer.TyperException as error:
        usage = getattr(error, "ctx", None)
        hint = f" (see `{usage.command_path} --help`)" if usage is not None else ""
        return _said(f"{error.format_message().rstrip('.')}{hint}", 2)
    except ValueError as error:
        from steermoe.config import ConfigError  # here, for it loads pydantic

        lines = error.lines if isinstance(error, ConfigError) else [str(error)]
        return _said(lines[0] if len(lines) == 1 else str(error), 2)
    except ImportError as error:
        if words[0] not in EXTRAS:
            raise
        wanted = f"pip install 'steermoe[{EXTRAS[words[0]]}]', or `make setup`, which installs all extras"
        return _said(f"{words[0]} needs what is not installed ({error}): {wanted}", 1)
    except BrokenPipeError:  # whoever read has read enough
        sys.stdout = None
        return 1
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            return _said(f"{os.fsdecode(error.filename)}: {error.strerror}", 1)
        return _said(str(error), 1)


def _said(problem: str, code: int) -> int:
    with suppress(OSError):  # nobody reads it
        print("steermoe:", printable(problem, kept="\n"), file=sys.stderr)
    return code


COMMANDS = {
    "transcribe": "write down what is said in recordings of any length",
    "ask": "ask about a recording, or give a task",
    "chat": "talk with the frozen LLM by text and by recordings",
    "stream": "write down speech as it comes: the microphone, a pipe, or a file",
    "analyze": "see what the experts of a trained adapter do",
    "params": "count the parameters of a configuration, frozen and trained, part by part",
    "plan": "estimate the hours and memory of a training run, and whether it fits",
    "export": "take a trained model elsewhere: one folder, ONNX Runtime, or the hub",
    "serve": "serve a model over HTTP as OpenAI's API does",
    "demo": "show a model on a web page, its experts at work",
}
EXTRAS = {
    "serve": "serve",
    "demo": "demo,serve",
    "export": "export",
}  # of pyproject.toml, that a command needs

if __name__ == "__main__":
    sys.exit(main())
