"""`steermoe chat`."""

import shlex
import sys
from collections.abc import Iterator
from typing import Any

from steermoe.cli.options import Device, Model, Yes
from steermoe.cli.terminal import plain_console, printable

HELP = """/audio FILE [QUESTION]  transcribe a recording, or ask a question about it
/reset                  forget the conversation
/help                   show this help
/quit                   quit; so does the end of input"""


def main(model: Model = None, device: Device = None, yes: Yes = False) -> None:
    """Chat with the frozen LLM by text and by recordings; the conversation is kept until `/reset`.

    A line is a turn. `/audio FILE` transcribes a recording, `/audio FILE QUESTION` asks about it; later lines are
    questions about the same recording. Lines may come from a pipe.

    Examples:

        steermoe chat
        printf '/audio talk.wav\\nwho is in it\\n' | steermoe chat
    """
    from steermoe.cli import options
    from steermoe.models.inference import NO_SPEECH

    opened = options.open_model(model, device, yes)
    console = plain_console(soft_wrap=True)
    if sys.stdin.isatty():
        console.print(HELP)
    history: list[dict[str, Any]] = []
    for line in _lines():
        word, *rest = line.split(maxsplit=1)
        if word == "/quit":
            break
        if word == "/reset":
            history = []
        elif word == "/help":
            console.print(HELP)
        elif word.startswith("/") and word != "/audio":
            _problem(f"{word}: no such command; there are /audio, /reset, /help, /quit")
        else:
            try:
                content = _recording(rest[0] if rest else "") if word == "/audio" else line
                turn = {"role": "user", "content": content}
                answer = opened.chat([*history, turn])
            except (OSError, ValueError) as error:
                _problem(f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error))
                continue
            if NO_SPEECH in answer.warnings:
                continue
            history += [turn, {"role": "assistant", "content": answer.text}]
            console.print(answer.text)


def _recording(arguments: str) -> list[dict[str, Any]]:
    """Return the content of a turn with a recording."""
    from steermoe.audio import io

    path, *words = shlex.split(arguments) or [""]
    if not path:
        raise ValueError("/audio: no file; write /audio FILE, or /audio FILE QUESTION")
    part = {"type": "audio", "audio": io.load(path)}  # once, not again with every turn
    return [part, {"type": "text", "text": " ".join(words)}] if words else [part]


def _lines() -> Iterator[str]:
    """Yield the lines of standard input that are not empty; on a terminal they can be edited."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  makes input() editable, with a history
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line:
            yield line


def _problem(text: str) -> None:
    print("steermoe:", printable(text), file=sys.stderr, flush=True)
