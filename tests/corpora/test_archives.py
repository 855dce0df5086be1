"""Downloads from a real server that breaks off, and archives that try to break out."""

import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from steermoe.corpora import archives
from steermoe.corpora.archives import ArchiveError, UnavailableError, download, extract, obtain

DATA = np.random.default_rng(0).bytes(600_000)
LIMIT = 10**6


@dataclass
class Place:
    """What the server has, how it misbehaves, and what it was asked."""

    data: bytes = DATA
    etag: str | None = '"one"'
    ranges: bool = True
    breaks: list[int] = field(default_factory=list)  # bytes after which the next answers break off
    status: int = 200
    asked: list[str] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    place: Place

    def do_GET(self) -> None:
        place, start = self.place, 0
        asked = self.headers.get("Range", "")
        place.asked.append(asked)
        if place.status != 200:
            self.send_error(place.status)
            return
        if asked and place.ranges and self.headers.get("If-Range") == place.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(place.data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(place.data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(place.data) - 1}/{len(place.data)}")
        if place.etag:
            self.send_header("ETag", place.etag)
        self.send_header("Content-Length", str(len(place.data) - start))
        self.end_headers()
        end = start + place.breaks.pop(0) if place.breaks else len(place.data)
        self.wfile.write(place.data[start:end])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(archives, "PAUSES", (0, 0))
    found = Place()
    handler = type("PlaceHandler", (Handler,), {"place": found})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        found.url = f"http://127.0.0.1:{server.server_port}/v1.tar.gz"
        yield found
        server.shutdown()
        thread.join()


def test_download(place: Place, tmp_path: Path):
    path = download(place.url, tmp_path / "a.tar.gz", LIMIT)
    assert path.read_bytes() == DATA
    assert list(tmp_path.iterdir()) == [path]
    assert download(place.url, path, LIMIT) == path
    assert len(place.asked) == 1


def test_goes_on_where_it_broke_off(place: Place, tmp_path: Path):
    place.breaks = [200_000, 0, 150_000]
    assert download(place.url, tmp_path / "a", LIMIT).read_bytes() == DATA
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in place.asked[1:]]
    assert place.asked[0] == ""
    assert len(starts) == 3
    assert 0 < starts[0] == starts[1] < starts[2]


def test_a_later_process_goes_on(place: Place, tmp_path: Path):
    (tmp_path / "a.partial").write_bytes(DATA[:250_000])
    (tmp_path / "a.etag").write_text('"one"')
    assert download(place.url, tmp_path / "a", LIMIT).read_bytes() == DATA
    assert place.asked == ["bytes=250000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_all_had_arrived(place: Place, tmp_path: Path):
    (tmp_path / "a.partial").write_bytes(DATA)
    (tmp_path / "a.etag").write_text('"one"')
    assert download(place.url, tmp_path / "a", LIMIT).read_bytes() == DATA


@pytest.mark.parametrize(
    "server", [{"etag": '"two"'}, {"ranges": False}, {"etag": None}, {"etag": 'W/"one"'}]
)
def test_another_or_unsure_file_is_taken_from_its_start(place: Place, tmp_path: Path, server: dict):
    for name, value in server.items():
        setattr(place, name, value)
    (tmp_path / "a.partial").write_bytes(b"of an older file")
    if place.etag is not None:
        (tmp_path / "a.etag").write_text('"one"')
    assert download(place.url, tmp_path / "a", LIMIT).read_bytes() == DATA


def test_gives_up_when_nothing_comes(place: Place, tmp_path: Path):
    place.breaks = [100_000, 0, 0, 0]
    with pytest.raises(
        UnavailableError, match=r"v1\.tar\.gz cannot be reached \(.*Error\); is this machine online"
    ):
        download(place.url, tmp_path / "a", LIMIT)
    assert len(place.asked) == 4
    assert DATA.startswith((tmp_path / "a.partial").read_bytes())
    assert not (tmp_path / "a").exists()
    assert download(place.url, tmp_path / "a", LIMIT).read_bytes() == DATA


def test_no_such_file(place: Place, tmp_path: Path):
    place.status = 404
    with pytest.raises(UnavailableError, match=r"v1\.tar\.gz: 404 Not Found"):
        download(place.url, tmp_path / "a", LIMIT)
    assert len(place.asked) == 1


def test_a_server_in_trouble_is_asked_again(place: Place, tmp_path: Path):
    place.status = 503
    with pytest.raises(UnavailableError, match="cannot be reached"):
        download(place.url, tmp_path / "a", LIMIT)
    assert len(place.asked) == 3


def test_nobody_answers(place: Place, tmp_path: Path):
    with pytest.raises(
        UnavailableError, match=r"127\.0\.0\.1:1/a\.tar cannot be reached \(ConnectionError\)"
    ):
        download("http://127.0.0.1:1/a.tar", tmp_path / "a", LIMIT)


def test_too_large(place: Place, tmp_path: Path):
    with pytest.raises(ArchiveError, match="over 300000 bytes, not the expected archive"):
        download(place.url, tmp_path / "a", 300_000)


def test_obtain(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "root"))
    (tmp_path / "mirror").mkdir()
    (tmp_path / "root").mkdir()
    mirrored = tmp_path / "mirror" / "copy.tgz"
    mirrored.write_bytes(b"archive")
    (tmp_path / "mirror" / "README.md").write_text("notes")
    for mirror in ("../mirror", "../mirror/copy.tgz", str(mirrored)):
        found = obtain("http://127.0.0.1:1/x.tar.gz", mirror, tmp_path, LIMIT)
        assert found.samefile(mirrored)
    assert obtain(place.url, None, tmp_path, LIMIT).read_bytes() == DATA
    assert obtain("http://127.0.0.1:1/x", place.url, tmp_path, LIMIT).name == "v1.tar.gz"
    with pytest.raises(ArchiveError, match=r"mirror '../none' \(.*none\): .* found: no such file or folder"):
        obtain(place.url, "../none", tmp_path, LIMIT)
    with pytest.raises(ArchiveError, match="7 bytes, expected at most 6"):
        obtain(place.url, "../mirror", tmp_path, 6)
    (tmp_path / "mirror" / "other.tar").write_bytes(b"")
    with pytest.raises(ArchiveError, match=r"found: copy\.tgz, other\.tar"):
        obtain(place.url, "../mirror", tmp_path, LIMIT)
    (tmp_path / "mirror" / "other.tar").unlink()
    mirrored.unlink()
    with pytest.raises(ArchiveError, match="found: none"):
        obtain(place.url, "../mirror", tmp_path, LIMIT)


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info, data


