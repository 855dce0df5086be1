"""Write docs/api.md, the API reference, from the docstrings of what `steermoe` exports.

    python docs/api_reference.py [--check]

With `--check` nothing is written; the exit code is 1 if the page is not up to date.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import steermoe

PAGE = Path(__file__).with_name("api.md")
HEAD = """# API reference

Generated from the docstrings by `python docs/api_reference.py`; a test fails if the page is not up to date.

    from steermoe import {names}
"""


def signature(thing: Any) -> str:
    """Return a signature with the names of types alone, without modules, validators and addresses."""
    text = str(inspect.signature(thing))
    validator = (
        r"(?:typing\.)?Annotated\[([\w.]+), PlainValidator\(func=<function .*? at 0x\w+>, \w+=[\w.]+\)\]"
    )
    text = re.sub(validator, r"\1", text)
    text = re.sub(r"<function (\w+) at 0x\w+>", r"\1", text)
    text = re.sub(r"Generation\(.*?\)(?=, \w+:)", "GREEDY", text)
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", text)


def section(title: str, thing: Any, level: int) -> Iterator[str]:
    """Yield the lines of one class, method or function."""
    yield f"\n{'#' * level} {title}\n"
    if callable(thing):
        yield f"```python\n{title.rpartition('.')[2]}{signature(thing)}\n```\n"
    yield inspect.cleandoc(inspect.getdoc(thing) or "")


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that a class of this project defines, in the order of its source."""
    for name, thing in vars(kind).items():
        function = getattr(thing, "__func__", thing)
        if not name.startswith("_") and (inspect.isfunction(function) or isinstance(thing, property)):
            yield name, function


def page() -> str:
    """Return the text of the page."""
    names = [name for name in steermoe.__all__ if not name.startswith("_")]
    lines = [HEAD.format(names=", ".join(names))]
    for name in names:
        thing = getattr(steermoe, name)
        lines += section(name, thing, 2)
        for method, function in members(thing) if inspect.isclass(thing) else ():
            lines += section(f"{name}.{method}", function, 3)
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    if parser.parse_args().check:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
