"""What tells a changed file from the same file: its content; of a large one, its size and time.

`dvc repro` watches files outside the repository by `glance`, which reads none of them. What a corpus uses as it lies
is noted by content when it is listed, and compared when it is preprocessed, so that two states are never mixed. A
digest is remembered under `.runs/` with the size and the times of its file, which is read again only if these differ.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from steermoe.atomic_io import project_root, write_text

LARGEST = 2**26  # bytes of a file whose content is compared: recordings, tables, configurations
THREADS = 8  # files at a time: hashing leaves Python's lock
SETTLED = 2 * 10**9  # nanoseconds after which a write can no longer leave the times of a file as they are
NOTE = "files.json"


class ChangedError(ValueError):
    """Files are not what they were when a corpus was listed."""


def files_in(place: Path) -> Iterator[str]:
    """Names of the files in a folder, through links, in order; "" of a file; none where there is nothing."""
    if place.is_file():
        yield ""
    seen = set()
    for folder, folders, files in os.walk(place, followlinks=True):
        folders[:] = sorted(folders) if (real := os.path.realpath(folder)) not in seen else []
        inside = [] if real in seen else sorted(files)
        seen.add(real)
        yield from (Path(folder, name).relative_to(place).as_posix() for name in inside)


def glance(place: Path) -> dict[str, str]:
    """Size and time of every file of a folder, or of a file, by name."""
    return {name: found for name in files_in(place) if (found := _glanced(place / name))}


def digests(place: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """Content of files, as a digest; size and time of one that is over LARGEST.

    Args:
        place: a folder, or a file, whose name is "".
        names: of the files in it; None: all.

    Returns:
        by name; without those that are not there.
    """
    memory = (
        project_root()
        / ".runs"
        / "files"
        / f"{hashlib.sha256(str(place.resolve()).encode()).hexdigest()}.json"
    )
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    now = time.time_ns()
    found: dict[str, str] = {}
    remembered: dict[str, list] = {}

    def look(name: str) -> None:
        path = place / name
        try:
            status = path.stat()
            times = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            if status.st_size > LARGEST:
                digest = _glanced(path)
            elif (before := known.get(name)) and before[1:] == times:
                digest = before[0]
            else:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
        except OSError:
            return
        found[name] = digest
        if status.st_ctime_ns < now - SETTLED:
            remembered[name] = [digest, *times]

    listed = list(files_in(place) if names is None else names)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(look, listed))
    if any(known.get(name) != entry for name, entry in remembered.items()):
        write_text(memory, json.dumps(known | remembered))
    return {name: found[name] for name in listed if name in found}


def note(fetched: Path, places: Mapping[Path, Iterable[str] | None]) -> None:
    """Note beside a fetched corpus the files that it uses as they lie: of each folder (or file), all or some."""
    state = {str(place): digests(place, names) for place, names in places.items()}
    if state:
        write_text(fetched / NOTE, json.dumps(state, indent=0, ensure_ascii=False) + "\n")


def check(fetched: Path) -> None:
    """Compare the files that a fetched corpus uses as they lie with what was noted of them.

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


def _glanced(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:  # a dangling link, or deleted meanwhile
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"