def packed(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_extract(tmp_path: Path, mode: str):
    deep = "/".join(["folder"] * 40) + "/" + "n" * 200
    archive = packed(
        tmp_path / "a",
        member("top", tarfile.DIRTYPE),
        member("top/a.txt", data=b"a"),
        member("./top/b.txt", data=b"b"),
        member(deep, data=b"deep"),
        mode=mode,
    )
    extract(archive, tmp_path / "out", 100, 10)
    found = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*")}
    assert {name: path.read_bytes() for name, path in found.items() if path.is_file()} == {
        "top/a.txt": b"a",
        "top/b.txt": b"b",
        deep: b"deep",
    }


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([member("../escaped", data=b"x")], "'../escaped' is outside"),
        ([member("a/../../escaped", data=b"x")], "is outside"),
        ([member("/tmp/escaped-absolutely", data=b"x")], "'/tmp/escaped-absolutely' is outside"),
        ([member("a\\..\\..\\escaped", data=b"x")], "is outside"),
        ([member("link", tarfile.SYMTYPE, "..")], "'link' is neither a plain file nor a folder"),
        ([member("link", tarfile.SYMTYPE, ".."), member("link/escaped", data=b"x")], "'link' is neither"),
        ([member("a", data=b"x"), member("hard", tarfile.LNKTYPE, "a")], "'hard' is neither"),
        ([member("hard", tarfile.LNKTYPE, "../secret")], "'hard' is neither"),
        ([member("pipe", tarfile.FIFOTYPE)], "'pipe' is neither"),
        ([member("null", tarfile.CHRTYPE)], "'null' is neither"),
        ([member("disk", tarfile.BLKTYPE)], "'disk' is neither"),
        ([member("a", data=b"x" * 101)], "over 10 members or 100 bytes"),
        ([member(f"a{i}", data=b"") for i in range(11)], "over 10 members or 100 bytes"),
    ],
)
def test_unsafe_members_are_refused(tmp_path: Path, members: list, message: str):
    (tmp_path / "secret").write_text("kept")
    with pytest.raises(ArchiveError, match=message):
        extract(packed(tmp_path / "a.tar.gz", *members), tmp_path / "below" / "out", 100, 10)
    assert not list(tmp_path.rglob("escaped*"))
    assert not Path("/tmp/escaped-absolutely").exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink() or path.is_fifo()]
    assert (tmp_path / "secret").read_text() == "kept"


def test_a_sparse_member_is_refused(tmp_path: Path):
    """A GNU sparse file of 1 TB takes 512 bytes in the archive."""
    info = tarfile.TarInfo("sparse")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"0" * 4 + b"7" * 7 + b"\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(ArchiveError, match="'sparse' is neither a plain file nor a folder"):
        extract(tmp_path / "a.tar", tmp_path / "out", 2**40, 10)


def test_damage_is_found(tmp_path: Path):
    noise = np.random.default_rng(1).bytes(50_000)
    good = packed(tmp_path / "a.tar.gz", member("noise", data=noise)).read_bytes()
    extract(tmp_path / "a.tar.gz", tmp_path / "good", LIMIT, 10)
    damaged = {
        "empty": b"",
        "text": b"<html>not found</html>" * 100,
        "cut in half": good[: len(good) // 2],
        "cut at the end": good[:-4],
        "a flipped bit": good[:30_000] + bytes([good[30_000] ^ 1]) + good[30_001:],
        "a wrong checksum": good[:-8] + bytes([good[-8] ^ 1]) + good[-7:],
    }
    for number, (name, data) in enumerate(damaged.items()):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ArchiveError, match=f"{name}: damaged, or not a tar archive"):
            extract(path, tmp_path / f"out-{number}", LIMIT, 10)
