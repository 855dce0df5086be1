"""Downloads from a server that breaks off, on full disks, and from a hub of our own."""

import hashlib
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steermoe.corpora import download
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.download import Source, SpaceError, UnavailableError
from tests.corpora import official
from tests.corpora.cases import REVISION
from tests.corpora.official import tarred

NOISE = np.random.default_rng(0).bytes(400_000)
FIRST, SECOND = tarred({"top/a": NOISE, "top/b": b"b"}), tarred({"top/c": NOISE[::-1]})


def md5(data: bytes) -> str:
    return f"md5:{hashlib.md5(data).hexdigest()}"


def source(base: str, name: str, data: bytes, **changed: Any) -> Source:
    values = {"bytes": len(data), "checksum": md5(data), "inside": ("top",)} | changed
    return Source(f"{name}.tar.gz", f"held/{name}", f"{base}/{name}.tar.gz", **values)


def both(base: str) -> list[Source]:
    return [source(base, "first", FIRST), source(base, "second", SECOND)]


@pytest.fixture
def dest(root: Path) -> Path:
    folder = root / "dest"
    folder.mkdir()
    return folder


@pytest.fixture
def fetch(section: Any, dest: Path) -> Callable[..., None]:
    """`fetch(sources, mirror=None)` into dest."""
    return lambda sources, mirror=None: download.fetch(
        "two", sources, section("LibriSpeech", mirror=mirror), dest
    )


@pytest.fixture
def served(server: Any) -> Any:
    server.files = {"/first.tar.gz": FIRST, "/second.tar.gz": SECOND}
    return server


def whole(dest: Path) -> bool:
    names = ("first/a", "first/b", "second/c")
    return [(dest / "data/held" / n).read_bytes() for n in names] == [NOISE, b"b", NOISE[::-1]]


def partial(dest: Path) -> Path:
    return dest / ".fetch" / "first.tar.gz.partial"


def test_verified_and_unpacked(served: Any, fetch: Any, dest: Path) -> None:
    served.busy = 1  # asks for patience first
    fetch(both(served.url))
    assert whole(dest)
    assert json.loads((dest / "source.json").read_text()) == {"corpus": "two", "mirror": None}
    assert not [path for path in (dest / ".fetch").rglob("*") if path.is_file()]
    served.asked.clear()
    fetch(both(served.url))  # done already
    assert not served.asked


def test_resumes_where_it_broke_off(served: Any, fetch: Any, dest: Path) -> None:
    """Within a process; and in the next one, which need not trust what is there."""
    served.breaks = [100_000, 0, 150_000]
    fetch(both(served.url)[:1])
    assert (dest / "data/held/first/a").read_bytes() == NOISE
    starts = [asked for _, asked in served.asked]
    assert starts[0] == "" and len(set(starts)) == 3 and all(starts[1:])


@pytest.mark.parametrize(
    ("left", "asked"),
    [(FIRST[:50_000], ["bytes=50000-"]), (FIRST, []), (b"of an older file", ["bytes=16-", ""]),
     (FIRST + b"more", [f"bytes={len(FIRST) + 4}-", ""])],
)  # fmt: skip
def test_a_later_process_resumes(left: bytes, asked: list[str], served: Any, fetch: Any, dest: Path) -> None:
    """What turns out to be of another file is dropped, and the try after it starts anew."""
    partial(dest).parent.mkdir()
    partial(dest).write_bytes(left)
    if len(asked) == 2:
        with pytest.raises((ArchiveError, UnavailableError), match=r"wrong checksum|status 416"):
            fetch(both(served.url)[:1])
    fetch(both(served.url)[:1])
    assert (dest / "data/held/first/a").read_bytes() == NOISE
    assert [start for _, start in served.asked] == asked


def test_a_server_without_ranges(served: Any, fetch: Any, dest: Path) -> None:
    partial(dest).parent.mkdir()
    partial(dest).write_bytes(FIRST[:50_000])
    served.ranges = False
    fetch(both(served.url))
    assert whole(dest)


def test_a_wrong_checksum_spoils_only_its_own_file(served: Any, fetch: Any, dest: Path) -> None:
    served.files["/second.tar.gz"] = bytes(len(SECOND))
    with pytest.raises(ArchiveError, match=r"second\.tar\.gz: wrong checksum: MD5 hash .* expected md5:"):
        fetch(both(served.url))
    assert not (dest / "data/held/second").exists() and not (dest / "source.json").exists()
    served.files["/second.tar.gz"] = SECOND
    served.asked.clear()
    fetch(both(served.url))
    assert whole(dest) and {path for path, _ in served.asked} == {"/second.tar.gz"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"status": 404}, r"first\.tar\.gz cannot be downloaded: status 404"),
        ({"status": 503}, r"first\.tar\.gz cannot be downloaded: status 503"),
        ({"breaks": [50_000, *[0] * 9]}, r"cannot be downloaded: .*Error; is this machine online"),
    ],
)
def test_a_server_that_fails(
    spoil: dict[str, Any], message: str, served: Any, fetch: Any, dest: Path
) -> None:
    """What had arrived is used by the next try."""
    for name, value in spoil.items():
        setattr(served, name, value)
    with pytest.raises(UnavailableError, match=message):
        fetch(both(served.url))
    assert not (dest / "data").exists()
    have = partial(dest).stat().st_size if partial(dest).exists() else 0
    assert FIRST.startswith(partial(dest).read_bytes() if have else b"")
    served.status, served.breaks, served.asked = 200, [], []
    fetch(both(served.url))
    assert whole(dest) and served.asked[0][1] == (f"bytes={have}-" if have else "")


