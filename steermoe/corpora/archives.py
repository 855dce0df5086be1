"""Archives from the network or a mirror: downloaded resumably, unpacked safely."""

import shutil
import tarfile
import time
import zlib
from collections.abc import Callable
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from steermoe.data.staging import project_root

TIMEOUT = (10, 30)  # seconds to connect, and to wait for the next bytes
PAUSES = (1, 3)  # seconds before another try, after a try that brought nothing
CHUNK = 2**16  # bytes
SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar")


class UnavailableError(RuntimeError):
    """An archive cannot be had: no network, or not at its place."""


class ArchiveError(ValueError):
    """An archive is damaged, unsafe to unpack, or not the expected one."""


def obtain(url: str, mirror: str | None, work: Path, max_bytes: int) -> Path:
    """The path of an archive file.

    Args:
        url: the official place.
        mirror: an archive or a folder with one archive in it (from the project root if relative), or another
            URL; None is the official place.
        work: a folder for the download, and for what an earlier try downloaded.
        max_bytes: larger archives are refused.

    Raises:
        UnavailableError: the network or the server does not give it.
        ArchiveError: the mirror is not there, holds none or several archives, or the archive is too large.
    """
    if mirror is None or urlsplit(mirror).scheme in ("http", "https"):
        source = mirror or url
        return download(source, work / PurePosixPath(urlsplit(source).path).name, max_bytes)
    place = project_root() / mirror
    found = [place] if place.is_file() else []
    if place.is_dir():
        found = sorted(path for path in place.iterdir() if path.name.endswith(SUFFIXES))
    if len(found) != 1:
        listed = ", ".join(path.name for path in found) or (
            "none" if place.exists() else "no such file or folder"
        )
        raise ArchiveError(
            f"mirror {mirror!r} ({place}): expected an archive ({', '.join(SUFFIXES)}) or a folder with one; "
            f"found: {listed}"
        )
    if (size := found[0].stat().st_size) > max_bytes:
        raise ArchiveError(f"{found[0]}: {size} bytes, expected at most {max_bytes}")
    return found[0]


def download(url: str, path: Path, max_bytes: int) -> Path:
    """Download to `path`, going on where an earlier try stopped if the server's file is still the same.

    Raises:
        UnavailableError, ArchiveError: as `obtain`.
    """
    import requests
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    if path.exists():
        return path
    partial = path.with_name(f"{path.name}.partial")
    pauses = list(PAUSES)
    with Progress(TextColumn(path.name), BarColumn(), DownloadColumn(), TransferSpeedColumn()) as progress:
        bar = progress.add_task("", total=None)
        while True:
            before = _size(partial)
            try:
                _receive(
                    url, partial, max_bytes, lambda done, of: progress.update(bar, completed=done, total=of)
                )
                break
            except requests.RequestException as error:
                if error.response is not None and error.response.status_code < 500:
                    raise UnavailableError(
                        f"{url}: {error.response.status_code} {error.response.reason}"
                    ) from error
                if _size(partial) > before:
                    pauses = list(PAUSES)
                    continue
                if not pauses:
                    # Only the kind of error: its text differs from try to try, and becomes part of an output.
                    raise UnavailableError(
                        f"{url} cannot be reached ({type(error).__name__}); is this machine online?"
                    ) from error
                time.sleep(pauses.pop(0))
    partial.rename(path)
    _validator(partial).unlink(missing_ok=True)
    return path


def _receive(url: str, partial: Path, max_bytes: int, report: Callable[[int, int | None], None]) -> None:
    """Append what is missing to `partial`, or begin anew where the server cannot go on."""
    import requests

    have, validator = _size(partial), _validator(partial)
    headers = {"Accept-Encoding": "identity"}
    if have and validator.exists():
        headers |= {"Range": f"bytes={have}-", "If-Range": validator.read_text()}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        placed = response.headers.get("Content-Range", "")
        if (
            response.status_code == requests.codes.requested_range_not_satisfiable
            and placed == f"bytes */{have}"
        ):
            return  # all had arrived
        if response.status_code == requests.codes.partial_content and not placed.startswith(f"bytes {have}-"):
            partial.unlink()
            raise requests.ConnectionError(f"the server went on elsewhere ({placed}) than asked ({have})")
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            have = 0
            _note_validator(validator, response.headers.get("ETag", ""))
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with partial.open("ab" if have else "wb") as file:
            for chunk in response.iter_content(CHUNK):
                have += len(chunk)
                if have > max_bytes:
                    raise ArchiveError(f"{url}: over {max_bytes} bytes, not the expected archive")
                file.write(chunk)
                report(have, total)
    if total is not None and have < total:
        raise requests.ConnectionError(f"the connection ended after {have} of {total} bytes")


def extract(archive: Path, dest: Path, max_bytes: int, max_files: int) -> None:
    """Unpack a tar archive into the new folder `dest`: plain files and folders only, nothing outside.

    Links, devices, sparse files, absolute names and names with `..` are refused, so the ways around
    `tarfile`'s own filter (CVE-2025-4517 and its like go by links) are closed on every Python; the filter is
    applied too.

    Raises:
        ArchiveError: the archive is damaged, has such members, or more or larger ones than allowed. What was
            unpacked before stays in `dest`.
    """
    dest.mkdir(parents=True)
    files, size = 0, 0
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                files, size = files + 1, size + member.size
                if fault := _member_fault(member):
                    raise ArchiveError(f"{archive}: member {member.name!r} is {fault}; not unpacked")
                if files > max_files or size > max_bytes:
                    raise ArchiveError(
                        f"{archive}: over {max_files} members or {max_bytes} bytes; not the expected archive"
                    )
                tar.extract(member, dest, filter="data")
            assert tar.fileobj is not None
            while tar.fileobj.read(2**20):  # to the end: the checksum of the compressed stream stands there
                pass
    except (tarfile.TarError, EOFError, zlib.error, LZMAError) as error:
        raise ArchiveError(f"{archive}: damaged, or not a tar archive ({error}); get it anew") from error
    except OSError as error:
        if error.errno is not None:  # a real one, such as a full disk; gzip's complaints have no number
            raise
        raise ArchiveError(f"{archive}: damaged, or not a tar archive ({error}); get it anew") from error


def _member_fault(member: tarfile.TarInfo) -> str | None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        return "outside of the archive's folder"
    if member.issparse() or not (member.isfile() or member.isdir()):
        return "neither a plain file nor a folder"
    return None


def clear(folder: Path) -> None:
    """Delete a folder with what is in it, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _validator(partial: Path) -> Path:
    """Where the ETag of a partial download is kept."""
    return partial.with_suffix(".etag")


def _note_validator(path: Path, etag: str) -> None:
    if etag and not etag.startswith("W/"):  # only a strong one vouches for the same bytes
        path.write_text(etag)
    else:
        path.unlink(missing_ok=True)
