"""Downloads from a real server that breaks off, by processes that are killed, on disks that are full."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.downloads import SpaceError, UnavailableError, download, obtain

DATA = np.random.default_rng(0).bytes(600_000)
LIMIT = 10**6


@pytest.fixture
def place(server: Any) -> Any:
    server.files["/v1.tar.gz"] = DATA
    server.url += "/v1.tar.gz"
    return server


def test_download(place: Any, tmp_path: Path):
    path = download(place.url, tmp_path / "a.tar.gz", LIMIT)
    assert path.read_bytes() == DATA
    assert list(tmp_path.iterdir()) == [path]
    assert download(place.url, path, LIMIT) == path
    assert len(place.asked) == 1


def test_a_busy_server_is_asked_later(place: Any, tmp_path: Path):
    place.busy, began = 2, time.monotonic()
    assert download(place.url, tmp_path / "a", LIMIT).read_bytes() == DATA
    assert time.monotonic() - began >= 2 and len(place.asked) == 3
    place.busy = 9
    with pytest.raises(UnavailableError, match="429, the server wants to be asked later"):
        download(place.url, tmp_path / "b", LIMIT)


def test_goes_on_where_it_broke_off(place: Any, tmp_path: Path):
    place.breaks = [200_000, 0, 150_000]
    assert download(place.url, tmp_path / "a", LIMIT).read_bytes() == DATA
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in place.asked[1:]]
    assert place.asked[0] == ""
    assert len(starts) == 3
    assert 0 < starts[0] == starts[1] < starts[2]


def test_a_later_process_goes_on(place: Any, tmp_path: Path):
    (tmp_path / "a.partial").write_bytes(DATA[:250_000])
    (tmp_path / "a.etag").write_text('"one"')
    assert download(place.url, tmp_path / "a", LIMIT).read_bytes() == DATA
    assert place.asked == ["bytes=250000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_all_had_arrived(place: Any, tmp_path: Path):
    (tmp_path / "a.partial").write_bytes(DATA)
    (tmp_path / "a.etag").write_text('"one"')
    assert download(place.url, tmp_path / "a", LIMIT).read_bytes() == DATA


@pytest.mark.parametrize("other", [{"etag": '"two"'}, {"ranges": False}, {"etag": None}, {"etag": 'W/"one"'}])
def test_another_or_unsure_file_is_taken_from_its_start(place: Any, tmp_path: Path, other: dict):
    for name, value in other.items():
        setattr(place, name, value)
    (tmp_path / "a.partial").write_bytes(b"of an older file")
    if place.etag is not None:
        (tmp_path / "a.etag").write_text('"one"')
    assert download(place.url, tmp_path / "a", LIMIT).read_bytes() == DATA


def test_gives_up_when_nothing_comes(place: Any, tmp_path: Path):
    place.breaks = [100_000, 0, 0, 0]
    with pytest.raises(
        UnavailableError, match=r"v1\.tar\.gz cannot be reached \(.*Error\); is this machine online"
    ):
        download(place.url, tmp_path / "a", LIMIT)
    assert len(place.asked) == 4
    assert DATA.startswith((tmp_path / "a.partial").read_bytes())
    assert not (tmp_path / "a").exists()
    assert download(place.url, tmp_path / "a", LIMIT).read_bytes() == DATA


def test_no_such_file(place: Any, tmp_path: Path):
    place.status = 404
    with pytest.raises(UnavailableError, match=r"v1\.tar\.gz: 404 Not Found"):
        download(place.url, tmp_path / "a", LIMIT)
    assert len(place.asked) == 1


def test_a_server_in_trouble_is_asked_again(place: Any, tmp_path: Path):
    place.status = 503
    with pytest.raises(UnavailableError, match="cannot be reached"):
        download(place.url, tmp_path / "a", LIMIT)
    assert len(place.asked) == 3


def test_nobody_answers(place: Any, tmp_path: Path):
    with pytest.raises(
        UnavailableError, match=r"127\.0\.0\.1:1/a\.tar cannot be reached \(ConnectionError\)"
    ):
        download("http://127.0.0.1:1/a.tar", tmp_path / "a", LIMIT)


def test_too_large(place: Any, tmp_path: Path):
    with pytest.raises(ArchiveError, match="over 300000 bytes, not the expected file"):
        download(place.url, tmp_path / "a", 300_000)


def test_obtain(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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


def test_goes_on_by_the_date_where_there_is_no_etag(place: Any, tmp_path: Path):
    place.etag, place.modified = None, "Wed, 21 Oct 2015 07:28:00 GMT"
    place.breaks = [200_000]
    assert download(place.url, tmp_path / "a", LIMIT).read_bytes() == DATA
    assert place.asked[1].startswith("bytes=")
    (tmp_path / "b.partial").write_bytes(b"of another date")
    (tmp_path / "b.etag").write_text("Thu, 22 Oct 2015 07:28:00 GMT")
    assert download(place.url, tmp_path / "b", LIMIT).read_bytes() == DATA


def test_progress_is_reported_to_the_byte(place: Any, tmp_path: Path):
    """Whatever happens: what was there, what came, less what was thrown away, is the whole."""
    for number, (partial, etag) in enumerate([(b"", ""), (DATA[:9], '"one"'), (b"older", '"zero"')]):
        path, reports = tmp_path / f"{number}", []
        path.with_name(f"{number}.partial").write_bytes(partial)
        path.with_name(f"{number}.etag").write_text(etag)
        place.breaks = [100_000]
        download(place.url, path, LIMIT, reports.append)
        assert sum(reports) == len(DATA)


def script(place: Any, path: Path, before: str = "") -> list[str]:
    code = f"""
