"""Notice changes of files outside the repository: by their content; large files by size and time.

`dvc repro` compares such files by `glance`, which reads none of them. The files that a corpus uses in place are noted
by content when it is listed and compared when it is preprocessed, so that two states are never mixed.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from steermoe.atomic_io import write_text

LARGEST = 2**26  # bytes of a file whose content is compared: recordings, tables, configurations
THREADS = 8  # files hashed at a time
NOTE = "files.json"


class ChangedError(ValueError):
    """Files have changed since their corpus was listed."""


def files_in(place: Path) -> Iterator[str]:
    """Yield the names of all files in a folder, in order, links followed; "" for a file."""
    if place.is_file():
        yield ""
    seen = set()
    for folder, folders, files in os.walk(place, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # links in a circle
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(folder, name).relative_to(place).as_posix() for name in sorted(files))


def glance(place: Path) -> dict[str, str]:
    """Return size and time of every file in a folder (or of one file), by name."""
    return {name: found for name in files_in(place) if (found := _size_and_time(place / name))}


def digests(place: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """Return a digest of each file's content; size and time of files over LARGEST.

    Args:
        place: a folder, or a file, whose name is "".
        names: of files in it; None: all.

    Returns:
        by name; without missing files.
    """
    names = list(files_in(place) if names is None else names)
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: _digest(place / name), names)
        return {name: digest for name, digest in zip(names, found, strict=True) if digest}


def note(fetched: Path, places: Mapping[Path, Iterable[str] | None]) -> None:
    """Write the state of files that a corpus uses in place to its folder: some or all files of each place."""
    state = {str(place): digests(place, names) for place, names in places.items()}
    if state:
        write_text(fetched / NOTE, json.dumps(state, indent=0, ensure_ascii=False) + "\n")


def check(fetched: Path) -> None:
    """Compare the files that a corpus uses in place with their noted state.

    Raises:
        ChangedError: some are gone or changed.
    """
    file = fetched / NOTE
    noted = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    faults = []
    for place, before in noted.items():
        now = digests(Path(place), before)
        faults += [
            f"{Path(place) / name} {'was changed' if name in now else 'is gone'}"
            for name, digest in before.items()
            if now.get(name) != digest
        ]
    if faults:
        others = f", and {len(faults) - 1} others" if len(faults) > 1 else ""
        raise ChangedError(
            f"{faults[0]}{others}, since the corpus was listed in {fetched}: texts and recordings may no longer "
            "belong together. Nothing was written; `make repro` (or `dvc repro`) lists the corpus again"
        )


def _digest(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            return _size_and_time(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError:  # a dangling link, or deleted meanwhile
        return ""


def _size_and_time(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"
