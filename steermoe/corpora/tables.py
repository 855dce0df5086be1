"""Tables that list recordings: csv, tsv, jsonl, json and parquet files, read a row at a time."""

import csv
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from steermoe.corpora import columns as col
from steermoe.corpora.archives import ArchiveError
from steermoe.data.text import TextError, not_utf8, read_text

Row = tuple[int, dict[str, Any]]  # number of the line (of the row, in parquet and json, from 1), and values


def read_table(
    path: Path, columns: Sequence[str], quoted: bool = True, known: Collection[str] = ()
) -> Iterator[Row]:
    """The rows of a table, of the kind that its suffix says; rows of a csv or tsv without any value are skipped.

    Args:
        columns: those that must be there.
        quoted: whether a tsv quotes values as a csv does.
        known: all columns that are read, if others are to be looked at: one that resembles a known one is refused,
            the others are listed on standard error.

    Raises:
        ArchiveError: the file is not there, is no such table, lacks columns or has one twice.
    """
    if path.suffix not in READERS:
        raise ArchiveError(f"{path}: found a file of kind {path.suffix!r}, legal: {', '.join(READERS)}")
    if not path.is_file():
        raise ArchiveError(f"{path}: no such table")
    seen: set[tuple[str, ...]] = set()
    ignored: dict[str, None] = {}
    try:
        for number, row in READERS[path.suffix](path, quoted):
            if known and (names := tuple(row)) not in seen:
                seen.add(names)
                ignored |= dict.fromkeys(col.ignored(names, known, f"{path}, line {number}"))
            if missing := [name for name in columns if name not in row]:
                raise ArchiveError(
                    f"{path}, line {number}: no column {missing[0]!r}; found: {', '.join(map(str, row))}"
                )
            yield number, row
    except UnicodeDecodeError as error:
        raise ArchiveError(f"{path}, {_not_utf8(path)}") from error
    if ignored:
        print(f"{path}: columns that are not read: {', '.join(map(repr, ignored))}", file=sys.stderr)


def read_columns(path: Path, names: Sequence[str]) -> Iterator[Row]:
    """The rows of a tsv without a header and without quotes, whose columns are `names`.

    Raises:
        ArchiveError: as `read_table`; a line has another number of columns.
    """
    if not path.is_file():
        raise ArchiveError(f"{path}: no such table")
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                values = line.rstrip("\n").split("\t")
                if len(values) != len(names):
                    raise ArchiveError(
                        f"{path}, line {number}: found {len(values)} columns, expected {len(names)}: "
                        f"{', '.join(names)}"
                    )
                yield number, dict(zip(names, values, strict=True))
    except UnicodeDecodeError as error:
        raise ArchiveError(f"{path}, {_not_utf8(path)}") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file and their numbers, from 1.

    Raises:
        ArchiveError: it is not in UTF-8.
    """
    try:
        lines = read_text(path).split("\n")
    except TextError as error:
        raise ArchiveError(str(error)) from error
    yield from enumerate((line.removesuffix("\r") for line in lines[: len(lines) - (not lines[-1])]), 1)


def _not_utf8(path: Path) -> str:
    """Line and byte of a file that is not in UTF-8."""
    with path.open("rb") as file:
        start = file.read(2)
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return (
                    f"line {number}: not a readable {path.suffix} table: {not_utf8(start, line[error.start])}"
                )
    return "last line: it ends within a character"


def _separated(path: Path, quoted: bool) -> Iterator[Row]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    header: list[str] = []
    with path.open(encoding="utf-8-sig", newline="") as file:  # -sig: some begin with a byte order mark
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        while True:
            number = reader.line_num + 1  # where the row begins; it may have line breaks in it
            try:
                values = next(reader, None)
            except csv.Error as error:
                raise ArchiveError(
                    f"{path}, line {number}: not a readable {path.suffix} table ({error})"
                ) from error
            if values is None:
                return
            if not any(value.strip() for value in values):
                continue
            if not header:
                header = col.named(values, f"{path}, line {number}")
                continue
            if len(values) != len(header):
                raise ArchiveError(
                    f"{path}, line {number}: found {len(values)} values, expected {len(header)}: "
                    f"{', '.join(header)}"
                )
            yield number, dict(zip(header, values, strict=True))


def _json_lines(path: Path, quoted: bool) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _object(path, number, _loaded(line, path, number))


def _json(path: Path, quoted: bool) -> Iterator[Row]:
    found = _loaded(path.read_text(encoding="utf-8-sig"), path)
    if not isinstance(found, list):
        raise ArchiveError(f"{path}: found {type(found).__name__}, expected a list of objects")
    for number, row in enumerate(found, 1):
        yield number, _object(path, number, row)


def _loaded(text: str, path: Path, number: int | None = None) -> Any:
    """The value of a JSON text, the `number`-th line of the file or all of it; no object has a name twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = col.named((name for name, _ in pairs), f"{path}, line {number}" if number else str(path))
        return dict(zip(names, (value for _, value in pairs), strict=True))

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ArchiveError(
            f"{path}, line {number or error.lineno}: not a readable {path.suffix} table ({error.msg}, character "
            f"{error.colno})"
        ) from error


def _object(path: Path, number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ArchiveError(f"{path}, line {number}: found {row!r:.80}, expected an object with columns")
    return row


def _parquet(path: Path, quoted: bool) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = col.named(file.schema_arrow.names, str(path))
            number = 0
            for batch in file.iter_batches(batch_size=256):
                for row in batch.rename_columns(names).to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowInvalid, OSError) as error:
        raise ArchiveError(f"{path}: not a parquet file, or damaged ({error!s:.200})") from error


READERS = {
    ".csv": _separated,
    ".tsv": _separated,
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
}
