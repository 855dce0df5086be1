"""Recordings of shards as stretches of the mapped files: of a thousand hours, no more is in memory than is looked at.

A parquet page of required byte strings that are neither compressed nor encoded is, one after another, length
(4 bytes, little endian) and bytes (parquet-format, Encodings.md, PLAIN). `ShardWriter` writes one such page a
row group. So every value can be a view (Arrow's BinaryView: length, first 4 bytes, buffer, offset) of the file.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

VIEW = np.dtype([("length", "<i4"), ("prefix", "S4"), ("buffer", "<i4"), ("offset", "<i4")])
LONGEST_INLINE = (
    12  # bytes: shorter values would have to lie in the view itself; no FLAC and no PNG is so short
)


class LayoutError(ValueError):
    """A recording of a shard does not lie in the file as it must to be mapped."""


def mapped_column(paths: Sequence[Path], column: str) -> pl.Series:
    """A column of recordings of shards, one after another: Binary, its bytes on disk until they are asked for.

    Taking rows, filtering and concatenating copies no recording. A shard that is replaced by another file stays
    as it was for as long as the series lives.

    Raises:
        LayoutError: a shard was not written by `ShardWriter`.
    """
    views, buffers = [], []
    for number, path in enumerate(paths):
        with pa.memory_map(str(path)) as file:
            buffer = file.read_buffer()
        found = _views(path, memoryview(buffer).cast("B"), column)
        found["buffer"] = number
        views.append(found)
        buffers.append(buffer)
    table = np.concatenate([np.empty(0, VIEW), *views])
    array = pa.Array.from_buffers(pa.binary_view(), len(table), [None, pa.py_buffer(table), *buffers])
    return pl.Series(column, array, dtype=pl.Binary)


def _views(path: Path, data: memoryview, name: str) -> np.ndarray:
    metadata = pq.read_metadata(path)
    columns = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    column = columns.index(name)
    places: list[tuple[int, int]] = []
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(column)
        required = metadata.schema.column(column).max_definition_level == 0
        if not required or chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
            raise LayoutError(f"{path}: row group {group}: {name} that is compressed, encoded or may be null")
        start = chunk.data_page_offset
        end = start + chunk.total_compressed_size
        found = _values(data, end - _page_bytes(path, data, start), end)
        if len(found) != metadata.row_group(group).num_rows:
            raise LayoutError(f"{path}: row group {group}: {name} in more than one page, or damaged")
        places += found
    views = np.zeros(len(places), VIEW)
    views["offset"] = [offset for offset, _ in places]
    views["length"] = [length for _, length in places]
    views["prefix"] = [bytes(data[offset : offset + 4]) for offset, _ in places]
    return views


def _values(data: memoryview, start: int, end: int) -> list[tuple[int, int]]:
    """Offset and length of every value of a page; none where they do not fill it."""
    places, place = [], start
    while place + 4 <= end:
        length = int.from_bytes(data[place : place + 4], "little")
        if length <= LONGEST_INLINE:
            return []
        places.append((place + 4, length))
        place += 4 + length
    return places if place == end else []


def _page_bytes(path: Path, data: memoryview, start: int) -> int:
    """Size of the page whose header is at `start`, without the header.

    The header is in Thrift's compact protocol: fields 1 to 3 are type, size before and after compression,
    32-bit integers (0x15) as zigzag varints.
    """
    place, value = start, 0
    for _ in range(3):
        if data[place] != 0x15:
            raise LayoutError(f"{path}: byte {place}: no header of a data page")
        value, shift = 0, 0
        while True:
            place += 1
            value |= (data[place] & 0x7F) << shift
            shift += 7
            if data[place] < 0x80:
                break
        place += 1
    return value >> 1
