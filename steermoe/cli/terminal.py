"""Standard streams that are closed or cannot take a character, and text that is nothing but text on a terminal."""

import codecs
import io
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Control characters, line separators, changes of direction, and bytes of a file name that are no text.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

ESCAPED = "steermoe.escaped"  # the name of an error handler of codecs


def prepare_streams() -> None:
    """Make the standard streams usable, however the process was started.

    A closed descriptor would be taken by the next file that is opened, so `/dev/null` takes its place; what is
    written to a closed standard output fails, as what is lost must. Characters that an encoding lacks are escaped
    as JSON does, instead of ending the command.
    """
    codecs.register_error(ESCAPED, _escape)
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # the lowest free number is this one
    streams: dict[str, tuple[int, str, str]] = {
        "stdin": (0, "r", "surrogateescape"),
        "stdout": (1, "w", ESCAPED),
        "stderr": (2, "w", ESCAPED),
    }
    for name, (number, mode, errors) in streams.items():
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", errors=errors, closefd=False))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def flushed(code: int) -> int:
    """The exit code of a command whose output is to be written out now; 1 where that fails.

    Who stopped reading has read enough; of anything else standard error says what it is.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        sys.stdout = None  # or Python would try again, and complain
        if not code and not isinstance(error, BrokenPipeError):
            print(f"steermoe: standard output: {error.strerror}", file=sys.stderr)
        return code or 1
    return code


def printable(text: str, kept: str = "") -> str:
    """A text, which may be JSON, with its unprintable characters escaped as JSON does, except those of `kept`."""
    return UNPRINTABLE.sub(lambda found: found[0] if found[0] in kept else json.dumps(found[0])[1:-1], text)


def plain_console(**settings: Any) -> "Console":
    """A rich console that takes names and texts as they are: no markup, no emoji codes, no colours of its own."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, **settings)


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