from pathlib import Path
{before}
from steermoe.corpora.downloads import download
download({place.url!r}, Path({str(path)!r}), 10**7)
"""
    return [sys.executable, "-c", code]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path.cwd())}


def test_killed_and_gone_on_with(place: Any, tmp_path: Path):
    place.pause = 0.05
    process = subprocess.Popen(script(place, tmp_path / "a"), env=environment(), stdout=subprocess.DEVNULL)
    partial, deadline = tmp_path / "a.partial", time.monotonic() + 300
    while not partial.exists() or partial.stat().st_size < 150_000:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "a").exists()
    have = partial.stat().st_size
    assert 150_000 <= have < len(DATA)
    assert partial.read_bytes() == DATA[:have]
    place.pause = 0
    assert download(place.url, tmp_path / "a", LIMIT).read_bytes() == DATA
    assert place.asked == ["", f"bytes={have}-"]


def test_a_full_disk(place: Any, tmp_path: Path):
    """No file may be larger than 200 kB: the system refuses to write on, as a full disk does."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))"
    run = subprocess.run(
        script(place, tmp_path / "a", limit), env=environment(), capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "SpaceError: " in run.stderr
    assert f"the disk is full (File too large) after 200000 bytes of {place.url}" in run.stderr
    assert "which goes on from there" in run.stderr
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "a.partial").read_bytes() == DATA[:200_000]
    assert download(place.url, tmp_path / "a", LIMIT).read_bytes() == DATA
    assert place.asked == ["", "bytes=200000-"]


def test_another_file_for_which_there_is_no_room_spoils_nothing(place: Any, tmp_path: Path):
    """The file was replaced by one of 3 TB: what had arrived of the first one is not taken for the beginning of it."""
    (tmp_path / "a.partial").write_bytes(DATA[:200_000])
    (tmp_path / "a.etag").write_text('"one"')
    place.etag, place.told = '"two"', {"/v1.tar.gz": 3 * 10**12}
    with pytest.raises(SpaceError, match=r"v1\.tar\.gz: 3000\.0 GB are to come, \d+\.\d GB are free"):
        download(place.url, tmp_path / "a", 4 * 10**12)
    assert (tmp_path / "a.etag").read_text() == '"one"'
    assert (tmp_path / "a.partial").read_bytes() == DATA[:200_000]


def test_space_error_names_the_file(place: Any, tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(SpaceError, match="the disk is full") as caught:
            download(place.url, tmp_path / "a", LIMIT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path / "a.partial")
