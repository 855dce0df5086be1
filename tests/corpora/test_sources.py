"""Files of a corpus from mirrors and servers: verified before use, noted, gone on with; nothing half-made is whole."""

import gzip
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steermoe.corpora import sources
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.checksums import ChecksumError
from steermoe.corpora.downloads import SpaceError, UnavailableError
from steermoe.corpora.places import locate
from steermoe.corpora.sources import Source

NOISE = np.random.default_rng(0).bytes(400_000)


def packed(**files: bytes) -> bytes:
    """A tar archive with a folder `top`."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"top/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


FIRST, SECOND = packed(a=NOISE, b=b"b"), packed(c=NOISE[::-1])


def md5(data: bytes) -> str:
    return f"md5:{hashlib.md5(data).hexdigest()}"


def source(base: str, name: str, data: bytes, **changed: Any) -> Source:
    values = {"bytes": len(data), "checksum": md5(data), "inside": ("top",)} | changed
    return Source(base, f"{name}.tar", holds=f"held/{name}", **values)


def both(base: str) -> list[Source]:
    return [source(base, "first", FIRST), source(base, "second", SECOND)]


@pytest.fixture
def dest(root: Path) -> Path:
    folder = root / "dest"
    folder.mkdir()
    return folder


@pytest.fixture
def settings(section: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **changed: section("LibriSpeech", **{"mirror": None} | changed)


@pytest.fixture
def served(server: Any) -> Any:
    server.files = {"/first.tar": FIRST, "/second.tar": SECOND}
    return server


def whole(dest: Path) -> bool:
    names = ("first/a", "first/b", "second/c")
    return [(dest / "data/held" / n).read_bytes() for n in names] == [NOISE, b"b", NOISE[::-1]]


def test_downloaded_verified_unpacked_and_noted(served: Any, settings: Any, dest: Path):
    served.breaks = [100_000, 200_000]
    sources.fetch("two", both(served.url), settings(), dest)
    assert whole(dest)
    assert json.loads((dest / "source.json").read_text()) == {
        "corpus": "two",
        "places": {"held/first": None, "held/second": None},
        "verified": ["first.tar", "second.tar"],
        "unpublished": [],
    }
    lock = json.loads((dest / "two.lock").read_text())
    assert lock["files"]["first.tar"] == {"bytes": len(FIRST), "sha256": hashlib.sha256(FIRST).hexdigest()}
    assert not [path for path in (dest / ".fetch").rglob("*.tar*") if path.suffix != ".json"]
    asked = len(served.asked)
    sources.fetch("two", both(served.url), settings(), dest)  # done already
    assert len(served.asked) == asked


def test_a_wrong_checksum(served: Any, settings: Any, dest: Path):
    """As large as it must be, but other bytes."""
    served.files["/second.tar"] = bytes(len(SECOND))
    with pytest.raises(ChecksumError) as caught:
        sources.fetch("two", both(served.url), settings(), dest)
    found = md5(bytes(len(SECOND)))
    assert f"second.tar: wrong checksum, found {found}, expected {md5(SECOND)}" in str(caught.value)
    assert not (dest / "data/held/second").exists()
    assert not (dest / "source.json").exists()
    assert not [path for path in (dest / ".fetch").rglob("*") if path.is_file() and "second" in path.name]
    served.files["/second.tar"] = SECOND
    sources.fetch("two", both(served.url), settings(), dest)
    assert whole(dest)


def test_cut_short_by_the_server(served: Any, settings: Any, dest: Path):
    """The server says that half a file is all of it."""
    served.files["/first.tar"] = FIRST[:200_000]
    with pytest.raises(ChecksumError, match=r"first\.tar: wrong checksum"):
        sources.fetch("two", both(served.url), settings(), dest)
    assert not (dest / "data/held/first").exists()


def test_more_than_expected(served: Any, settings: Any, dest: Path):
    served.files["/first.tar"] = FIRST + b"more"
    with pytest.raises(ArchiveError, match=rf"over {len(FIRST)} bytes, not the expected file"):
        sources.fetch("two", both(served.url), settings(), dest)


def test_killed_at_any_point_and_gone_on_with(served: Any, settings: Any, dest: Path, root: Path):
    """A process is killed again and again while it downloads, verifies and unpacks; the last one finishes."""
    served.pause = 0.04
    code = f"""
