"""Columns of tables: their names, and what a cell says."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from steermoe.corpora.archives import ArchiveError
from steermoe.data.text import TextError, clean

WRITTEN = ("nan", "NaN", "NaT", "<NA>")  # what pandas writes for a missing value, as text
ALIASES = {  # without case, spaces, - and _
    "audio": (
        "file",
        "filename",
        "filepath",
        "audiofile",
        "audiopath",
        "audiofilepath",
        "wav",
        "wavpath",
        "recording",
    ),
    "text": ("sentence", "label", "target", "answer", "caption", "reference"),
    "question": ("query", "prompt", "instruction"),
    "transcript": ("transcription",),
    "language": ("lang", "langid", "languagecode", "locale"),
    "speaker": ("spk", "spkid", "spkr", "speakerid", "speakername", "clientid"),
    "split": ("subset", "partition"),
    "id": ("uid", "uttid", "utterance", "utteranceid", "sourceid"),
}
SAME = {"path": "audio"}  # columns that say the same


def named(names: Iterable[str], place: str) -> list[str]:
    """The names of a table's columns, cleaned.

    Raises:
        ArchiveError: two are the same, or one is no text.
    """
    try:
        found = [clean(name) for name in names]
    except TextError as error:
        raise ArchiveError(f"{place}: {error}") from error
    if twice := [name for name in dict.fromkeys(found) if found.count(name) > 1]:
        raise ArchiveError(f"{place}: column {twice[0]!r} is there {found.count(twice[0])} times; keep one")
    return found


def ignored(names: Collection[str], known: Collection[str], place: str) -> list[str]:
    """The columns that are not known.

    Raises:
        ArchiveError: one looks like a known column that is not there, or differs from a known one by case or spaces.
    """
    unknown = [name for name in names if name not in known]
    there = {SAME.get(name, name) for name in names if name in known}
    for name in unknown:
        meant = [legal for legal in known if _key(name) == _key(legal)]
        meant += [
            legal for legal in known if SAME.get(legal, legal) not in there and _similar(_key(name), legal)
        ]
        if meant:
            raise ArchiveError(
                f"{place}: unknown column {name!r}; is it {meant[0]!r}? Rename it, or take it out. Known columns: "
                f"{', '.join(known)}"
            )
    return unknown


def _key(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "").replace(" ", "")


def _similar(key: str, legal: str) -> bool:
    """Whether a name is another one for `legal`, or a misspelling: one edit, of long names two."""
    allowed = 0 if len(legal) < 4 else 1 if len(legal) < 6 else 2
    return key in ALIASES.get(legal, ()) or _edits(key, legal) <= allowed


def _edits(one: str, other: str) -> int:
    """Insertions, deletions, replacements and swaps of neighbours that make `other` of `one`."""
    table = [list(range(len(other) + 1))]
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            row.append(min(row[-1] + 1, table[-1][j] + 1, table[-1][j - 1] + (a != b)))
            if i > 1 and j > 1 and (a, one[i - 2]) == (other[j - 2], b):
                row[-1] = min(row[-1], table[-2][j - 2] + 1)
        table.append(row)
    return table[-1][-1]


def text(row: Mapping[str, Any], column: str, place: str) -> str:
    """The text of a cell, cleaned; "" where the cell is missing (no such column, null, NaN, or empty).

    Raises:
        ArchiveError: the cell holds no text, but a number, a list, or the like.
    """
    value = row.get(column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        raise ArchiveError(f"{place}: column {column!r}: found {_short(value)}, expected text")
    try:
        return clean(value)
    except TextError as error:
        raise ArchiveError(f"{place}: column {column!r}: {error}") from error


def optional(row: Mapping[str, Any], column: str, place: str) -> str:
    """As `text`; what pandas writes for a missing value is missing, too."""
    found = text(row, column, place)
    return "" if found in (*WRITTEN, "None") else found


def path(row: Mapping[str, Any], column: str, place: str) -> str:
    """As `text` of a path, which stays as it is but for space around it: names of files may be spelt in any way."""
    return str(row[column]).strip() if text(row, column, place) else ""


def identifier(row: Mapping[str, Any], column: str, place: str) -> str:
    """As `text`, where the cell may be a whole number, too."""
    value = row.get(column)
    return str(value) if type(value) is int else text(row, column, place)


def texts(row: Mapping[str, Any], column: str, place: str) -> list[str]:
    """The texts of a cell that holds a list; none where it is missing.

    Raises:
        ArchiveError: it holds something else.
    """
    value = row.get(column)
    if not isinstance(value, list | None):
        raise ArchiveError(f"{place}: column {column!r}: found {_short(value)}, expected a list of texts")
    return [text({column: item}, column, place) for item in value or ()]


def _short(value: object) -> str:
    return f"{value!r:.60} ({type(value).__name__})"
