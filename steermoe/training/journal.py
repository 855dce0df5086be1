"""What is to be logged, on disk before it is sent: a tracking server that is away loses nothing.

A journal is a folder of `.runs/tracking/`, one a process that logs; names sort by the time of their beginning.

<journal>/entries.jsonl  an entry a line: {"do": what, ...}
<journal>/position.json  how many entries have been sent, and the run that the next one belongs to
<journal>/files/         copies of the files that entries name, for what the originals become is not known

Whoever writes or sends a journal holds it (flock: the kernel frees it, however its holder dies). One without a
holder was left by a process that ended too early, or when the server was away: who comes next sends it.
"""

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from steermoe.atomic_io import write_text

Entry = dict[str, Any]
ENTRIES, POSITION, FILES = "entries.jsonl", "position.json", "files"


@dataclass
class Position:
    """How far a journal has been sent, the run that its next entry belongs to, and whether it is to close that."""

    sent: int = 0
    run: str | None = None
    made: bool = False


class Journal:
    """One process' entries, held by this process; see `begin` and `left_behind`."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder, self._descriptor = folder, descriptor
        self._change = threading.Lock()
        self._entries: list[Entry] = []
        path = folder / ENTRIES
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            self._entries = [entry for line in lines if (entry := _whole(line)) is not None]
        path = folder / POSITION
        self.position = Position(**json.loads(path.read_text())) if path.exists() else Position()

    @classmethod
    def begin(cls, parent: Path) -> Self:
        """A new journal in the folder `parent`."""
        folder = parent / f"{time.time_ns():020d}-{os.getpid()}"
        folder.mkdir(parents=True)
        descriptor = _hold(folder)
        assert descriptor is not None, "a folder of that name is this process' own"
        return cls(folder, descriptor)

    @classmethod
    def left_behind(cls, parent: Path) -> Iterator[Self]:
        """The journals that nobody holds, oldest first; each is held until it is removed or closed."""
        for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
            descriptor = _hold(folder) if folder.is_dir() else None
            if descriptor is not None:
                yield cls(folder, descriptor)

    def append(self, entry: Entry) -> None:
        """Write an entry down."""
        with self._change:
            with (self.folder / ENTRIES).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            self._entries.append(entry)

    def keep(self, path: Path, names: Sequence[str] | None = None) -> str:
        """Copy a file, or a folder (of it the files `names`), for an entry; the copy's place in the journal."""
        with self._change:
            place = self.folder / FILES / f"{len(self._entries)}-{time.time_ns()}" / path.name
        place.parent.mkdir(parents=True)
        if path.is_file():
            shutil.copy(path, place)
        elif names is None:
            shutil.copytree(path, place)
        else:
            place.mkdir()
            for name in names:
                shutil.copy(path / name, place)
        return place.relative_to(self.folder).as_posix()

    def pending(self) -> list[Entry]:
        """What has not been sent, in order."""
        with self._change:
            return self._entries[self.position.sent :]

    def advance(self, entries: list[Entry]) -> None:
        """Note that the next entries, `entries`, have been sent."""
        self.position.sent += len(entries)
        write_text(self.folder / POSITION, json.dumps(asdict(self.position)))
        for entry in entries:
            if "file" in entry:
                shutil.rmtree((self.folder / entry["file"]).parent, ignore_errors=True)

    def close(self, remove: bool) -> None:
        """Let go of the folder, for another process to find or removed as a whole."""
        if remove:
            shutil.rmtree(self.folder)
        os.close(self._descriptor)


def _whole(line: str) -> Entry | None:
    """The entry of a line; None of half a line, as a kill leaves it at the end, or of what a power cut made of it."""
    with suppress(json.JSONDecodeError):
        entry = json.loads(line) if line.endswith("\n") else None
        return entry if isinstance(entry, dict) else None
    return None


def _hold(folder: Path) -> int | None:
    """A descriptor that locks the folder; None where another process does, or has just removed it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    if folder.exists():
        return descriptor
    os.close(descriptor)
    return None
