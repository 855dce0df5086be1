"""Files that appear whole or not at all, and work folders that outlive a killed stage.

DVC removes the outputs of a stage before it runs it. What a killed stage had finished would be lost, so a
stage works in `.runs/` beside the outputs and moves its result into place at the end.
"""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TEMPORARY = ".*.tmp"  # names of files that were being written
REPEATED = (
    "STEERMOE_REPEATED"  # set by who repeats a command that fails, and finds in DVC's cache what others made
)


class StagingBusyError(RuntimeError):
    """Another process makes the same output, or has just made it."""


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

    It is held alone (flock: the kernel frees it, however its holder dies): who comes second says whom it waits for,
    and goes on with what that one has left. Close it, or use it in a `with`: an exception leaves the finished parts
    for the next try.

    Args:
        out: the output folder. It appears at `commit`.
        key: everything that decides the content of `out`, as JSON; another key is another work folder.
        root: where `.runs/` is; by default the project root.

    Attributes:
        files: the folder that becomes `out`. Whatever is in it counts as finished.
        scratch: a folder for what does not belong to the output. Deleted at `commit`, or at `retire`.

    Raises:
        StagingBusyError: this process holds the work folder itself; or, where STEERMOE_REPEATED is set, another has
            made the output meanwhile.
    """

    def __init__(self, out: Path, key: dict[str, Any], root: Path | None = None) -> None:
        text = json.dumps(key, sort_keys=True)
        self.out = out
        self._folder = (root or project_root()) / ".runs" / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._lock: int | None = _hold(self._folder)
        self.files, self.scratch = self._folder / "files", self._folder / "scratch"
        self.files.mkdir(exist_ok=True)
        self.scratch.mkdir(exist_ok=True)
        for leftover in self.files.rglob(TEMPORARY):
            leftover.unlink()
        (self._folder / "key.json").write_text(text + "\n")
        (self._folder / "pid").write_text(f"{os.getpid()} {socket.gethostname()}\n")

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


def _hold(folder: Path) -> int:
    owner = ""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # the holder before retires the folder while we open or lock it
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                owner = _locked(descriptor, folder) or owner
                if os.path.samestat(os.fstat(descriptor), folder.stat()):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
        if owner:
            made = f"{owner} made this output meanwhile"
            if os.environ.get(REPEATED):
                raise StagingBusyError(f"{made}; the command repeated finds it in DVC's cache")
            print(f"{made}; it is made again, with the same result", file=sys.stderr, flush=True)
            owner = ""


def _locked(descriptor: int, folder: Path) -> str:
    """Lock a folder, at once or when its holder has let go: the name of the holder that was waited for, or none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return ""
    except BlockingIOError:
        pass
    pid, host = "", socket.gethostname()
    with suppress(FileNotFoundError, ValueError):
        pid, host = (folder / "pid").read_text().split()
    is_here = host == socket.gethostname()
    owner = f"process {pid}" if pid else "another process"
    owner += "" if is_here else f" on {host}"
    if is_here and pid == str(os.getpid()):  # to wait for oneself would never end
        raise StagingBusyError(f"{folder}: {owner} makes this output already, and asks for it a second time")
    print(
        f"waits for {owner}, which makes the same output (in {folder}; perhaps it outlived the command that started "
        "it); who ends this wait or that process loses nothing that is finished",
        file=sys.stderr,
        flush=True,
    )
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return owner


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
