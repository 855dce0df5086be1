"""Looking up a row of a registry: a dict literal at the foot of a module."""

from collections.abc import Mapping
from typing import TypeVar

Row = TypeVar("Row")


def choose(rows: Mapping[str, Row], name: str, setting: str) -> Row:
    """The row called `name`.

    Args:
        rows: the registry.
        name: what the configuration says.
        setting: its dotted path, for the error.

    Raises:
        ValueError: there is no such row; the message lists the legal names.
    """
    if name not in rows:
        raise ValueError(f"{setting}: found {name!r}, must be one of: {', '.join(sorted(rows))}")
    return rows[name]
