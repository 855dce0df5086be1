"""The files that a corpus is had in: found in a mirror, or downloaded; verified; unpacked.

A fetched corpus is a folder with what the sources hold in `data/` (but for what is used where it lies, in the
user's own unpacked copy), `source.json`, which says what is where, and `<corpus>.lock`.
"""

import json
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from steermoe.atomic_io import project_root, write_text
from steermoe.config import Archived
from steermoe.corpora import archives, checksums
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.checksums import Digest
from steermoe.corpora.downloads import (
    FULL,
    Report,
    SpaceError,
    UnavailableError,
    arrived,
    download,
    is_url,
    progress_bar,
    size_of,
)
from steermoe.corpora.places import NOTE
from steermoe.data import filestate

PARALLEL = 4  # files at a time: downloads wait for servers, and unpacking and hashing leave Python's lock
MAX_BYTES = 2**42  # of a file whose size is not published
MAX_RATIO = 30  # unpacked bytes a byte of an archive; audio shrinks by much less
MAX_FILES = 20_000_000  # members; mls_english has some 11 million
WORK = ".fetch"  # downloads, and notes of what is done


@dataclass(frozen=True)
class Source:
    """A file of a corpus: an archive, or a file used as it is.

    Attributes:
        base: URL of the official folder; "" where nothing can be downloaded.
        path: of the file below it, and in a mirror.
        holds: the folder or file of the corpus that it gives.
        inside: where in the unpacked archive `holds` is; the first that is there.
        bytes: its size, where published; else the server is asked.
        checksum: as of `checksums.verify`, where published.
        factor: unpacked bytes a byte, about; for the check of disk space.
        nested: a folder of the unpacked archive with archives that are to be unpacked into it.
    """

    base: str
    path: str
    holds: str
    inside: tuple[str, ...] = (".",)
    bytes: int | None = None
    checksum: str | None = None
    factor: float = 1.1
    nested: str = ""

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Errand:
    """What is to be done about a source: use `place` as it lies, or take `archive`, or download `url`."""

    source: Source
    place: Path | None = None
    archive: Path | None = None
    url: str = ""


def fetch(corpus: str, sources: Sequence[Source], settings: Archived, dest: Path) -> None:
    """Bring what the sources hold into `dest`/data. A killed try is gone on with.

    Raises:
        UnavailableError: a file cannot be had.
        ArchiveError: the mirror lacks a file; a file is damaged, unsafe, or not the expected one. Of a
            downloaded one nothing is kept then.
        SpaceError: the disk is too small, or full.
    """
    work = dest / WORK
    work.mkdir(exist_ok=True)
    lock = None if settings.lock is None else checksums.read_lock(settings.lock)
    errands = [_errand(corpus, source, sources, settings.mirror) for source in sources]
    if lock is not None and all(errand.place for errand in errands):
        raise ArchiveError(
            f"corpora.{corpus}.lock: without effect, as all is used as it lies in the mirror; legal: null"
        )
    todo = [errand for errand in errands if not errand.place and not _done(work, dest, errand)]
    _check_space(todo, dest)
    _bring_all(corpus, todo, dest, lock)
    digests = {}
    for errand in errands:
        if not errand.place:
            noted = json.loads(_mark(work, errand.source).read_text(encoding="utf-8"))
            digests[errand.source.path] = Digest(noted["bytes"], noted["sha256"])
    note = {
        "corpus": corpus,
        "places": {e.source.holds: str(e.place) if e.place else None for e in errands},
        "verified": sorted(e.source.path for e in errands if not e.place and e.source.checksum),
        "unpublished": sorted(e.source.path for e in errands if not e.place and not e.source.checksum),
    }
    if digests:
        checksums.write_lock(dest / f"{corpus}.lock", corpus, digests)
    filestate.note(dest, {errand.place: None for errand in errands if errand.place})
    write_text(dest / NOTE, json.dumps(note, indent=1) + "\n")


def use_folder(corpus: str, folder: Path, dest: Path, names: Iterable[str] | None = None) -> None:
    """Note that a corpus is used as it lies in `folder`: the files `names` of it, or all."""
    filestate.note(dest, {folder: names})
    note = {"corpus": corpus, "places": {"": str(folder)}}
    write_text(dest / NOTE, json.dumps(note, indent=1) + "\n")


def doubt(dest: Path) -> None:
    """What was fetched does not fit: let the next try get anew what came without a published checksum.

    But not archives, which their own format checks, and which are large. Nothing is done where a fetch failed.
    """
    for mark in (dest / WORK).glob("*.json") if (dest / NOTE).exists() else ():
        checksum = json.loads(mark.read_text(encoding="utf-8"))["of"][-1]
        if checksum is None and not archives.is_archive(mark.stem):
            mark.unlink()


def _errand(corpus: str, source: Source, sources: Sequence[Source], mirror: str | None) -> Errand:
    if mirror is None:
        if not source.base:
            raise UnavailableError(
                f"{source.name} of {corpus} cannot be downloaded by itself; get it by hand (see the card) and "
                f"name its folder by corpora.{corpus}.mirror"
            )
        return Errand(source, url=f"{source.base}/{source.path}")
    if is_url(mirror):
        whole = mirror.endswith(source.name)
        return Errand(source, url=mirror if whole else f"{mirror.rstrip('/')}/{source.path}")
    place = project_root() / mirror
    if place.is_file():
        if len(sources) > 1:
            raise ArchiveError(
                f"mirror {mirror!r} ({place}): one file, but {len(sources)} are needed: "
                f"{', '.join(one.path for one in sources)}; name a folder that has them"
            )
        return Errand(source, archive=place)
    if (place / source.holds).exists():
        return Errand(source, place=(place / source.holds).resolve())
    for path in (place / source.path, place / source.name):
        if path.is_file():
            return Errand(source, archive=path)
    found = ", ".join(sorted(p.name for p in place.iterdir())[:10]) if place.is_dir() else "no such folder"
    raise ArchiveError(
        f"mirror {mirror!r} ({place}): expected {source.holds!r} (unpacked), {source.path!r} or "
        f"{source.name!r} in it; found: {found or 'nothing'}"
    )


