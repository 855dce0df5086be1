"""`steermoe chat`."""

import shlex
import sys
from collections.abc import Iterator
from typing import Any

from steermoe.cli.options import Device, Model
from steermoe.cli.terminal import plain_console, printable

HELP = """/audio FILE [QUESTION]  a recording, to be written down or with a question about it
/reset                  forget the conversation
/help                   this
/quit                   end; so does the end of input"""


def main(model: Model = None, device: Device = None) -> None:
    """Talk with the frozen LLM by text and by recordings; what was said is kept until `/reset`.

    A line is a turn. `/audio FILE` is a recording to be written down, `/audio FILE QUESTION` one with a question
    about it; later lines are questions about what was heard. Lines may come by a pipe.

    Examples:

        steermoe chat
        printf '/audio talk.wav\\nwho is in it\\n' | steermoe chat
    """
    from steermoe.cli import loading as opening
    from steermoe.models.inference import NO_SPEECH

    talk = opening.open_model(model, device)
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
                answer = talk.chat([*history, turn])
            except OSError as error:
                _problem(f"{error.filename}: {error.strerror}")
                continue
            except ValueError as error:
                _problem(str(error))
                continue
            if NO_SPEECH in answer.warnings:
                continue
            history += [turn, {"role": "assistant", "content": answer.text}]
            console.print(answer.text)


def _recording(arguments: str) -> list[dict[str, Any]]:
    """The content of a turn with a recording."""
    from steermoe.audio import waveform

    path, *words = shlex.split(arguments) or [""]
    if not path:
        raise ValueError("/audio: no file; write /audio FILE, or /audio FILE QUESTION")
    part = {"type": "audio", "audio": waveform.load(path)}  # once, not again with every turn
    return [part, {"type": "text", "text": " ".join(words)}] if words else [part]


def _lines() -> Iterator[str]:
    """The lines of standard input that say something; on a terminal they can be edited."""
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
