"""Archives, unpacked safely: plain files and folders only, and nothing outside of the target folder."""

import io
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import BinaryIO

SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar", ".zip", ".7z", ".deb")
CHUNK = 2**20  # bytes
MAX_RATIO = 30  # unpacked bytes per byte of an archive; recordings shrink by much less
SYSTEM = ("thumbs.db", "desktop.ini", "__macosx")


class ArchiveError(ValueError):
    """A file is damaged, unsafe to unpack, or not the expected one."""


def is_archive(path: Path | str) -> bool:
    """Return whether a file name is that of an archive."""
    return str(path).endswith(SUFFIXES)


def hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or made by an operating system."""
    return name.startswith(".") or name.lower() in SYSTEM


def extract(archive: Path, dest: Path) -> None:
    """Unpack a tar, zip, 7z or Debian archive (by its name; tar for any other name) into the folder `dest`.

    Raises:
        ArchiveError: the archive is damaged or has unsafe members: links, devices, paths outside of `dest`, or far
            more bytes than recordings have. What was unpacked before stays in `dest`.
        ModuleNotFoundError: a 7z archive, and the extra `sevenzip` is not installed.
    """
    dest.mkdir(parents=True, exist_ok=True)
    kind = archive.suffix if archive.suffix in _EXTRACTORS else ".tar"
    try:
        _EXTRACTORS[kind](archive, dest)
    except tarfile.FilterError as error:
        raise _unsafe(archive, error.tarinfo.name) from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, LZMAError) as error:
        raise _damaged(archive, error) from error
    except (NotImplementedError, RuntimeError) as error:  # zip: unknown compression; an encrypted member
        raise _damaged(archive, error) from error
    except OSError as error:
        if error.errno is not None:  # such as a full disk; the errors of gzip have no number
            raise
        raise _damaged(archive, error) from error


def remove(path: Path) -> None:
    """Delete a folder with its content, or a file, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _untar(archive: Path, dest: Path, packed: BinaryIO | None = None) -> None:
    """Unpack the tar archive, or the one in it that is given."""
    unpacked = 0
    with tarfile.open(None if packed else archive, "r:*", packed) as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue] # mls_english has 11 million members
            if not (member.isfile() or member.isdir()) or member.issparse():
                raise _unsafe(archive, member.name)
            unpacked += member.size
            _check_size(archive, unpacked)
            tar.extract(member, dest, filter="data")
        assert tar.fileobj is not None
        while tar.fileobj.read(CHUNK):  # to the end, where gzip has its checksum
            pass


def _undeb(archive: Path, dest: Path) -> None:
    """Unpack what a Debian package installs: the member data.tar.* of an `ar` archive (deb(5))."""
    with archive.open("rb") as file:
        whole = file.read(8) == b"!<arch>\n"
        while whole and len(header := file.read(60)) == 60:
            name, size = header[:16], header[48:58].strip()
            if not size.isdigit():
                break
            if name.startswith(b"data.tar"):
                return _untar(archive, dest, io.BytesIO(file.read(int(size))))
            file.seek(int(size) + int(size) % 2, io.SEEK_CUR)
    raise _damaged(archive, "no data.tar in it")


def _unzip(archive: Path, dest: Path) -> None:
    """`zipfile` writes links as plain files, and would rename members with unsafe names."""
    with zipfile.ZipFile(archive) as zipped:
        _check_names(archive, zipped.namelist())
        _check_size(archive, sum(member.file_size for member in zipped.infolist()))
        zipped.extractall(dest)


def _un7z(archive: Path, dest: Path) -> None:
    try:
        import py7zr
        from py7zr.exceptions import ArchiveError as SevenZipError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{archive}: unpacking a 7z archive needs py7zr; install the extra `sevenzip` "
            '(pip install "steermoe[sevenzip]"), or unpack it yourself and name the folder as mirror'
        ) from error
    try:
        with py7zr.SevenZipFile(archive, "r") as packed:
            _check_names(archive, (member.filename for member in packed.files))
            _check_size(archive, sum(member.uncompressed or 0 for member in packed.files))
            for member in packed.files:
                if member.is_symlink or member.is_junction or member.is_socket:
                    raise _unsafe(archive, member.filename)
            packed.extractall(path=dest)
    except (SevenZipError, ValueError) as error:
        raise error if isinstance(error, ArchiveError) else _damaged(archive, error) from error


_EXTRACTORS = {".tar": _untar, ".zip": _unzip, ".7z": _un7z, ".deb": _undeb}


def _check_names(archive: Path, names: Iterable[str]) -> None:
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise _unsafe(archive, name)


def _check_size(archive: Path, unpacked: int) -> None:
    if unpacked > MAX_RATIO * archive.stat().st_size + 2**20:
        raise ArchiveError(
            f"{archive}: over {MAX_RATIO} times its size when unpacked; not the expected archive"
        )


def _unsafe(archive: Path, name: str) -> ArchiveError:
    return ArchiveError(
        f"{archive}: member {name!r} is a link or device, or outside of the archive's folder; not unpacked"
    )


def _damaged(archive: Path, error: object) -> ArchiveError:
    return ArchiveError(f"{archive}: damaged, or not an archive ({error}); download it again")
