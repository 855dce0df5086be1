"""The files of a corpus: found in a mirror or downloaded, verified, and unpacked.

A fetched corpus is a folder with the content of its files in `data/`, and `source.json`, which names the folder of
the user whose unpacked files are used without a copy.
"""

import errno
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import urlsplit

from steermoe.atomic_io import project_root, write_text
from steermoe.config.corpora import Remote
from steermoe.corpora import archives
from steermoe.corpora.archives import ArchiveError, hidden
from steermoe.data import filestate

NOTE = "source.json"
WORK = ".fetch"  # folder of downloads, which the next try resumes
EMBEDDED = ".embedded"  # folder in `data/` of the recordings that a table itself holds
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNPACKED = 1.1  # bytes per byte of an archive; recordings shrink little


class UnavailableError(RuntimeError):
    """A file cannot be downloaded: no network, no such file, or it is given out on request only."""


class SpaceError(OSError):
    """The disk is too small, or full."""


@dataclass(frozen=True)
class Source:
    """A file of a corpus: an archive, or a file that is used as it is; on the hub it may also be a folder.

    Attributes:
        path: its path in a mirror or in the data set on the hub.
        holds: the folder or file of the corpus that it contains; of a file that is no archive, `path`.
        url: where it is published; "" where it cannot be downloaded, or is on the hub.
        inside: patterns of where `holds` is in the unpacked archive; the first that matches once.
        bytes: its size, where published.
        checksum: `md5:` or `sha256:` and hexadecimal digits, where published.
        nested: a folder of the unpacked archive whose archives are unpacked into it.
    """

    path: str
    holds: str
    url: str = ""
    inside: tuple[str, ...] = (".",)
    bytes: int | None = None
    checksum: str | None = None
    nested: str = ""


@dataclass(frozen=True)
class Places:
    """Where the files of a fetched corpus are: in its `data/`, or else in a folder of the user."""

    corpus: str
    data: Path
    mirror: Path | None

    def __call__(self, path: str) -> Path:
        """Return the path of a file or folder of the corpus."""
        fetched = self.data / path
        return fetched if self.mirror is None or fetched.exists() else self.mirror / path

    def recording(self, path: str, row: str) -> str:
        """Return `path` of a recording, which must exist inside of the corpus; `row` names its table and line.

        Raises:
            ArchiveError: it does not.
        """
        inside = not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
        if not inside or not self(path).is_file():
            raise ArchiveError(f"{row}: no recording {self(path)}")
        return path


def locate(fetched: Path) -> Places:
    """Return where the files of a fetched corpus are."""
    note = json.loads((fetched / NOTE).read_text(encoding="utf-8"))
    return Places(note["corpus"], fetched / "data", Path(note["mirror"]) if note["mirror"] else None)


def fetch(
    corpus: str, sources: Sequence[Source], settings: Remote, dest: Path, hub: tuple[str, str] | None = None
) -> None:
    """Put the content of the sources into `dest`/data. What an interrupted try has downloaded is used again.

    Args:
        corpus: its name.
        sources: its files.
        settings: `mirror` is a folder with the files, unpacked or not; one archive; or a URL.
        dest: the folder of the fetched corpus.
        hub: data set on the Hugging Face hub with the sources, and its commit.

    Raises:
        UnavailableError: a file cannot be downloaded.
        ArchiveError: the mirror lacks a file; a file is damaged, unsafe, or not the expected one.
        SpaceError: the disk is too small, or full.
    """
    mirror, used, found = settings.mirror, list[Source](), dict[Source, Path]()
    folder = None if mirror is None or is_url(mirror) else project_root() / mirror
    if folder is None:
        todo = [source for source in sources if not (dest / "data" / source.holds).exists()]
    else:
        found = {source: _in_mirror(source, sources, folder, mirror) for source in sources}
        used = [source for source in sources if found[source] == folder / source.holds]
        todo = [source for source in sources if source not in used]
        for source in used:
            archives.remove(dest / "data" / source.holds)  # of an earlier try
    try:
        if folder is not None:
            _check_space([found[source].stat().st_size for source in todo], dest)
        elif hub is not None and mirror is None:
            found = _from_hub(*hub, todo, dest)
        else:
            found = _from_urls(corpus, todo, mirror, dest)
        for source in todo:
            _bring(source, found[source], dest)
    except OSError as error:
        if error.errno not in FULL:
            raise
        fault = f"the disk is full ({error.strerror}); free some space and repeat the command, which resumes"
        raise SpaceError(error.errno, fault, str(error.filename or dest)) from error
    filestate.note(dest, dict.fromkeys(found[source].resolve() for source in used))
    _write_note(corpus, folder if used else None, dest)


