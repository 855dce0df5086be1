"""Tables that list recordings: csv, tsv, jsonl, json and parquet files, read a row at a time."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from steermoe.corpora.archives import ArchiveError

Row = tuple[int, dict[str, Any]]  # number of the line (of the row, in parquet and json, from 1), and values


def read_table(path: Path, columns: Sequence[str], quoted: bool = True) -> Iterator[Row]:
    """The rows of a table, of the kind that its suffix says.

    Args:
        columns: those that must be there.
        quoted: whether a tsv quotes values as a csv does.

    Raises:
        ArchiveError: the file is not there, is no such table, or lacks columns.
    """
    if path.suffix not in READERS:
        raise ArchiveError(f"{path}: found a file of kind {path.suffix!r}, legal: {', '.join(READERS)}")
    if not path.is_file():
        raise ArchiveError(f"{path}: no such table")
    try:
        for number, row in READERS[path.suffix](path, quoted):
            if missing := [name for name in columns if name not in row]:
                raise ArchiveError(
                    f"{path}, line {number}: no column {missing[0]!r}; found: {', '.join(map(str, row))}"
                )
            yield number, row
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise ArchiveError(f"{path}: not a readable {path.suffix} table ({error})") from error


def read_columns(path: Path, names: Sequence[str]) -> Iterator[Row]:
    """The rows of a tsv without a header and without quotes, whose columns are `names`.

    Raises:
        ArchiveError: as `read_table`; a line has another number of columns.
    """
    if not path.is_file():
        raise ArchiveError(f"{path}: no such table")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            values = line.rstrip("\n").split("\t")
            if len(values) != len(names):
                raise ArchiveError(
                    f"{path}, line {number}: found {len(values)} columns, expected {len(names)}: "
                    f"{', '.join(names)}"
                )
            yield number, dict(zip(names, values, strict=True))


def _separated(path: Path, quoted: bool) -> Iterator[Row]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    with path.open(encoding="utf-8-sig", newline="") as file:  # -sig: some begin with a byte order mark
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        header = next(reader, [])
        for values in reader:
            if len(values) != len(header):
                raise ArchiveError(
                    f"{path}, line {reader.line_num}: found {len(values)} values, expected {len(header)}: "
                    f"{', '.join(header)}"
                )
            yield reader.line_num, dict(zip(header, values, strict=True))


def _json_lines(path: Path, quoted: bool) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _object(path, number, json.loads(line))


def _json(path: Path, quoted: bool) -> Iterator[Row]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, list):
        raise ArchiveError(f"{path}: found {type(found).__name__}, expected a list of objects")
    for number, row in enumerate(found, 1):
        yield number, _object(path, number, row)


def _object(path: Path, number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ArchiveError(f"{path}, line {number}: found {row!r:.80}, expected an object with columns")
    return row


def _parquet(path: Path, quoted: bool) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowInvalid as error:
        raise ArchiveError(f"{path}: not a parquet file, or damaged ({error})") from error


READERS = {
    ".csv": _separated,
    ".tsv": _separated,
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
}
