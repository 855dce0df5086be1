"""Tables that list recordings: csv, tsv, jsonl, json and parquet files, read row by row, and the values of cells."""

import csv
import json
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from steermoe.corpora.archives import ArchiveError
from steermoe.data.text import TextError, clean, read_text

Row = tuple[int, dict[str, Any]]  # number of the line (of the row in parquet and json, from 1), and values
MISSING = ("nan", "NaN", "NaT", "<NA>")  # what pandas writes for a missing value, as text
ALIASES = {  # names without case, spaces, - and _
    "audio": "file filename filepath audiofile audiopath audiofilepath wav wavpath recording".split(),
    "text": "sentence label target answer caption reference".split(),
    "question": "query prompt instruction".split(),
    "transcript": ["transcription"],
    "language": "lang langid languagecode locale".split(),
    "speaker": "spk spkid spkr speakerid speakername clientid".split(),
    "split": "subset partition".split(),
    "id": "uid uttid utterance utteranceid sourceid".split(),
}
SAME = {"path": "audio"}  # columns with the same meaning
SIMILAR = 0.8  # similarity of a name to a known one, above which it is taken for a misspelling


def read_table(path: Path, columns: Sequence[str], known: Collection[str] = ()) -> Iterator[Row]:
    """Yield the rows of a table, whose kind is its suffix; empty rows of a csv or tsv are skipped.

    Args:
        path: the table.
        columns: those that must exist.
        known: all columns that are read. A column that resembles one of them is refused; others are reported on
            standard error. Without it, any column is allowed.

    Raises:
        ArchiveError: the file does not exist, is no such table, lacks columns or has one twice.
    """
    if path.suffix not in READERS:
        raise ArchiveError(f"{path}: found a file of kind {path.suffix!r}, legal: {', '.join(READERS)}")
    if not path.is_file():
        raise ArchiveError(f"{path}: no such table")
    seen: set[tuple[str, ...]] = set()
    ignored: dict[str, None] = {}
    for number, row in READERS[path.suffix](path):
        if known and (names := tuple(row)) not in seen:
            seen.add(names)
            ignored |= dict.fromkeys(_unknown(names, known, f"{path}, line {number}"))
        if missing := [name for name in columns if name not in row]:
            raise ArchiveError(
                f"{path}, line {number}: no column {missing[0]!r}; found: {', '.join(map(str, row))}"
            )
        yield number, row
    if ignored:
        print(f"{path}: columns that are not read: {', '.join(map(repr, ignored))}", file=sys.stderr)


