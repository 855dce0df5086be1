"""Files from the network, downloaded resumably."""

import errno
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from steermoe.atomic_io import project_root
from steermoe.corpora.archives import SUFFIXES, ArchiveError
from steermoe.corpora.recordings import hidden

if TYPE_CHECKING:
    from requests import Response

TIMEOUT = (10, 30)  # seconds to connect, and to wait for the next bytes
PAUSES = (1, 3)  # seconds before another try, after a try that brought nothing
LATER = (408, 429)  # statuses of a server that wants to be asked later
LONGEST_PAUSE = 300.0  # seconds that a server may ask for
CHUNK = 2**16  # bytes
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Report = Callable[[int], None]  # takes how many more bytes there are; fewer than 0 where some were dropped


class UnavailableError(RuntimeError):
    """A file cannot be had: no network, not at its place, or there is no such place."""


class SpaceError(OSError):
    """The disk is too small, or full."""


def obtain(url: str, mirror: str | None, work: Path, max_bytes: int) -> Path:
    """The path of the one archive of a corpus.

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
    if mirror is None or is_url(mirror):
        source = mirror or url
        path = work / name_of(source)
        with progress_bar(path.name, None) as report:
            return download(source, path, max_bytes, report)
    place = project_root() / mirror
    found = [place] if place.is_file() else []
    if place.is_dir():
        found = sorted(
            path for path in place.iterdir() if path.name.endswith(SUFFIXES) and not hidden(path.name)
        )
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


def is_url(mirror: str) -> bool:
    """Whether a mirror is on the network."""
    return urlsplit(mirror).scheme in ("http", "https")


def name_of(url: str) -> str:
    """The file name in a URL."""
    return PurePosixPath(unquote(urlsplit(url).path)).name


@contextmanager
def progress_bar(name: str, total: int | None) -> Iterator[Report]:
    """A bar of bytes; the function it gives may be called by several threads."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    ) as progress:
        task = progress.add_task(name, total=total)
        yield lambda more: progress.advance(task, more)


def download(url: str, path: Path, max_bytes: int, report: Report = lambda more: None) -> Path:
    """Download to `path`, going on where an earlier try stopped if the server's file is still the same.

    A try leaves `<path>.partial` and, beside it, the validator (strong ETag, else Last-Modified) by which the
    next asks for the rest (RFC 9110, sections 13.1.5 and 14).

    Raises:
        UnavailableError: the network or the server does not give it.
        ArchiveError: it is larger than `max_bytes`.
        SpaceError: the disk has less room than the server says that is to come, or is full; what has arrived is
            kept.
    """
    import requests

    if path.exists():
        report(_size(path))
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    report(_size(partial))
    pauses = list(PAUSES)
    while True:
        before = _size(partial)
        try:
            _receive(url, partial, max_bytes, report)
            break
        except requests.RequestException as error:
            status = None if error.response is None else error.response.status_code
            if error.response is not None and error.response.status_code < 500 and status not in LATER:
                raise UnavailableError(f"{url}: {status} {error.response.reason}") from error
            if _size(partial) > before:
                pauses = list(PAUSES)
                continue
            if not pauses and status in LATER:
                raise UnavailableError(f"{url}: {status}, the server wants to be asked later") from error
            if not pauses:
                # Only the kind of error: its text differs from try to try, and becomes part of an output.
                raise UnavailableError(
                    f"{url} cannot be reached ({type(error).__name__}); is this machine online?"
                ) from error
            time.sleep(max(pauses.pop(0), _asked_pause(error.response)))
    partial.rename(path)
    _validator(partial).unlink(missing_ok=True)
    return path


def size_of(url: str) -> int | None:
    """Bytes of the file at `url`, as the server tells without sending it; None where it does not tell."""
    import requests

    headers = {"Accept-Encoding": "identity"}
    try:
        with requests.head(url, headers=headers, allow_redirects=True, timeout=TIMEOUT) as response:
            length = response.headers.get("Content-Length", "") if response.ok else ""
    except requests.RequestException:  # the download tells what is wrong, after more tries
        return None
    return int(length) if length.isdecimal() else None


def arrived(path: Path) -> int:
    """Bytes of a download to `path` that earlier tries left."""
    return _size(path) or _size(path.with_name(f"{path.name}.partial"))


def _asked_pause(response: "Response | None") -> float:
    """Seconds that a server wants to be left alone (RFC 9110, section 10.2.3; no dates)."""
    asked = "" if response is None else response.headers.get("Retry-After", "")
    return min(float(asked), LONGEST_PAUSE) if asked.isdecimal() else 0.0


def _receive(url: str, partial: Path, max_bytes: int, report: Report) -> None:
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
            report(-have)
            raise requests.ConnectionError(f"the server went on elsewhere ({placed}) than asked ({have})")
        response.raise_for_status()
        goes_on = response.status_code == requests.codes.partial_content
        length = response.headers.get("Content-Length")
        # Before the validator is noted: that of another file must not stand beside what is there of this one.
        _check_room(url, partial, int(length or 0), 0 if goes_on else have)
        if not goes_on:
            report(-have)
            have = 0
            _note_validator(validator, response.headers)
        total = have + int(length) if length else None
        have = _append(response.iter_content(CHUNK), partial, have, max_bytes, url, report)
    if total is not None and have < total:
        raise requests.ConnectionError(f"the connection ended after {have} of {total} bytes")


def _check_room(url: str, partial: Path, coming: int, dropped: int) -> None:
    """SpaceError where the disk has no room for `coming` bytes, once `dropped` of `partial` are gone."""
    room = shutil.disk_usage(partial.parent).free + dropped
    if coming > room:
        raise SpaceError(
            f"{url}: {coming / 1e9:.1f} GB are to come, {room / 1e9:.1f} GB are free in {partial.parent}; free some "
            "space and repeat the command"
        )


def _append(
    chunks: Iterator[bytes], partial: Path, have: int, max_bytes: int, url: str, report: Report
) -> int:
    """Write chunks behind the first `have` bytes; returns how many bytes there are then."""
    try:
        with partial.open("ab" if have else "wb") as file:
            for chunk in chunks:
                have += len(chunk)
                if have > max_bytes:
                    raise ArchiveError(f"{url}: over {max_bytes} bytes, not the expected file")
                file.write(chunk)
                report(len(chunk))
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise SpaceError(
            error.errno,
            f"the disk is full ({error.strerror}) after {_size(partial)} bytes of {url}; free some space and "
            "repeat the command, which goes on from there",
            str(partial),
        ) from error
    return have


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _validator(partial: Path) -> Path:
    """Where the ETag of a partial download is kept."""
    return partial.with_suffix(".etag")


def _note_validator(path: Path, headers: Any) -> None:
    etag = headers.get("ETag", "")
    # A weak ETag vouches for the same meaning, not for the same bytes; then nothing does.
    validator = etag if etag else headers.get("Last-Modified", "")
    if validator and not validator.startswith("W/"):
        path.write_text(validator)
    else:
        path.unlink(missing_ok=True)
