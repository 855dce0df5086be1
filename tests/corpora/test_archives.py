"""Archives that try to break out, and damaged ones."""

import io
import stat
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import py7zr
import pytest

from steermoe.corpora.archives import ArchiveError, extract
from tests.corpora.official import debian

Member = tuple[str, bytes, bytes | int, str]  # name, content, kind, what it links to


def member(name: str, data: bytes = b"", kind: bytes | int = tarfile.REGTYPE, link: str = "") -> Member:
    return name, data, kind, link


def packed(path: Path, members: list[Member]) -> Path:
    """A zip or tar archive, by its name; kinds are those of tar, translated."""
    if path.suffix == ".deb":
        path.write_bytes(debian(packed(path.with_suffix(".tar.xz"), members).read_bytes()))
        path.with_suffix(".tar.xz").unlink()
    elif path.suffix == ".7z":
        with py7zr.SevenZipFile(path, "w") as file:
            for name, data, _, _ in members:
                file.writestr(data, name)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data, _, _ in members:
                info = zipfile.ZipInfo(name)
                info.external_attr = (stat.S_IFREG | 0o644) << 16
                archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    else:
        with tarfile.open(path, f"w:{path.suffix[1:].replace('tar', '').replace('tgz', 'gz')}") as tar:  # type: ignore[call-overload]
            for name, data, kind, link in members:
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.size = kind, link, len(data)  # type: ignore[assignment]
                tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    "name", ["a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz", "a.zip", "a.7z", "a.deb"]
)
def test_extract(tmp_path: Path, name: str) -> None:
    files = {"top/a.txt": b"a", "top/ä b.txt": b"b", "/".join(["folder"] * 20) + "/deep": b"deep"}
    extract(packed(tmp_path / name, [member(*file) for file in files.items()]), tmp_path / "out")
    found = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert {path.relative_to(tmp_path / "out").as_posix(): path.read_bytes() for path in found} == files


UNSAFE = [
    [member("../escaped", b"x")],
    [member("a/../../escaped", b"x")],
    [member("link", b"", tarfile.SYMTYPE, "..")],
    [member("link", b"", tarfile.SYMTYPE, ".."), member("link/escaped", b"x")],
    [member("a", b"x"), member("hard", b"", tarfile.LNKTYPE, "a")],
    [member("hard", b"", tarfile.LNKTYPE, "../secret")],
    [member("pipe", b"", tarfile.FIFOTYPE)],
    [member("null", b"", tarfile.CHRTYPE)],
    [member("disk", b"", tarfile.BLKTYPE)],
    [member("sparse", b"", tarfile.GNUTYPE_SPARSE)],
    [member("bomb", bytes(2**23))],
]


@pytest.mark.parametrize(
    ("name", "members"),
    [*(("a.tar.gz", members) for members in UNSAFE), *(("a.zip", UNSAFE[i]) for i in (0, 1, -1)),
     *(("a.deb", UNSAFE[i]) for i in (0, 2, -1)), ("a.zip", [member("/tmp/escaped-absolutely", b"x")]),
     ("a.zip", [member("a\\..\\..\\escaped", b"x")])],
)  # fmt: skip
def test_unsafe_members_are_refused(tmp_path: Path, name: str, members: list[Member]) -> None:
    (tmp_path / "secret").write_text("kept")
    with pytest.raises(ArchiveError, match=r"link or device, or outside|over 30 times its size"):
        extract(packed(tmp_path / name, members), tmp_path / "below" / "out")
    assert not list(tmp_path.rglob("escaped*")) and not Path("/tmp/escaped-absolutely").exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink() or path.is_fifo()]
    assert (tmp_path / "secret").read_text() == "kept"


def test_an_absolute_name_in_a_tar_stays_inside(tmp_path: Path) -> None:
    extract(packed(tmp_path / "a.tar", [member("/tmp/escaped-absolutely", b"x")]), tmp_path / "out")
    assert (tmp_path / "out/tmp/escaped-absolutely").exists()
    assert not Path("/tmp/escaped-absolutely").exists()


def test_a_link_in_a_7z_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as file:
        file.write(tmp_path / "link", "link")
    with pytest.raises(ArchiveError, match="'link' is a link or device"):
        extract(tmp_path / "a.7z", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_without_py7zr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "py7zr", None)
    with pytest.raises(ModuleNotFoundError, match=r"a\.7z: .* py7zr; install the extra `sevenzip`"):
        extract(tmp_path / "a.7z", tmp_path / "out")


def test_members_of_a_tar_are_not_kept_in_memory(tmp_path: Path) -> None:
    """MLS has 11 million of them: 1,000 take as much as 100 do."""

    def peak(count: int) -> int:
        archive, info = tmp_path / f"{count}.tar", tarfile.TarInfo("top")
        info.type = tarfile.DIRTYPE
        archive.write_bytes(info.tobuf() * count + bytes(2 * tarfile.BLOCKSIZE))
        tracemalloc.start()
        try:
            extract(archive, tmp_path / str(count))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)  # what is imported and cached by the first one
    assert peak(1_000) < peak(100) + 200_000


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip", "a.7z", "a.deb"])
def test_damage_is_found(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(1).bytes(50_000)
    good = packed(tmp_path / name, [member("noise", noise)]).read_bytes()
    damaged = [b"", b"<html>not found</html>" * 100, good[: len(good) // 2], good[:-4],
               good[:30_000] + bytes([good[30_000] ^ 1]) + good[30_001:]]  # fmt: skip
    if name == "a.tar.gz":
        damaged.append(good[:-8] + bytes([good[-8] ^ 1]) + good[-7:])  # the checksum of the stream
    if name == "a.deb":
        damaged += [good[:8], good.replace(b"data.tar.xz", b"more.tar.xz"), good[:56] + b"x" + good[57:]]
    if name == "a.zip":
        size = (50_000).to_bytes(4, "little")
        damaged.append(good.replace(size, (10).to_bytes(4, "little")))  # less than there is
    for number, data in enumerate(damaged):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ArchiveError, match=f"{name}: damaged, or not an archive"):
            extract(tmp_path / name, tmp_path / f"out-{number}")