def use_folder(corpus: str, folder: Path, dest: Path, names: Iterable[str] | None = None) -> None:
    """Note that a corpus is used as it is in `folder`: the files `names` of it, or all."""
    filestate.note(dest, {folder: names})
    _write_note(corpus, folder, dest)


def verify(source: Source, path: Path) -> None:
    """Compare a file with the source's checksum, if that has one.

    Raises:
        ArchiveError: they differ.
    """
    from pooch.hashes import hash_matches

    try:
        hash_matches(path, source.checksum, strict=True)
    except ValueError as error:
        raise _wrong_checksum(path, error) from error


def is_url(mirror: str) -> bool:
    """Return whether a mirror is on the network."""
    return urlsplit(mirror).scheme in ("http", "https")


def _write_note(corpus: str, mirror: Path | None, dest: Path) -> None:
    note = {"corpus": corpus, "mirror": mirror and str(mirror.resolve())}
    write_text(dest / NOTE, json.dumps(note, indent=1) + "\n")


def _in_mirror(source: Source, sources: Sequence[Source], folder: Path, mirror: str | None) -> Path:
    """Return the content of a source, or its archive, in the mirror."""
    if folder.is_file() and len(sources) == 1:
        return folder
    name = PurePosixPath(source.path).name
    for path in (folder / source.holds, folder / source.path, folder / name):
        if path.exists():
            return path
    inside = sorted(p for p in folder.iterdir() if not hidden(p.name)) if folder.is_dir() else []
    packed = [path for path in inside if archives.is_archive(path)]
    if len(sources) == len(packed) == 1:
        return packed[0]
    found = ", ".join(path.name for path in inside[:10]) or (
        "nothing" if folder.is_dir() else "no such folder"
    )
    raise ArchiveError(
        f"mirror {mirror!r} ({folder}): expected {source.holds!r} (unpacked), {source.path!r} or {name!r} in it; "
        f"found: {found}"
    )


def _check_space(sizes: Sequence[int], dest: Path, downloaded: bool = False) -> None:
    """Check the space for what is unpacked and the largest download, which exists next to its content for a while."""
    present = sum(path.stat().st_size for path in (dest / WORK).rglob("*") if path.is_file())
    needed = UNPACKED * sum(sizes) + (max(sizes, default=0) if downloaded else 0) - present
    free = shutil.disk_usage(dest).free
    if needed > free:
        raise SpaceError(
            f"{dest}: {free / 1e9:.1f} GB are free, about {needed / 1e9:.1f} GB are needed; free some space, use "
            "fewer splits, or name an unpacked copy as mirror"
        )


def _from_urls(corpus: str, sources: Sequence[Source], mirror: str | None, dest: Path) -> dict[Source, Path]:
    """Download files from a mirror, or from where they are published."""
    urls = {}
    for source in sources:
        if mirror is None and not source.url:
            raise UnavailableError(
                f"{source.path} of {corpus} cannot be downloaded automatically; get it by hand (see the card) and "
                f"set corpora.{corpus}.mirror to its folder"
            )
        whole = source.url if mirror is None else mirror if archives.is_archive(mirror) else ""
        urls[source] = whole or f"{(mirror or '').rstrip('/')}/{source.path}"
    _check_space([source.bytes or 0 for source in urls], dest, downloaded=True)
    return {source: _download(url, source, dest / WORK / source.path) for source, url in urls.items()}


