"""Archives that try to break out, and damaged ones."""

import importlib.util
import io
import stat
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from steermoe.corpora.archives import ArchiveError, extract, extract_nested

LIMIT = 10**6


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
        ([member("a", data=b"x"), member("./a", data=b"y")], "'./a' is there twice"),
        ([member("C:/escaped", data=b"x")], "is outside"),
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


def test_members_of_a_tar_are_not_kept_in_memory(tmp_path: Path):
    """MLS has 11 million of them: 20,000 take as much as 2,000 do."""

    def peak(count: int) -> int:
        archive = tmp_path / f"{count}.tar"
        folder = member("top", tarfile.DIRTYPE)[0].tobuf()
        archive.write_bytes(folder * count + bytes(2 * tarfile.BLOCKSIZE))
        tracemalloc.start()
        try:
            extract(archive, tmp_path / str(count), LIMIT, count)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)  # what is imported and cached by the first one
    assert peak(20_000) < peak(2_000) + 500_000


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


def zipped(path: Path, *members: tuple[str, bytes, int]) -> Path:
    """A zip archive; the third of a member is its kind in Unix' mode."""
    with zipfile.ZipFile(path, "w") as file:
        for name, data, kind in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (kind | 0o644) << 16
            file.writestr(info, data)
    return path


def test_extract_zip(tmp_path: Path):
    archive = zipped(tmp_path / "a.zip", ("top/a.txt", b"a", stat.S_IFREG), ("b.txt", b"b", 0))
    extract(archive, tmp_path / "out", 100, 10)
    assert (tmp_path / "out" / "top" / "a.txt").read_bytes() == b"a"
    assert (tmp_path / "out" / "b.txt").read_bytes() == b"b"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../escaped", b"x", stat.S_IFREG)], "'../escaped' is outside"),
        ([("/tmp/escaped-absolutely", b"x", stat.S_IFREG)], "is outside"),
        ([("a\\..\\escaped", b"x", stat.S_IFREG)], "is outside"),
        ([("link", b"..", stat.S_IFLNK)], "'link' is neither a plain file nor a folder"),
        ([("link", b"..", stat.S_IFLNK), ("link/escaped", b"x", 0)], "'link' is neither"),
        ([("disk", b"", stat.S_IFBLK)], "'disk' is neither"),
        ([("pipe", b"", stat.S_IFIFO)], "'pipe' is neither"),
        ([("bomb", bytes(101), 0)], "over 10 members or 100 bytes"),
        ([("a", b"x", 0), ("./a", b"y", 0)], "is there twice"),
    ],
)
def test_unsafe_zip_members_are_refused(tmp_path: Path, members: list, message: str):
    with pytest.raises(ArchiveError, match=message):
        extract(zipped(tmp_path / "a.zip", *members), tmp_path / "below" / "out", 100, 10)
    assert not list(tmp_path.rglob("escaped*"))
    assert not Path("/tmp/escaped-absolutely").exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink() or path.is_fifo()]


def test_a_zip_that_lies_about_a_size(tmp_path: Path):
    """A member that says 10 bytes and holds 10 000: no more than the 10 are written."""
    good = zipped(tmp_path / "a.zip", ("a", b"x" * 10_000, 0)).read_bytes()
    size = (10_000).to_bytes(4, "little")
    assert good.count(size) == 2
    (tmp_path / "b.zip").write_bytes(good.replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(ArchiveError, match=r"b\.zip: damaged, or not a zip archive"):
        extract(tmp_path / "b.zip", tmp_path / "out", 100, 10)
    assert (tmp_path / "out" / "a").stat().st_size <= 10


def test_a_damaged_zip(tmp_path: Path):
    noise = np.random.default_rng(2).bytes(5000)
    good = zipped(tmp_path / "a.zip", ("noise", noise, 0)).read_bytes()
    for number, data in enumerate([b"", good[:2000], good[:3000] + b"?" + good[3001:]]):
        (tmp_path / f"{number}.zip").write_bytes(data)
        with pytest.raises(ArchiveError, match="damaged, or not a zip archive"):
            extract(tmp_path / f"{number}.zip", tmp_path / f"out-{number}", LIMIT, 10)


def test_7z(tmp_path: Path):
    """Without py7zr an error that tells how to get it; with it, the real thing."""
    archive = tmp_path / "a.7z"
    if importlib.util.find_spec("py7zr") is None:
        archive.write_bytes(b"7z")
        with pytest.raises(ModuleNotFoundError, match=r"a\.7z: .* py7zr; install the extra `sevenzip`"):
            extract(archive, tmp_path / "out", LIMIT, 10)
        return
    import py7zr  # pyright: ignore[reportMissingImports]

    with py7zr.SevenZipFile(archive, "w") as file:
        file.writestr(b"sound", "development/a.wav")
    extract(archive, tmp_path / "out", LIMIT, 10)
    assert (tmp_path / "out" / "development" / "a.wav").read_bytes() == b"sound"
    with pytest.raises(ArchiveError, match="over 10 members or 2 bytes"):
        extract(archive, tmp_path / "again", 2, 10)


def test_nested(tmp_path: Path):
    for speaker in ("S1", "S2"):
        inner = packed(tmp_path / f"{speaker}.tar.gz", member(f"train/{speaker}/a.wav", data=b"sound"))
        assert inner.stat().st_size < 2**20
    assert extract_nested(tmp_path, max_ratio=30, max_files=10) == 2
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.wav")) == [
        "train/S1/a.wav",
        "train/S2/a.wav",
    ]
    assert not list(tmp_path.glob("*.tar.gz"))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([member("../escaped", data=b"x")], "is outside"),
        ([member("link", tarfile.SYMTYPE, "..")], "'link' is neither"),
        ([member("train/S1/a.wav", data=b"another's")], "is there twice"),
        ([member("bomb", data=bytes(2**22))], "over 10 members or"),
    ],
)
def test_nested_under_the_same_guard(tmp_path: Path, members: list, message: str):
    folder = tmp_path / "wav"
    (folder / "train" / "S1").mkdir(parents=True)
    (folder / "train" / "S1" / "a.wav").write_bytes(b"kept")
    packed(folder / "S1.tar.gz", *members)
    with pytest.raises(ArchiveError, match=rf"S1\.tar\.gz: .*{message}"):
        extract_nested(folder, max_ratio=30, max_files=10)
    assert not list(tmp_path.rglob("escaped*"))
    assert (folder / "train" / "S1" / "a.wav").read_bytes() == b"kept"
