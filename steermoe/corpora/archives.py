"""Archives unpacked safely: plain files and folders only, nothing outside, no more than is expected.

Links, devices, sparse files, absolute names, names with `..` and names that come twice are refused, so the
ways around `tarfile`'s own filter (CVE-2025-4517 and its like go by links) are closed on every Python; the
filter is applied too.
"""

import shutil
import stat
import tarfile
import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import NoReturn

TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar")
SUFFIXES = (*TAR, ".zip", ".7z")
CHUNK = 2**20  # bytes


class ArchiveError(ValueError):
    """A file is damaged, unsafe to unpack, or not the expected one."""


def is_archive(path: Path | str) -> bool:
    """Whether a name is an archive's."""
    return str(path).endswith(SUFFIXES)


def extract(archive: Path, dest: Path, max_bytes: int, max_files: int) -> None:
    """Unpack a tar, zip or 7z archive (told by its name; tar for any other) into the folder `dest`.

    Args:
        dest: made if it is not there. A file that is there already is not overwritten.
        max_bytes: of all members, unpacked.
        max_files: members.

    Raises:
        ArchiveError: the archive is damaged, has unsafe members, or more or larger ones than allowed. What
            was unpacked before stays in `dest`.
        ModuleNotFoundError: a 7z archive, without the extra `sevenzip`.
    """
    dest.mkdir(parents=True, exist_ok=True)
    kind = next((kind for kind in (".zip", ".7z") if archive.name.endswith(kind)), ".tar")
    budget = _Budget(archive, dest, max_bytes, max_files)
    try:
        {".zip": _unzip, ".7z": _un7z, ".tar": _untar}[kind](archive, dest, budget)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, LZMAError) as error:
        raise _damaged(archive, kind, error) from error
    except NotImplementedError as error:  # a zip with a compression or encryption that zipfile does not know
        raise _damaged(archive, kind, error) from error
    except OSError as error:
        if error.errno is not None:  # a real one, such as a full disk; gzip's complaints have no number
            raise
        raise _damaged(archive, kind, error) from error


def extract_nested(folder: Path, max_ratio: int, max_files: int) -> int:
    """Unpack every archive in `folder` into it, under the same guard, and delete it. One level deep.

    Returns:
        how many there were.
    """
    inner = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and is_archive(path) and not path.name.startswith(".")
    )
    for path in inner:
        extract(path, folder, most_unpacked(path, max_ratio), max_files)
        path.unlink()
    return len(inner)


def most_unpacked(archive: Path, max_ratio: int) -> int:
    """Bytes that an archive may hold: no more than `max_ratio` times its own, and 1 MiB for small ones."""
    return max_ratio * archive.stat().st_size + 2**20


def clear(folder: Path) -> None:
    """Delete a folder with what is in it, or a file, if it is there."""
    if folder.is_dir():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)


class _Budget:
    """Counts members, and refuses those that must not be unpacked."""

    def __init__(self, archive: Path, dest: Path, max_bytes: int, max_files: int) -> None:
        self.archive, self.dest = archive, dest
        self.max_bytes, self.max_files = max_bytes, max_files
        self.files = self.bytes = 0

    def admit(self, name: str, size: int, *, file: bool, folder: bool) -> Path:
        """Where a member goes.

        Raises:
            ArchiveError: it may not.
        """
        self.files, self.bytes = self.files + 1, self.bytes + size
        path = PurePosixPath(name)
        target = self.dest / name
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or ":" in name[:2]:
            self._refuse(name, "outside of the archive's folder")
        if not file and not folder:
            self._refuse(name, "neither a plain file nor a folder")
        if file and target.exists():
            self._refuse(name, "there twice")
        if self.files > self.max_files or self.bytes > self.max_bytes:
            raise ArchiveError(
                f"{self.archive}: over {self.max_files} members or {self.max_bytes} bytes; "
                "not the expected archive"
            )
        return target

    def _refuse(self, name: str, fault: str) -> NoReturn:
        raise ArchiveError(f"{self.archive}: member {name!r} is {fault}; not unpacked")


def _untar(archive: Path, dest: Path, budget: _Budget) -> None:
    with tarfile.open(archive, "r:*") as tar:
        while (member := tar.next()) is not None:
            # Else it keeps them all, and mls_english has 11 million.
            tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            plain = member.isfile() and not member.issparse()
            budget.admit(member.name, member.size, file=plain, folder=member.isdir())
            tar.extract(member, dest, filter="data")
        assert tar.fileobj is not None
        while tar.fileobj.read(CHUNK):  # to the end: the checksum of the compressed stream stands there
            pass


def _unzip(archive: Path, dest: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where it was packed on no Unix
            folder = member.is_dir()
            plain = not folder and kind in (0, stat.S_IFREG)
            target = budget.admit(member.filename, member.file_size, file=plain, folder=folder)
            if member.flag_bits & 1:
                raise ArchiveError(f"{archive}: member {member.filename!r} is encrypted; not unpacked")
            if folder:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with zipped.open(member) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file, CHUNK)


def _un7z(archive: Path, dest: Path, budget: _Budget) -> None:
    """Names and kinds of all members are looked at before anything is unpacked (CVE-2022-44900)."""
    try:
        import py7zr
        import py7zr.exceptions
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{archive}: unpacking a 7z archive needs py7zr; install the extra `sevenzip` "
            '(pip install "steermoe[sevenzip]"), or unpack it yourself and name the folder as mirror'
        ) from error
    try:
        with py7zr.SevenZipFile(archive, "r") as packed:
            for member in packed.files:
                plain = not (member.is_directory or member.is_symlink or member.is_junction)
                plain = plain and not member.is_socket
                budget.admit(
                    member.filename, member.uncompressed or 0, file=plain, folder=member.is_directory
                )
            packed.extractall(path=dest)
    except (py7zr.exceptions.ArchiveError, ValueError) as error:
        if isinstance(error, ArchiveError):
            raise
        raise _damaged(archive, ".7z", error) from error


def _damaged(archive: Path, kind: str, error: Exception) -> ArchiveError:
    return ArchiveError(f"{archive}: damaged, or not a {kind[1:]} archive ({error}); get it anew")