def _download(url: str, source: Source, path: Path) -> Path:
    """Download to `path` and verify the checksum; an interrupted download is resumed."""
    import pooch
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    partial = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)

    def resume(url: str, output: str, _: object) -> None:
        with partial.open("ab") as file:
            have = file.tell()
            try:
                http_get(url, file, resume_size=have, expected_size=source.bytes if have else None)
            except HfHubHTTPError as error:
                if error.response.status_code == 416:  # the rest does not exist: another file was begun
                    file.truncate(0)
                raise
        partial.replace(output)

    try:
        with _network(url):
            pooch.retrieve(
                url, source.checksum, fname=path.name, path=path.parent, downloader=cast(Any, resume)
            )
    except ValueError as error:
        raise _wrong_checksum(url, error) from error
    return path


def _from_hub(repository: str, revision: str, sources: Sequence[Source], dest: Path) -> dict[Source, Path]:
    """Download files of a data set on the Hugging Face hub and compare them with its checksums."""
    if not sources:
        return {}
    from huggingface_hub import HfApi, snapshot_download

    folder, name = dest / WORK / "hub", f"data set {repository} at revision {revision}"
    patterns = [pattern for source in sources for pattern in (source.path, f"{source.path}/*")]
    of: dict[str, Any] = {"repo_type": "dataset", "revision": revision, "local_dir": folder}
    call: Any = partial(snapshot_download, repository, allow_patterns=patterns, **of)
    with _network(name):
        listed = call(dry_run=True)
        for source in sources:
            if not any(f"{file.filename}/".startswith(f"{source.path}/") for file in listed):
                raise UnavailableError(f"{name}: no file {source.path!r}; another revision may have it")
        _check_space([file.file_size for file in listed], dest, downloaded=True)
        call()
        checked = HfApi().verify_repo_checksums(repository, **of)
    for wrong in checked.mismatches:
        (folder / wrong["path"]).unlink()
        raise _wrong_checksum(wrong["path"], f"expected {wrong['expected']}, found {wrong['actual']}")
    return {source: folder / source.path for source in sources}


@contextmanager
def _network(name: str) -> Iterator[None]:
    """Turn the errors of a download into UnavailableError."""
    from huggingface_hub.errors import DryRunError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        yield
    except (HTTPError, DryRunError, OSError) as error:
        if isinstance(error, OSError) and (error.errno in FULL or isinstance(error, SpaceError)):
            raise
        # Only the kind of error: its text differs from try to try, and becomes part of an output.
        status = getattr(getattr(error, "response", None), "status_code", None)
        fault = f"status {status}" if status else f"{type(error).__name__}; is this machine online?"
        raise UnavailableError(f"{name} cannot be downloaded: {fault}") from error


def _wrong_checksum(path: Path | str, error: object) -> ArchiveError:
    return ArchiveError(f"{path}: wrong checksum: {error}. Download it again, or name another mirror")


def _bring(source: Source, path: Path, dest: Path) -> None:
    """Put the content of a file into `data/`: of a download, or of an archive in a mirror, which stays."""
    target, own = dest / "data" / source.holds, path.is_relative_to(dest)
    if not own:
        verify(source, path)
    archives.remove(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not archives.is_archive(path):
        path.rename(target) if own else shutil.copyfile(path, target)
        return
    try:
        _unpack(source, path, dest / WORK / "unpacked", target)
    except ArchiveError:
        if own:
            path.unlink()  # the next try downloads it again
        raise
    if own:
        path.unlink()


def _unpack(source: Source, archive: Path, unpacked: Path, target: Path) -> None:
    archives.remove(unpacked)
    archives.extract(archive, unpacked)
    if source.nested:
        nested = unpacked / source.nested
        if not nested.is_dir():
            raise ArchiveError(f"{archive}: expected a folder {source.nested!r} in it, {_found(unpacked)}")
        for path in sorted(path for path in nested.iterdir() if archives.is_archive(path)):
            if not hidden(path.name):
                archives.extract(path, nested)
                path.unlink()
    for pattern in source.inside:
        match = [unpacked] if pattern == "." else list(unpacked.glob(pattern))
        match = [path for path in match if not any(map(hidden, path.relative_to(unpacked).parts))]
        if len(match) == 1:
            match[0].rename(target)
            archives.remove(unpacked)
            return
    expected = " or ".join(map(repr, source.inside))
    raise ArchiveError(f"{archive}: expected {expected} in it, once, {_found(unpacked)}")


def _found(folder: Path) -> str:
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))[:10]]
    return f"found: {', '.join(names) or 'nothing'}"
