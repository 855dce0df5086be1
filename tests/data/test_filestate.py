"""The state of files outside the repository: what is a change, and what is none."""

import os
from pathlib import Path

import pytest

from steermoe.data import filestate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two files and a linked folder with one."""
    (tmp_path / "own").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for path, text in (("own/a.txt", "one"), ("own/b.wav", "two"), ("elsewhere/c.wav", "three")):
        (tmp_path / path).write_text(text)
    (tmp_path / "own" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "own" / "linked" / "back").symlink_to(tmp_path / "own")
    return tmp_path / "own"


def test_every_file_once_through_links(folder: Path):
    assert list(filestate.files_in(folder)) == ["a.txt", "b.wav", "linked/c.wav"]
    assert list(filestate.files_in(folder / "a.txt")) == [""]
    assert list(filestate.files_in(folder / "none")) == []


def test_content_decides_and_not_the_time(folder: Path):
    before = filestate.digests(folder)
    os.utime(folder / "b.wav")
    assert filestate.digests(folder) == before
    times = (folder / "a.txt").stat()
    (folder / "a.txt").write_text("eno")  # as long as before
    os.utime(folder / "a.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    after = filestate.digests(folder)
    assert {name for name in before if before[name] != after[name]} == {"a.txt"}


def test_a_large_file_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(filestate, "LARGEST", 2)
    before = filestate.digests(folder)
    assert before == filestate.glance(folder)
    os.utime(folder / "b.wav", ns=(1, 1))
    assert filestate.digests(folder) != before


@pytest.mark.parametrize("kind", ["edited", "deleted", "replaced"])
def test_a_change_since_the_listing_is_refused(folder: Path, tmp_path: Path, kind: str):
    fetched = tmp_path / "fetched"
    filestate.note(fetched, {folder: ["a.txt", "b.wav", "none.txt"]})
    (folder / "added.wav").write_text("not listed, so not of interest")
    (folder / "linked" / "c.wav").write_text("neither")
    filestate.check(fetched)
    if kind == "edited":
        (folder / "b.wav").write_text("tow")
    elif kind == "replaced":
        (folder / "b.wav").unlink()
        (folder / "a.txt").rename(folder / "b.wav")
    else:
        (folder / "b.wav").unlink()
    with pytest.raises(filestate.ChangedError, match=r"b\.wav|a\.txt") as caught:
        filestate.check(fetched)
    assert ("is gone" in str(caught.value)) == (kind != "edited") and "repro" in str(caught.value)


def test_nothing_noted_nothing_to_compare(tmp_path: Path):
    filestate.note(tmp_path, {})
    filestate.check(tmp_path)
    assert list(tmp_path.iterdir()) == []
