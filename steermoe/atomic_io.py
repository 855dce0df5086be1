"""Write files whole or not at all, and keep work folders that survive a killed stage.

DVC deletes the outputs of a stage before it runs it. So a stage works in `.runs/` and moves its result into place at
the end: what a killed stage had finished is found again by the next run.
"""

import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

TEMPORARY = ".*.tmp"  # names of unfinished files


class StagingBusyError(RuntimeError):
    """Another process is writing the same output, or has just written it."""


def project_root() -> Path:
    """Return the folder that relative paths of the configuration start from: DVC's workspace or the current folder."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of `path`; rename it to `path` when the block ends without an error.

    Missing folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to write into, which gets its name at the end: it appears whole, or not at all.

    Raises:
        FileExistsError: the folder exists.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; name another folder, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary) / folder.name
        yield made
        made.rename(folder)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def tree_digest(folder: Path) -> str:
    """Return a SHA-256 of the names, sizes and modification times of all files in a folder."""
    lines = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        status = path.stat()
        lines.append(f"{path.relative_to(folder).as_posix()} {status.st_size} {status.st_mtime_ns}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def code_digest(*packages: str) -> str:
    """Return a SHA-256 of the Python files in `packages`, which are names of folders in steermoe/."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for package in packages for p in (root / package).rglob("*.py")):
        digest.update(
            f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode() + path.read_bytes()
        )
    return digest.hexdigest()


class Staging:
    """A work folder for the output folder `out`, which the next process with the same key finds again.

    Only one process at a time holds it: a second one says so and waits. Use it in a `with` block; after an exception
    the finished parts stay for the next run.

    Args:
        out: the output folder, which appears at `commit`.
        key: everything that decides the content of `out`, as JSON. Another key gets another work folder.
        root: the folder of `.runs/`; by default the project root.

    Attributes:
        files: the folder that becomes `out`. All files in it count as finished.
        scratch: a folder for files that are no part of the output.

    Raises:
        StagingBusyError: this process holds the work folder already.
    """

    def __init__(self, out: Path, key: dict[str, Any], root: Path | None = None) -> None:
        text = json.dumps(key, sort_keys=True)
        self.out = out
        self._folder = (root or project_root()) / ".runs" / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._lock = _lock(self._folder)
        self.files, self.scratch = self._folder / "files", self._folder / "scratch"
        self.files.mkdir(exist_ok=True)
        self.scratch.mkdir(exist_ok=True)
        for leftover in self.files.rglob(TEMPORARY):
            leftover.unlink()
        (self._folder / "key.json").write_text(text + "\n")
        (self._folder / "owner").write_text(f"process {os.getpid()} on {socket.gethostname()}")

    def part(self, name: str) -> Path:
        """Return the path of one file of the output. If it exists, an earlier run has finished it."""
        return self.files / name

    def commit(self) -> None:
        """Move the work into place as `out`, which it replaces, and delete the work folder."""
        self.publish()
        self.retire()

    def publish(self) -> None:
        """Move the work into place as `out`, which it replaces; `scratch` stays."""
        with ThreadPoolExecutor(32) as pool:  # file systems write several waiting files at once
            list(pool.map(_sync, [self.files, *self.files.rglob("*")]))
        self.out.parent.mkdir(parents=True, exist_ok=True)
        ready = self.files
        if ready.stat().st_dev != self.out.parent.stat().st_dev:  # another file system: no rename from here
            ready = self.out.with_name(f".{self.out.name}.incoming")
            _remove(ready)
            shutil.copytree(self.files, ready)
        old = self.out.with_name(f".{self.out.name}.outgoing")
        _remove(old)
        if self.out.exists():
            self.out.rename(old)
        ready.rename(self.out)
        _sync(self.out.parent)
        _remove(old)

    def retire(self) -> None:
        """Delete the work folder."""
        # Rename it first: a half-deleted folder must never be taken for finished work.
        retired = self._folder.with_name(f".retired-{self._folder.name}")
        _remove(retired)
        self._folder.rename(retired)
        shutil.rmtree(retired)
        self.close()

    def close(self) -> None:
        """Release the work folder."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _lock(folder: Path) -> FileLock:
    """Create and lock a work folder; if another process holds it, wait."""
    lock, owner = FileLock(folder / "lock"), ""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=None if owner else 0)
            return lock
        except Timeout:
            with suppress(FileNotFoundError):
                owner = (folder / "owner").read_text()
            owner = owner or "another process"
            if owner == f"process {os.getpid()} on {socket.gethostname()}":
                raise StagingBusyError(f"{folder}: process {os.getpid()} makes this output already") from None
            print(
                f"Waiting for {owner}, which is writing the same output in {folder}; you can interrupt either "
                "process safely.",
                file=sys.stderr,
                flush=True,
            )
        except FileNotFoundError:  # the holder has finished and deleted the folder
            owner = ""


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