def read_columns(path: Path, names: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a tsv without header and quotes, whose columns are `names`.

    Raises:
        ArchiveError: as `read_table`; a line has another number of columns.
    """
    for number, line in read_lines(path):
        yield number, _with_names(line.split("\t"), names, path, number)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file in UTF-8 with their numbers, from 1.

    Raises:
        ArchiveError: the file does not exist or is not in UTF-8.
    """
    if not path.is_file():
        raise ArchiveError(f"{path}: no such file")
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                yield number, line.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error


def text(row: Mapping[str, Any], column: str, place: str) -> str:
    """Return the cleaned text of a cell; "" where it is missing (no such column, null, NaN, or empty).

    Raises:
        ArchiveError: the cell holds no text, but a number, a list, or the like.
    """
    value = row.get(column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        raise _unexpected(value, column, place, "text")
    try:
        return clean(value)
    except TextError as error:
        raise ArchiveError(f"{place}: column {column!r}: {error}") from error


def optional(row: Mapping[str, Any], column: str, place: str) -> str:
    """Return as `text`; what pandas writes for a missing value is missing, too."""
    found = text(row, column, place)
    return "" if found in (*MISSING, "None") else found


def path_of(row: Mapping[str, Any], column: str, place: str) -> str:
    """Return the path in a cell, as it is but for space around it: file names may be spelt in any way."""
    return str(row[column]).strip() if text(row, column, place) else ""


def identifier(row: Mapping[str, Any], column: str, place: str) -> str:
    """Return as `text`; the cell may be a whole number, too."""
    value = row.get(column)
    return str(value) if type(value) is int else text(row, column, place)


def texts(row: Mapping[str, Any], column: str, place: str) -> list[str]:
    """Return the texts of a cell that holds a list; none where it is missing.

    Raises:
        ArchiveError: it holds something else.
    """
    value = row.get(column)
    if not isinstance(value, list | None):
        raise _unexpected(value, column, place, "a list of texts")
    return [text({column: item}, column, place) for item in value or ()]


def _unexpected(value: object, column: str, place: str, expected: str) -> ArchiveError:
    found = f"{value!r:.60} ({type(value).__name__})"
    return ArchiveError(f"{place}: column {column!r}: found {found}, expected {expected}")


def _unknown(names: Collection[str], known: Collection[str], place: str) -> list[str]:
    """Return the columns that are not known; raise where one seems to mean a known one."""
    unknown = [name for name in names if name not in known]
    present = {SAME.get(name, name) for name in names if name in known}
    for name in unknown:
        key = name.casefold().replace("_", "").replace("-", "").replace(" ", "")
        for legal in known:
            absent = SAME.get(legal, legal) not in present
            alike = len(legal) > 2 and SequenceMatcher(None, key, legal).ratio() >= SIMILAR
            if key == legal or (absent and (alike or key in ALIASES.get(legal, ()))):
                raise ArchiveError(
                    f"{place}: unknown column {name!r}; is it {legal!r}? Rename or remove it. Known columns: "
                    f"{', '.join(known)}"
                )
    return unknown


def _named(names: Iterable[str], place: str) -> list[str]:
    """Return the cleaned names of a table's columns, which must differ."""
    try:
        found = [clean(name) for name in names]
    except TextError as error:
        raise ArchiveError(f"{place}: {error}") from error
    if twice := [name for name in found if found.count(name) > 1]:
        raise ArchiveError(f"{place}: column {twice[0]!r} occurs {found.count(twice[0])} times; keep one")
    return found


def _with_names(values: Sequence[str], names: Sequence[str], path: Path, number: int) -> dict[str, str]:
    if len(values) != len(names):
        expected = f"{len(names)}: {', '.join(names)}"
        raise ArchiveError(f"{path}, line {number}: found {len(values)} columns, expected {expected}")
    return dict(zip(names, values, strict=True))


def _not_utf8(path: Path) -> ArchiveError:
    try:
        read_text(path)
    except TextError as error:
        return ArchiveError(str(error))
    return ArchiveError(f"{path}: not in UTF-8")


def _separated(path: Path) -> Iterator[Row]:
    header: list[str] = []
    with path.open(encoding="utf-8-sig", newline="") as file:  # -sig: some begin with a byte order mark
        reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        while True:
            number = reader.line_num + 1  # where the row begins; it may contain line breaks
            try:
                values = next(reader, None)
            except csv.Error as error:
                fault = f"not a readable {path.suffix} table ({error})"
                raise ArchiveError(f"{path}, line {number}: {fault}") from error
            except UnicodeDecodeError as error:
                raise _not_utf8(path) from error
            if values is None:
                return
            if not header and any(value.strip() for value in values):
                header = _named(values, f"{path}, line {number}")
            elif any(value.strip() for value in values):
                yield number, _with_names(values, header, path, number)


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in read_lines(path):
        if line.strip():
            yield number, _object(path, number, _loaded(line, path, number))


def _json(path: Path) -> Iterator[Row]:
    found = _loaded("\n".join(line for _, line in read_lines(path)), path)
    if not isinstance(found, list):
        raise ArchiveError(f"{path}: found {type(found).__name__}, expected a list of objects")
    for number, row in enumerate(found, 1):
        yield number, _object(path, number, row)


def _loaded(content: str, path: Path, number: int | None = None) -> Any:
    """Return the value of a JSON text, the `number`-th line of the file or all of it; no object has a name twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = _named((name for name, _ in pairs), f"{path}, line {number}" if number else str(path))
        return dict(zip(names, (value for _, value in pairs), strict=True))

    try:
        return json.loads(content, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        fault = f"not a readable {path.suffix} table ({error.msg}, character {error.colno})"
        raise ArchiveError(f"{path}, line {number or error.lineno}: {fault}") from error


def _object(path: Path, number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ArchiveError(f"{path}, line {number}: found {row!r:.80}, expected an object with columns")
    return row


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names, number = _named(file.schema_arrow.names, str(path)), 0
            for batch in file.iter_batches(batch_size=256):
                rows = batch.rename_columns(names).to_pylist()
                yield from enumerate(rows, number + 1)
                number += len(rows)
    except (pa.ArrowInvalid, OSError) as error:
        raise ArchiveError(f"{path}: not a parquet file, or damaged ({error!s:.200})") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _separated,
    ".tsv": _separated,
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
}
