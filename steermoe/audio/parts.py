"""Where the recordings in a file begin and end, by the file's structure; nothing is decoded.

`cat a.ogg b.ogg`, radio streams and the like put several recordings into one file. Decoders end with the first, so
each is decoded by itself. Sizes are compared with the data here, for all formats alike: data that end before the size
that a header promises were cut off, and a size that says 0 or the largest number promises nothing.
"""

import io
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from steermoe.audio.base import AudioError

log = logging.getLogger(__name__)
UNKNOWN = 0x7FFF0000  # 32-bit sizes from here on are what writers to a pipe put down, when they pass the end
TAGS = 2**16  # bytes behind a recording that are taken for tags
STREAMINFO = b"fLaC\0\0\0\x22"  # starts a FLAC file
EBML, SEGMENT, CLUSTER = b"\x1aE\xdf\xa3", b"\x18S\x80g", b"\x1fC\xb6u"
SEARCHED = 2**20  # bytes read at a time in a search
BOXES = b"ftyp moov mdat wide free skip pnot styp".split()


@dataclass(frozen=True)
class Part:
    """A recording in a file.

    Attributes:
        start, stop: its first byte, and the one behind its last.
        simple: it is WAV, AIFF or FLAC, and its header tells its length.
    """

    start: int
    stop: int
    simple: bool = False


class _Cut(Exception):
    """The file ends before the size that a header promises."""

    def __init__(self, promised: int) -> None:
        super().__init__()
        self.promised = promised


class View(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: BinaryIO, part: Part) -> None:
        super().__init__()
        self._file, self._part, self._place = file, part, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place in the part."""
        base = (0, self._place, self._part.stop - self._part.start)[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read from the place on, no further than the part."""
        start = self._part.start + self._place
        self._file.seek(start)
        data = self._file.read(max(0, min(len(buffer), self._part.stop - start)))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def parts(file: BinaryIO, name: str) -> list[Part]:
    """The recordings in a file, at least one.

    Args:
        file: can be sought in.
        name: what it is called in messages.

    Raises:
        AudioError: the file is empty, or ends before the size that a header promises.
    """
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise AudioError(f"{name}: empty, 0 bytes")
    place = _behind_tags(file)
    find = _finder(_at(file, place, 12)) or _others
    try:
        found = list(find(file, place, size))
    except _Cut as cut:
        raise AudioError(f"{name}: truncated audio, {size} of {cut.promised} bytes are there") from None
    if (left := size - found[-1].stop) > TAGS:
        log.warning("%s: %d bytes behind the audio are not read; its header does not count them", name, left)
    return found


def _finder(start: bytes) -> Callable[[BinaryIO, int, int], Iterator[Part]] | None:
    """The function that finds the parts of a file that begins so; None: it is one part, whatever it is."""
    if start[:4] in (b"RIFF", b"RF64") and start[8:12] == b"WAVE":
        return _waves
    if start[:4] == b"FORM" and start[8:11] == b"AIF":
        return _aiffs
    if start[:8] == STREAMINFO:
        return _flacs
    if start[:4] == b"OggS":
        return _oggs
    if start[:4] == EBML:
        return _matroskas
    if start[:4] in (b"riff", b"caff"):
        return _w64s if start[:4] == b"riff" else _cafs
    return _mp4s if start[4:8] in BOXES else None


def _at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _number(file: BinaryIO, place: int, count: int, order: Literal["little", "big"]) -> int:
    return int.from_bytes(_at(file, place, count), order)


def _behind_tags(file: BinaryIO, place: int = 0) -> int:
    """The first byte behind ID3v2 tags, of which there may be several; their size has 7 bits a byte."""
    while (head := _at(file, place, 10)).startswith(b"ID3") and len(head) == 10:
        place += 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    return place


def _search(file: BinaryIO, wanted: bytes, place: int, size: int) -> int:
    """Where the bytes are next, from `place` on; `size` if nowhere."""
    while place < size:
        data = _at(file, place, SEARCHED + len(wanted) - 1)
        if (at := data.find(wanted)) >= 0:
            return place + at
        place += SEARCHED
    return size


def _waves(file: BinaryIO, place: int, size: int) -> Iterator[Part]:
    while _finder(_at(file, place, 12)) is _waves:
        stop, sized = _wave(file, place, size)
        yield Part(place, stop, sized)
        place = stop


def _wave(file: BinaryIO, start: int, size: int) -> tuple[int, bool]:
    """Where a WAV file ends, and whether its header says so."""
    place, large = start + 12, 0
    while (head := _at(file, place, 8)) and len(head) == 8:
        name, count = head[:4], int.from_bytes(head[4:], "little")
        if name == b"ds64":
            large = _number(file, place + 16, 8, "little")
        if name == b"data":
            break
        place += 8 + count + count % 2
    else:
        return size, True  # without audio, which the decoder says
    count = large if count == 0xFFFFFFFF and large else count
    begin, end = place + 8, place + 8 + count
    if (end > size and UNKNOWN <= count < 2**32) or (count == 0 and not _only_chunks(file, begin, size)):
        return size, False
    if end > size:
        raise _Cut(end)
    riff = start + 8 + _number(file, start + 4, 4, "little")
    return (min(riff + riff % 2, size) if riff >= end else end + count % 2), True


