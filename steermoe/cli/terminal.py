"""Make standard streams usable that are closed or lack a character, and text safe to print on a terminal."""

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
    """Replace standard streams that are closed by `/dev/null`, and escape as in JSON what an encoding lacks."""
    codecs.register_error(ESCAPED, _escape)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123  the lowest descriptor is free
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if mode == "r" else ESCAPED)


def flushed(code: int) -> int:
    """Flush standard output, and return the exit code: 1 where that fails, with a message unless a pipe was closed."""
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
    """Escape the unprintable characters of a text, which may be JSON, as in JSON, except those of `kept`."""
    return UNPRINTABLE.sub(lambda found: found[0] if found[0] in kept else json.dumps(found[0])[1:-1], text)


def plain_console(**settings: Any) -> "Console":
    """Return a rich console that prints texts as they are: no markup, no emoji codes, no colours of its own."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, **settings)


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