@pytest.mark.parametrize("mirror", [None, "mirror"])
def test_a_full_disk(mirror: str | None, served: Any, fetch: Any, fill: Any, dest: Path) -> None:
    """While downloading and while unpacking, by a limit of 100 kB per file; with more room the command resumes."""
    fill({"first.tar.gz": FIRST, "second.tar.gz": SECOND})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(SpaceError, match=r"the disk is full \(File too large\); free some space"):
            fetch(both(served.url), mirror)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (dest / "data/held/first").exists() and not (dest / "source.json").exists()
    assert mirror or partial(dest).stat().st_size == 100_000
    fetch(both(served.url), mirror)
    assert whole(dest)


def test_a_disk_that_is_too_small(served: Any, fetch: Any, monkeypatch: Any) -> None:
    """It is reported before anything is downloaded."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": len(FIRST)}))
    with pytest.raises(SpaceError, match=r"GB are free, about .* GB are needed; free some space, use fewer"):
        fetch(both(served.url)[:1])
    assert not served.asked


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"inside": ("bottom", "mid*")}, r"expected 'bottom' or 'mid\*' in it, once, found: top, top/a"),
     ({"nested": "top/wav"}, "expected a folder 'top/wav' in it")],
)  # fmt: skip
def test_unexpected_archives(
    changed: dict[str, Any], message: str, served: Any, fetch: Any, dest: Path
) -> None:
    with pytest.raises(ArchiveError, match=message):
        fetch([source(served.url, "first", FIRST, **changed)])
    assert not list((dest / "data/held").glob("*"))


def test_mirrors(served: Any, fetch: Any, fill: Any, dest: Path) -> None:
    """A folder with an archive of any name, one archive, or its URL; a repaired archive is unpacked again."""
    one = [source("http://127.0.0.1:1", "first", FIRST, checksum=None)]
    served.files["/other.tar.gz"] = FIRST
    fill({"own.tar.gz": FIRST, "README.md": b""})
    for mirror in ("mirror", "mirror/own.tar.gz", f"{served.url}/other.tar.gz", served.url):
        fetch(one, mirror)
        assert (dest / "data/held/first/a").read_bytes() == NOISE
    fill({"own.tar.gz": tarred({"top/a": b"repaired"})})
    fetch(one, "mirror")
    assert (dest / "data/held/first/a").read_bytes() == b"repaired"
    fill({"another.tar.gz": FIRST})
    with pytest.raises(
        ArchiveError, match=r"found: another\.tar\.gz, own\.tar\.gz, README\.md|found: README"
    ):
        fetch(one, "mirror")
    with pytest.raises(
        ArchiveError, match=r"mirror 'nowhere' \(.*nowhere\): expected .* found: no such folder"
    ):
        fetch(one, "nowhere")


@pytest.fixture
def our_hub(server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hub's API and files of FLEURS: the table as a git blob, the archive in large file storage."""
    files = official.fleurs("de_de", "test")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    table, archive = files.values()
    large = {"oid": hashlib.sha256(archive).hexdigest(), "size": len(archive), "pointerSize": 130}
    blob = hashlib.sha1(b"blob %d\0" % len(table) + table).hexdigest()
    tree = [
        {"type": "directory", "oid": "1" * 40, "size": 0, "path": "data/de_de/audio"},
        {"type": "file", "oid": blob, "size": len(table), "path": "data/de_de/test.tsv"},
        {"type": "file", "oid": "2" * 40, "size": len(archive), "path": "data/de_de/audio/test.tar.gz", "lfs": large},
    ]  # fmt: skip
    for query in ("recursive=true&expand=false", "recursive=True&expand=False"):
        server.files[f"/api/datasets/google/fleurs/tree/{REVISION}?{query}"] = json.dumps(tree).encode()
    server.files |= {
        f"/datasets/google/fleurs/resolve/{REVISION}/{path}": data for path, data in files.items()
    }
    return server


def fleurs(section: Any, **changed: Any) -> Any:
    values = {"test": ["de_de-test"], "revision": REVISION, "text": "raw", "mirror": None}
    return section("Fleurs", **values | changed)


def test_from_the_hub(our_hub: Any, fetched: Any, section: Any, pitch: Any, root: Path) -> None:
    rows = fetched("fleurs", fleurs(section))
    assert [(row["transcript"], pitch(row)) for row in rows] == [
        ('Er sagte: "Ja, Straße 500!"', 500),
        ("Zweite 600.", 600),
    ]
    with pytest.raises(UnavailableError, match=r"no file 'data/de_de/dev.tsv'; another revision may have it"):
        fetched("fleurs", fleurs(section, test=["de_de-dev"]))
    with pytest.raises(UnavailableError, match=r"data set google/fleurs at revision 0+ cannot be downloaded"):
        fetched("fleurs", fleurs(section, revision="0" * 40))


@pytest.mark.parametrize("changed", ["data/de_de/test.tsv", "data/de_de/audio/test.tar.gz"])
def test_the_hub_sends_another_file(
    our_hub: Any, fetched: Any, section: Any, changed: str, root: Path
) -> None:
    """The same size, one bit off: found by git's SHA-1 of the table, and by SHA-256 of the archive."""
    path = f"/datasets/google/fleurs/resolve/{REVISION}/{changed}"
    good = our_hub.files[path]
    our_hub.files[path] = good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]
    with pytest.raises(ArchiveError, match=f"{changed}: wrong checksum: expected"):
        fetched("fleurs", fleurs(section))
    assert not (root / "raw").exists()
    our_hub.files[path] = good
    assert len(fetched("fleurs", fleurs(section))) == 2