def _only_chunks(file: BinaryIO, place: int, size: int) -> bool:
    """Whether all from here on, if anything, is chunks (tags) of a WAV file, or another WAV file."""
    while place + 8 <= size:
        head = _at(file, place, 8)
        if not head[:4].isalnum() and not head[:4].strip().isalnum():
            return False
        count = int.from_bytes(head[4:], "little")
        place += 8 + count + count % 2
    return place in (size, size + 1)


def _aiffs(file: BinaryIO, place: int, size: int) -> Iterator[Part]:
    while _finder(_at(file, place, 12)) is _aiffs:
        count = _number(file, place + 4, 4, "big")
        stop = place + 8 + count + count % 2
        unknown = count == 0 or (stop > size and count >= UNKNOWN)
        if stop - count % 2 > size and not unknown:
            raise _Cut(stop)
        yield Part(place, size if unknown else min(stop, size), simple=True)
        place = size if unknown else stop


def _w64s(file: BinaryIO, place: int, size: int) -> Iterator[Part]:
    while _at(file, place, 4) == b"riff":
        stop = place + _number(file, place + 16, 8, "little")
        if stop > size or stop <= place:
            raise _Cut(stop)
        yield Part(place, stop)
        place = stop


def _cafs(file: BinaryIO, start: int, size: int) -> Iterator[Part]:
    """CAF files are chunks after 8 bytes; the audio's may go to the end, and then its size is -1."""
    place = start + 8
    while place + 12 <= size and (name := _at(file, place, 4)) != b"caff" and name.strip().isalnum():
        count = _number(file, place + 4, 8, "big")
        place = size if count == 2**64 - 1 else place + 12 + count
    if place > size:
        raise _Cut(place)
    yield Part(start, place)
    if _at(file, place, 4) == b"caff":
        yield from _cafs(file, place, size)


def _flacs(file: BinaryIO, place: int, size: int) -> Iterator[Part]:
    while place < size:
        samples = _number(file, place + 18, 8, "big") & (2**36 - 1)  # by STREAMINFO; 0 is unknown
        stop = _search(file, STREAMINFO, place + 8, size)
        yield Part(place, stop, samples > 0)
        place = stop


def _oggs(file: BinaryIO, place: int, size: int) -> Iterator[Part]:
    """Links of a chain: each starts with pages that are the first of their stream."""
    start, first = place, True
    while place < size:
        head = _at(file, place, 27 + 255)
        if not head.startswith(b"OggS"):
            place = _search(file, b"OggS", place + 1, size)
            continue
        lacing = head[27 : 27 + head[26]] if len(head) > 26 else b""
        if len(head) < 27 or len(lacing) < head[26] or place + 27 + len(lacing) + sum(lacing) > size:
            raise _Cut(place + 27 + len(lacing) + sum(lacing))
        beginning = bool(head[5] & 2)
        if beginning and not first:
            yield Part(start, place)
            start = place
        first = beginning
        place += 27 + len(lacing) + sum(lacing)
    yield Part(start, size)


def _mp4s(file: BinaryIO, place: int, size: int) -> Iterator[Part]:
    start = place
    while place + 8 <= size:
        head = _at(file, place, 16)
        count, name = int.from_bytes(head[:4], "big"), head[4:8]
        if not name.isascii():
            break
        if name == b"ftyp" and place > start:
            yield Part(start, place)
            start = place
        count = int.from_bytes(head[8:16], "big") if count == 1 else count
        if count == 0:  # to the end
            break
        if count < 8 or not name.strip().isalnum():
            break  # no box: something behind the file
        if place + count > size:
            raise _Cut(place + count)
        place += count
    yield Part(start, size)


def _matroskas(file: BinaryIO, place: int, size: int) -> Iterator[Part]:
    """Elements of a size each; segments and clusters that were written to a pipe have none, and are entered."""
    start, inside = place, False
    while place < size:
        head = _at(file, place, 12)
        width = 9 - head[0].bit_length()
        name, count, more = head[:width], *_ebml_size(head[width:])
        if not (inside or name in (EBML, SEGMENT)) or (count is None and name not in (SEGMENT, CLUSTER)):
            break  # something behind the file
        if name == EBML and place > start:
            yield Part(start, place)
            start = place
        inside = count is None if name in (EBML, SEGMENT) else inside
        place += width + more + (count or 0)
    if place > size:
        raise _Cut(place)
    yield Part(start, size)


def _ebml_size(data: bytes) -> tuple[int | None, int]:
    """A size (None: unknown), and how many bytes it is written in."""
    width = 9 - data[0].bit_length() if data and data[0] else 1
    value = int.from_bytes(data[:width], "big") & (1 << 7 * width) - 1
    return (None if value == (1 << 7 * width) - 1 else value), width


def _others(file: BinaryIO, place: int, size: int) -> Iterator[Part]:
    """One part; an MP3 file may tell in its first frame how many bytes it has (Xing, Info or VBRI)."""
    yield Part(place, size)
    start = _at(file, place, 256)
    if start[:1] != b"\xff":
        return
    at = max(start.find(b"Xing"), start.find(b"Info"))
    if at >= 0 and start[at + 7] & 2:
        begin = at + 8 + 4 * (start[at + 7] & 1)
    elif (at := start.find(b"VBRI")) >= 0:
        begin = at + 10
    else:
        return
    promised = int.from_bytes(start[begin : begin + 4], "big")
    if place + promised > size:
        raise _Cut(place + promised)
