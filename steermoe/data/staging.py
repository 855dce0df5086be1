"""Files that appear whole or not at all, and work folders that outlive a killed stage.

DVC removes the outputs of a stage before it runs it. What a killed stage had finished would be lost, so a
stage works in `.runs/` beside the outputs and moves its result into place at the end.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TEMPORARY = ".*.tmp"  # names of files that were being written


class StagingBusyError(RuntimeError):
    """Another process makes the same output."""


def project_root() -> Path:
    """Where relative paths in the configuration start from: DVC's workspace, else the current folder."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which gets the name `path` once the block has written it without error.

    Folders on the way are made.
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


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def tree_digest(folder: Path) -> str:
    """Names, sizes and times of the files in a folder, as a SHA-256: cheap, and other after every change."""
    lines = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        status = path.stat()
        lines.append(f"{path.relative_to(folder).as_posix()} {status.st_size} {status.st_mtime_ns}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def code_digest(*packages: str) -> str:
    """SHA-256 of the library's Python files in `packages` (names of folders in steermoe/)."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(p for package in packages for p in (root / package).rglob("*.py")):
        digest.update(
            f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode() + path.read_bytes()
        )
    return digest.hexdigest()


class Staging:
    """A work folder for the output folder `out`, found again by the next process that does the same work.

    It is held alone (flock: the kernel frees it, however its holder dies). Close it, or use it in a `with`:
    an exception leaves the finished parts for the next try.

    Args:
        out: the output folder. It appears at `commit`.
        key: everything that decides the content of `out`, as JSON; another key is another work folder.
        root: where `.runs/` is; by default the project root.

    Attributes:
        files: the folder that becomes `out`. Whatever is in it counts as finished.
        scratch: a folder for what does not belong to the output. Deleted at `commit`, or at `retire`.

    Raises:
        StagingBusyError: another process holds the work folder.
    """

    def __init__(self, out: Path, key: dict[str, Any], root: Path | None = None) -> None:
        text = json.dumps(key, sort_keys=True)
        self.out = out
        self._folder = (root or project_root()) / ".runs" / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._lock = _hold(self._folder)
        self.files, self.scratch = self._folder / "files", self._folder / "scratch"
        self.files.mkdir(exist_ok=True)
        self.scratch.mkdir(exist_ok=True)
        for leftover in self.files.rglob(TEMPORARY):
            leftover.unlink()
        (self._folder / "key.json").write_text(text + "\n")
        (self._folder / "pid").write_text(f"{os.getpid()}\n")

    def part(self, name: str) -> Path:
        """The path of one file of the output. It exists if an earlier try finished it; write it whole."""
        return self.files / name

    def commit(self) -> None:
        """Move the work into place as `out`, which it replaces, and forget the work folder."""
        self.publish()
        self.retire()

    def publish(self) -> None:
        """Move the work into place as `out`, which it replaces; `scratch` stays, for who is killed after this."""
        with ThreadPoolExecutor(32) as pool:  # the file system writes what waits at the same time at once
            list(pool.map(_sync, [self.files, *self.files.rglob("*")]))
        self.out.parent.mkdir(parents=True, exist_ok=True)
        ready = self.files
        if ready.stat().st_dev != self.out.parent.stat().st_dev:
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
        """Forget the work folder."""
        # Its name goes first: half-deleted, the folder is never taken for a finished part.
        retired = self._folder.with_name(f".retired-{self._folder.name}")
        _remove(retired)
        self._folder.rename(retired)
        self.close()
        shutil.rmtree(retired)

    def close(self) -> None:
        """Let go of the work folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _hold(folder: Path) -> int | None:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have retired the folder between our opening and our locking it.
            if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            pid = folder / "pid"
            owner = f"process {pid.read_text().strip()}" if pid.exists() else "another process"
            raise StagingBusyError(
                f"{folder}: {owner} makes this output already (perhaps it outlived the command that started "
                "it); wait until it ends or end it, then repeat the command: finished parts are kept"
            ) from None
        os.close(descriptor)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