def _check_space(todo: Sequence[Errand], dest: Path) -> None:
    """All unpacked, and the largest archives that lie beside it at the same time, less what is there of them.

    A size that is not published is the server's; where that does not tell either, the download looks at it.
    """
    sizes = {e.source.path: _bytes(e) for e in todo}
    unpacked = sum(sizes[e.source.path] * e.source.factor for e in todo)
    downloads = sorted((sizes[e.source.path] for e in todo if not e.archive), reverse=True)[:PARALLEL]
    there = sum(arrived(_download(dest / WORK, e.source)) for e in todo if not e.archive)
    needed, free = int(unpacked + sum(downloads)) - there, shutil.disk_usage(dest).free
    if needed > free:
        raise SpaceError(
            f"{dest}: {free / 1e9:.1f} GB are free, about {needed / 1e9:.1f} GB are needed for "
            f"{', '.join(sizes)}; free some space, use fewer splits, or name an unpacked copy as mirror"
        )


def _bytes(errand: Errand) -> int:
    """Size of the file of an errand, 0 where nobody tells."""
    if errand.archive:
        return errand.archive.stat().st_size
    return errand.source.bytes or size_of(errand.url) or 0


def _bring_all(corpus: str, todo: Sequence[Errand], dest: Path, lock: dict[str, Digest] | None) -> None:
    if not todo:
        return
    known = [errand.source.bytes for errand in todo if not errand.archive]
    total = sum(size or 0 for size in known) if all(known) else None
    stop = threading.Event()
    with progress_bar(corpus, total) as report, ThreadPoolExecutor(PARALLEL) as pool:

        def go_on(more: int) -> None:
            if stop.is_set():
                raise UnavailableError("another file failed")
            report(more)

        try:
            for done in as_completed([pool.submit(_bring, e, dest, lock, go_on) for e in todo]):
                done.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _bring(errand: Errand, dest: Path, lock: dict[str, Digest] | None, report: Report) -> None:
    """Download, verify and unpack one file; what is done is noted last."""
    source, work = errand.source, dest / WORK
    mark = _mark(work, source)
    path = errand.archive or download(errand.url, _download(work, source), source.bytes or MAX_BYTES, report)
    try:
        digest = checksums.verify(path, source.checksum)
        if lock is not None:
            checksums.compare(lock, source.path, path, digest)
        target = dest / "data" / source.holds
        archives.clear(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        if archives.is_archive(path):
            _unpack(source, path, mark.with_suffix(".unpacked"), target)
        else:
            shutil.copyfile(path, target)
    except ArchiveError:
        if not errand.archive:
            path.unlink()  # the next try downloads it anew
        raise
    except OSError as error:
        if error.errno not in FULL:
            raise
        fault = f"the disk is full ({error.strerror}) while {path.name} is unpacked; free some and repeat"
        raise SpaceError(error.errno, fault, str(dest)) from error
    write_text(mark, json.dumps(asdict(digest) | {"of": _identity(errand)}))
    archives.clear(mark.with_suffix(""))


def _unpack(source: Source, archive: Path, unpacked: Path, target: Path) -> None:
    archives.clear(unpacked)
    archives.extract(archive, unpacked, archives.most_unpacked(archive, MAX_RATIO), MAX_FILES)
    if source.nested:
        nested = unpacked / source.nested
        if not nested.is_dir():
            raise ArchiveError(f"{archive}: expected a folder {source.nested!r} in it, {_found(unpacked)}")
        archives.extract_nested(nested, MAX_RATIO, MAX_FILES)
    found = next((unpacked / inside for inside in source.inside if (unpacked / inside).exists()), None)
    if found is None:
        expected = " or ".join(map(repr, source.inside))
        raise ArchiveError(f"{archive}: expected {expected} in it, {_found(unpacked)}")
    found.rename(target)
    archives.clear(unpacked)


def _found(folder: Path) -> str:
    names: Iterator[str] = (p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*"))[:10])
    return f"found: {', '.join(names) or 'nothing'}"


def _mark(work: Path, source: Source) -> Path:
    """The note that a source is done; beside it, its download lies in a folder of its own."""
    return work / f"{source.path.replace('/', '_')}.json"


def _download(work: Path, source: Source) -> Path:
    """Where a source is downloaded to."""
    return _mark(work, source).with_suffix("") / source.name


def _done(work: Path, dest: Path, errand: Errand) -> bool:
    """Whether an earlier try finished with the same file."""
    mark = _mark(work, errand.source)
    if not mark.exists() or not (dest / "data" / errand.source.holds).exists():
        return False
    return json.loads(mark.read_text(encoding="utf-8"))["of"] == _identity(errand)


def _identity(errand: Errand) -> list[str | int | None]:
    """What tells the file of an errand from another one in its place."""
    if errand.archive is None:
        return [errand.url, errand.source.checksum]
    status = errand.archive.stat()
    return [str(errand.archive), status.st_size, status.st_mtime_ns]