from pathlib import Path
from steermoe.config import LibriSpeech
from steermoe.corpora import sources
from steermoe.corpora.places import locate
from steermoe.corpora.sources import Source
settings = LibriSpeech.model_validate_json({settings().model_dump_json()!r})
sources.fetch("two", {both(served.url)!r}, settings, Path({str(dest)!r}))
"""
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    finished = False
    for wait in (0.02, 0.1, 0.15, 0.2, None):
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
        before, deadline = len(served.asked), time.monotonic() + 300
        while wait is not None and process.poll() is None and len(served.asked) == before:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        if wait is not None:
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
        finished = process.wait() == 0
        assert (dest / "source.json").exists() or not finished
        for name, files in (("first", {"a", "b"}), ("second", {"c"})):
            held = dest / "data/held" / name
            assert not held.exists() or {path.name for path in held.iterdir()} == files
    assert finished
    assert whole(dest)
    assert any(asked for asked in served.asked), "no download was gone on with"


def test_one_fails_while_another_runs(served: Any, settings: Any, dest: Path):
    del served.files["/second.tar"]
    served.pause = 0.5
    with pytest.raises(UnavailableError, match=r"second\.tar: 404 Not Found"):
        sources.fetch("two", both(served.url), settings(), dest)
    # It was given up: its pieces, half a second each, would take 4 s.
    assert not (dest / "data/held/first").exists()


def test_disk_space_is_looked_at_first(
    served: Any, settings: Any, dest: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(dest)
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda path: usage._replace(free=1_600_000))
    with pytest.raises(
        SpaceError, match=r"0\.0 GB are free, about 0\.0 GB are needed for first\.tar, second"
    ):
        sources.fetch("two", both(served.url), settings(), dest)
    assert not served.asked
    needed = 2.1 * (len(FIRST) + len(SECOND))  # both archives, and both unpacked
    assert needed > 1_600_000
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda path: usage._replace(free=needed + 1))
    sources.fetch("two", both(served.url), settings(), dest)


@pytest.mark.parametrize("heads", [True, False])
def test_a_size_that_is_not_published_is_the_servers(served: Any, settings: Any, dest: Path, heads: bool):
    """3 TB, more than this disk has: refused before anything is written, also where the server knows no HEAD."""
    served.told, served.heads = {"/first.tar": 3 * 10**12}, heads
    assert shutil.disk_usage(dest).free < 3 * 10**12
    unknown = [source(served.url, "first", FIRST, bytes=None)]
    about = r"GB are free, about 6300\.0 GB are needed for first\.tar" if heads else r"3000\.0 GB are to come"
    with pytest.raises(SpaceError, match=about):
        sources.fetch("one", unknown, settings(), dest)
    assert len(served.asked) == (0 if heads else 1)
    assert not [path for path in dest.rglob("*") if path.is_file()]
    served.told = {}
    sources.fetch("one", unknown, settings(), dest)
    assert (dest / "data/held/first/a").read_bytes() == NOISE


def test_what_arrived_needs_no_space_any_more(
    served: Any, settings: Any, dest: Path, monkeypatch: pytest.MonkeyPatch
):
    unknown = [source(served.url, "first", FIRST, bytes=None)]
    partial = dest / ".fetch/first.tar/first.tar.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(FIRST[:300_000])
    partial.with_suffix(".etag").write_text('"one"')
    usage, needed = shutil.disk_usage(dest), int(2.1 * len(FIRST)) - 300_000
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(SpaceError, match=r"needed for first\.tar"):
        sources.fetch("one", unknown, settings(), dest)
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda path: usage._replace(free=needed))
    sources.fetch("one", unknown, settings(), dest)
    assert served.asked == ["bytes=300000-"] and (dest / "data/held/first/a").read_bytes() == NOISE


def test_a_lock(served: Any, settings: Any, dest: Path, root: Path):
    """A file without published checksum: noted at the first download, and compared at the next."""
    unknown = [source(served.url, "first", FIRST, bytes=None, checksum=None)]
    sources.fetch("one", unknown, settings(), dest)
    assert json.loads((dest / "source.json").read_text())["unpublished"] == ["first.tar"]
    lock = root / "one.lock"
    lock.write_bytes((dest / "one.lock").read_bytes())

    def again(number: int, **changed: Any) -> Path:
        folder = root / f"again-{number}"
        folder.mkdir()
        sources.fetch("one", unknown, settings(**{"lock": "one.lock"} | changed), folder)
        return folder

    assert (again(1) / "one.lock").read_bytes() == lock.read_bytes()
    served.files["/first.tar"] = SECOND
    with pytest.raises(ChecksumError) as caught:
        again(2)
    told = str(caught.value)
    assert "not the file of the lock" in told
    assert hashlib.sha256(FIRST).hexdigest() in told
    assert hashlib.sha256(SECOND).hexdigest() in told
    assert not (root / "again-2/data/held/first").exists()
    lock.write_text('{"files": {}}')
    with pytest.raises(ChecksumError, match=r"'first.tar' is not in the lock, which has: nothing"):
        again(3)
    lock.write_text("[]")
    with pytest.raises(ChecksumError, match=r"lock 'one.lock' .*not a lock file .*<corpus>.lock"):
        again(4)
    with pytest.raises(ChecksumError, match="No such file"):
        again(5, lock="none.lock")


def test_mirrors(served: Any, settings: Any, root: Path, fill: Callable[..., Path]):
    """Archives in a folder, by their path or name; unpacked in a folder; a URL; mixed."""
    mirror = fill({"first.tar": FIRST, "held/second/c": NOISE[::-1]})

    def fetch(number: int, given: str, which: list[Source] | None = None) -> Path:
        folder = root / f"dest-{number}"
        folder.mkdir()
        sources.fetch("two", which or both("http://127.0.0.1:1"), settings(mirror=given), folder)
        return folder

    mixed = fetch(1, "mirror")
    place = locate(mixed)
    assert place("held/first/a") == mixed / "data/held/first/a"
    assert place("held/second/c") == mirror / "held/second/c"
    assert not (mixed / "data/held/second").exists()
    assert set(json.loads((mixed / "two.lock").read_text())["files"]) == {"first.tar"}
    assert whole(fetch(2, served.url))
    one = [source("", "first", FIRST)]
    assert (fetch(3, "mirror/first.tar", one) / "data/held/first/b").read_bytes() == b"b"
    assert (fetch(4, f"{served.url}/first.tar", one) / "data/held/first/b").read_bytes() == b"b"
    with pytest.raises(ArchiveError, match=r"one file, but 2 are needed: first\.tar, second\.tar"):
        fetch(5, "mirror/first.tar")
    with pytest.raises(ArchiveError, match=r"mirror 'none' \(.*/none\): expected .*: no such folder"):
        fetch(6, "none")
    (mirror / "held/second/c").unlink()
    (mirror / "held/second").rmdir()
    with pytest.raises(ArchiveError, match=r"expected 'held/second' \(unpacked\), 'second.tar'.*first.tar"):
        fetch(7, "mirror")
    fill({"second.tar": b"another one"})
    with pytest.raises(ChecksumError, match=r"mirror/second\.tar: wrong checksum"):
        fetch(8, "mirror")
    assert (mirror / "second.tar").exists()  # the user's own is never deleted


def test_a_change_in_an_unpacked_mirror_is_noticed(settings: Any, root: Path, fill: Callable[..., Path]):
    mirror, one, notes = fill({"held/first/a": b"a"}), [source("", "first", FIRST)], []
    for number in range(3):
        folder = root / f"dest-{number}"
        folder.mkdir()
        sources.fetch("one", one, settings(mirror="mirror"), folder)
        notes.append((folder / "files.json").read_text())
        if number == 1:
            (mirror / "held/first/a").write_bytes(b"other")
    assert notes[0] == notes[1] != notes[2]
    lock = root / "a.lock"
    lock.write_text('{"files": {}}')
    with pytest.raises(ArchiveError, match="lock: without effect"):
        sources.fetch("one", one, settings(mirror="mirror", lock="a.lock"), root / "dest-0")


def test_no_official_place(settings: Any, dest: Path):
    with pytest.raises(
        UnavailableError, match=r"first\.tar of one cannot be downloaded.*corpora\.one\.mirror"
    ):
        sources.fetch("one", [source("", "first", FIRST)], settings(), dest)


def test_hostile_and_unexpected_archives(served: Any, settings: Any, dest: Path, root: Path):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("top/../../../../escaped"))
    served.files["/first.tar"] = data.getvalue()
    one = source(served.url, "first", data.getvalue())
    with pytest.raises(ArchiveError, match="outside of the archive's folder"):
        sources.fetch("one", [one], settings(), dest)
    assert not list(root.rglob("escaped"))
    assert not (dest / "data/held/first").exists()
    served.files["/first.tar"] = FIRST
    other = source(served.url, "first", FIRST, inside=("bottom", "middle"))
    with pytest.raises(ArchiveError, match="expected 'bottom' or 'middle' in it, found: top, top/a, top/b"):
        sources.fetch("one", [other], settings(), dest)
    nested = source(served.url, "first", FIRST, nested="top/wav")
    with pytest.raises(ArchiveError, match="expected a folder 'top/wav' in it"):
        sources.fetch("one", [nested], settings(), dest)


def test_a_git_checksum(served: Any, settings: Any, dest: Path):
    """Small files of the hub have git's own SHA-1, of a header and the content."""
    text = b"hello\n"
    served.files["/a.tsv"] = text
    blob = "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object of it
    sources.fetch("one", [Source(served.url, "a.tsv", "a.tsv", checksum=f"git:{blob}")], settings(), dest)
    assert (dest / "data/a.tsv").read_bytes() == text


def test_a_disk_that_fills_up_while_unpacking(settings: Any, root: Path, dest: Path):
    """An archive of 1 kB with a file of 600 kB, where no file may be larger than 200 kB."""
    (root / "mirror").mkdir()
    path = root / "mirror" / "first.tar.gz"
    path.write_bytes(gzip.compress(packed(a=bytes(600_000))))
    one = Source("", "first.tar.gz", "held/first", ("top",))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(SpaceError, match=r"the disk is full \(File too large\) while first\.tar\.gz"):
            sources.fetch("one", [one], settings(mirror="mirror"), dest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (dest / "data/held/first").exists()
    assert not (dest / "source.json").exists()
    sources.fetch("one", [one], settings(mirror="mirror"), dest)
    assert (dest / "data/held/first/a").read_bytes() == bytes(600_000)
