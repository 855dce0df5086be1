"""AISHELL-1 with an archive a speaker in the archive, and AISHELL-2 as it lies in a folder."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steermoe import corpora
from steermoe.corpora import aishell1
from steermoe.corpora import aishell2 as aishell2_reader
from steermoe.corpora.archives import ArchiveError
from tests.corpora.official import AISHELL_SPEAKERS as SPEAKERS
from tests.corpora.official import AISHELL_TRANSCRIPT as TRANSCRIPT
from tests.corpora.official import aishell1 as archive
from tests.corpora.official import aishell1_utterances as utterances
from tests.corpora.official import aishell2, tarred


@pytest.fixture
def official() -> dict[str, bytes]:
    return archive()


@pytest.fixture
def pack(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, bytes]], None]:
    """Makes the mirror's archive, whose checksum is taken for the official one."""

    def write(files: dict[str, bytes]) -> None:
        data = tarred(files)
        (root / "mirror").mkdir()
        (root / "mirror" / "data_aishell.tgz").write_bytes(data)
        checksum = f"md5:{hashlib.md5(data).hexdigest()}"
        source = dataclasses.replace(aishell1.SOURCE, bytes=len(data), checksum=checksum)
        monkeypatch.setattr(aishell1, "SOURCE", source)

    return write


def test_nested(pack: Any, official: dict, fetched: Any, section: Any, pitch: Any, root: Path):
    pack(official)
    rows = fetched("aishell1", section("Aishell1", train=["train"], dev=["dev"], test=["test"]))
    assert len(rows) == 9
    for row in rows:
        name = row["source_id"].rpartition("-")[2]
        assert row["transcript"] == f"音高{utterances()[name]}TV"
        assert pitch(row) == utterances()[name]
        assert row["speaker"] == name[6:11]
        assert SPEAKERS[row["speaker"]] == row["split"]
        assert row["language"] == "zh"
    assert not list((root / "raw").rglob("*.tar.gz"))


def test_recordings_without_transcript(
    pack: Any, official: dict, fetched: Any, section: Any, root: Path, monkeypatch: pytest.MonkeyPatch
):
    lines = official[TRANSCRIPT].split(b"\n")
    pack(official | {TRANSCRIPT: b"\n".join(lines[1:])})
    with pytest.raises(
        ArchiveError, match=r"no transcript of 1 of 3 recordings of train, such as BAC009S0002"
    ):
        fetched("aishell1", section("Aishell1"))
    assert not (root / "raw").exists()
    monkeypatch.setattr(aishell1, "UNTRANSCRIBED", 0.4)
    assert len(fetched("aishell1", section("Aishell1"))) == 2
    assert json.loads((root / "raw/aishell1/untranscribed.json").read_text()) == {"train": 1}


@pytest.mark.parametrize(
    ("name", "message"), [("../../../../escaped.wav", "outside"), ("/tmp/escaped-nested.wav", "outside")]
)
def test_a_hostile_archive_in_the_archive(
    pack: Any, official: dict, section: Any, root: Path, name: str, message: str
):
    pack(official | {"data_aishell/wav/S0999.tar.gz": tarred({name: b"x"})})
    with pytest.raises(ArchiveError, match=rf"S0999\.tar\.gz: member .* is {message}"):
        corpora.fetch("aishell1", section("Aishell1"), root / "raw")
    assert not list(root.rglob("escaped*"))
    assert not Path("/tmp/escaped-nested.wav").exists()
    assert not (root / "raw").exists()


def test_no_words(pack: Any, official: dict, section: Any, root: Path):
    pack(official | {TRANSCRIPT: b"BAC009S0002W0121\n"})
    with pytest.raises(ArchiveError, match=r"v0\.8\.txt, line 1: found 'BAC009S0002W0121', expected"):
        corpora.fetch("aishell1", section("Aishell1"), root / "raw")


def test_aishell2(fill: Any, fetched: Any, section: Any, pitch: Any, root: Path):
    folder = fill(aishell2())
    rows = fetched("aishell2", section("Aishell2", train=["train"], test=["ios-test"]))
    assert [(row["split"], row["speaker"], row["transcript"], pitch(row)) for row in rows] == [
        ("train", "C0001", "厨房用品", 700),
        ("ios-test", "T0011", "换一首歌", 500),
        ("ios-test", "T0012", "打开TV", 600),
    ]
    assert not list((root / "raw").rglob("*.wav"))
    assert folder.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"AISHELL-DEV-TEST-SET/iOS/test/trans.txt": None}, "no file .*trans.txt, for split 'ios-test'"),
        (
            {"AISHELL-DEV-TEST-SET/iOS/test/trans.txt": "IT0011W0001\t歌\n"},
            "no transcript of IT0012W0002",
        ),
        (
            {"AISHELL-DEV-TEST-SET/iOS/test/wav/T0011/IT0011W0001.wav": None},
            "no recording IT0011W0001.wav, of trans.txt",
        ),
        ({"AISHELL-DEV-TEST-SET/iOS/test/wav.scp": "a\t/etc/passwd\n"}, "expected `utterance<tab>path`"),
    ],
)
def test_aishell2_lacks_something(fill: Any, section: Any, root: Path, changed: dict, message: str):
    fill({name: data for name, data in (aishell2() | changed).items() if data is not None})
    with pytest.raises(ArchiveError, match=message):
        corpora.fetch("aishell2", section("Aishell2", test=["ios-test"]), root / "raw")
    assert not (root / "raw").exists()


def test_aishell2_leaves_out_what_its_own_recipe_leaves_out(
    fill: Any, fetched: Any, section: Any, root: Path, monkeypatch: pytest.MonkeyPatch
):
    train, files = "iOS/data", aishell2()
    listed = files[f"{train}/wav.scp"] + b"IC0803W0380\twav/C0001/IC0001W0001.wav\n"
    told = "IC0001W0001 厨房用品\nIC0803W0380\t\nIC0001W0009\t歌\n"
    fill(files | {f"{train}/wav.scp": listed, f"{train}/trans.txt": told.encode()})
    wanted = section("Aishell2", train=["train"], test=[])
    with pytest.raises(ArchiveError, match=r"2 of 3 utterances have .* alone, such as IC0001W0009"):
        fetched("aishell2", wanted)
    monkeypatch.setattr(aishell2_reader, "ALONE", 0.7)
    assert [row["transcript"] for row in fetched("aishell2", wanted)] == ["厨房用品"]
    left_out = json.loads((root / "raw/aishell2/left_out.json").read_text())
    assert left_out == ["IC0001W0009", "IC0803W0380"]
