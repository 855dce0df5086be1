"""LibriSpeech and Mini LibriSpeech: spoken sentences in archives of the official layout, from fetch to shards."""

import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from steermoe import corpora
from steermoe.audio import io as waveform
from steermoe.audio import synthesis
from steermoe.corpora import librispeech, minilibrispeech
from steermoe.corpora.archives import ArchiveError
from steermoe.data.preprocess import preprocess
from steermoe.data.shards import read_rows
from tests.corpora.official import librispeech as librispeech_files

SAID = ("THE BIRCH CANOE", "SLID ON THE SMOOTH PLANKS", "GLUE THE SHEET", "TO THE DARK BLUE BACKGROUND")


@pytest.fixture(scope="session")
def speech() -> dict[str, tuple[str, bytes]]:
    """Utterances: what is said, and a FLAC file of it."""
    engine, voice = synthesis.Synthesizer(), synthesis.Voice("en-us", "m1", 160, 50, 50)
    found = {}
    for number, words in enumerate(SAID):
        sound, _ = engine.speak(words.lower(), voice)
        file = io.BytesIO()
        sound = 0.5 * soxr.resample(sound, synthesis.RATE, 16_000)
        soundfile.write(file, np.clip(sound, -1, 1), 16_000, format="FLAC", subtype="PCM_16")
        speaker, chapter = (("84", "121123"), ("1272", "128104"))[number // 2]
        found[f"{speaker}-{chapter}-{number % 2:04d}"] = (words, file.getvalue())
    return found


@pytest.fixture
def mirror(
    root: Path,
    speech: dict,
    pack_archive: Callable[[Path, dict[str, bytes]], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Archives of two splits, whose checksums are taken for the official ones."""
    (root / "mirror").mkdir()
    for split in ("dev-clean", "test-clean"):
        path = pack_archive(root / "mirror" / f"{split}.tar.gz", librispeech_files(split, speech))
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        monkeypatch.setitem(librispeech.ARCHIVES, split, (path.stat().st_size, digest))
    return root / "mirror"


def test_from_archives_to_shards(mirror: Path, speech: dict, section: Any, root: Path):
    settings = section("LibriSpeech", dev=["dev-clean"], test=["test-clean"])
    corpora.fetch("librispeech", settings, root / "raw")
    assert sorted(path.name for path in (root / "raw").iterdir()) == [
        "data",
        "index",
        "librispeech.lock",
        "source.json",
    ]
    summary = preprocess(corpora.reader("librispeech"), settings, root / "raw", root / "shards", workers=2)
    assert summary["splits"]["test-clean"]["rows"] == summary["splits"]["dev-clean"]["rows"] == 4
    assert list(summary["splits"]) == ["dev-clean", "test-clean"]  # those in use
    for row in read_rows(root / "shards", ["test-clean", "dev-clean"]).iter_rows(named=True):
        name = row["source_id"].removeprefix(f"librispeech-{row['split']}-")
        words, flac = speech[name]
        assert (row["transcript"], row["target"], row["prompt"]) == (words, words, "")
        assert row["speaker"] == name.split("-")[0]
        np.testing.assert_array_equal(waveform.load(row["audio"]), waveform.load(flac))


def test_unpacked_mirror_gives_the_same(mirror: Path, fetched: Any, section: Any, fill: Any, speech: dict):
    archived = fetched("librispeech", section("LibriSpeech", test=["dev-clean"]))
    fill({f"own/{name}": data for name, data in librispeech_files("dev-clean", speech).items()})
    assert fetched("librispeech", section("LibriSpeech", test=["dev-clean"], mirror="mirror/own")) == archived
    limited = section("LibriSpeech", test=["dev-clean"], limit={"dev-clean": 2})
    assert [row for row in archived if row in fetched("librispeech", limited)] == fetched(
        "librispeech", limited
    )
    assert len(fetched("librispeech", limited)) == 2


def test_a_failed_try_is_gone_on_with(mirror: Path, section: Any, root: Path):
    """What an earlier try finished serves, whatever the limit is now; but not if its archive was replaced."""
    settings = section("LibriSpeech", test=["dev-clean", "test-clean"])
    good = (mirror / "test-clean.tar.gz").read_bytes()
    (mirror / "test-clean.tar.gz").write_bytes(b"damaged")
    with pytest.raises(ArchiveError, match=r"test-clean\.tar\.gz: wrong checksum"):
        corpora.fetch("librispeech", settings, root / "raw")
    assert not (root / "raw").exists()
    (finished,) = (root / ".runs").glob("*/files/data/LibriSpeech/dev-clean")
    inode = finished.stat().st_ino
    (mirror / "test-clean.tar.gz").write_bytes(good)
    archive = mirror / "dev-clean.tar.gz"
    official, when = archive.read_bytes(), archive.stat()
    archive.write_bytes(b"damaged too")
    limited = settings.model_copy(update={"limit": {"dev-clean": 1}})
    with pytest.raises(ArchiveError, match=r"dev-clean\.tar\.gz: wrong checksum"):
        corpora.fetch("librispeech", limited, root / "raw")
    archive.write_bytes(official)
    os.utime(archive, ns=(when.st_atime_ns, when.st_mtime_ns))
    corpora.fetch("librispeech", limited, root / "raw")
    assert len(list((root / "raw").rglob("*.flac"))) == 8
    assert not list((root / ".runs").iterdir())
    assert (root / "raw/data/LibriSpeech/dev-clean").stat().st_ino == inode


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"84/121123/84-121123.trans.txt": None}, r"84-121123\.trans\.txt: no such file, for 2 recordings"),
        (
            {"84/121123/84-121123.trans.txt": b"84-121123-0000 ONE\n"},
            r"84-121123\.trans\.txt: no transcript of 84-121123-0001",
        ),
        ({"84/121123/84-121123-0001.flac": None}, r"trans\.txt, line 2: no recording 84-121123-0001\.flac"),
        (
            {"84/121123/84-121123.trans.txt": b"84-121123-0000\n"},
            "line 1: found '84-121123-0000', expected `utterance THE WORDS`",
        ),
    ],
)
def test_something_is_missing(
    fill: Any, speech: dict, section: Any, root: Path, changed: dict[str, bytes | None], message: str
):
    files: dict = librispeech_files("dev-clean", speech)
    files |= {f"LibriSpeech/dev-clean/{name}": data for name, data in changed.items()}
    fill({name: data for name, data in files.items() if data is not None})
    with pytest.raises(ArchiveError, match=message):
        corpora.fetch("librispeech", section("LibriSpeech", test=["dev-clean"]), root / "raw")
    assert not (root / "raw").exists()


def test_mini(root: Path, speech: dict, section: Any, fetched: Any, pack_archive: Any, server: Any):
    """From a server, whose archive is first another one than the official."""
    path = pack_archive(root / "a.tar.gz", librispeech_files("dev-clean-2", speech))
    server.files["/dev-clean-2.tar.gz"] = path.read_bytes()
    settings = section("MiniLibriSpeech", test=["dev-clean-2"], mirror=server.url)
    with pytest.raises(ArchiveError, match=f"expected md5:{minilibrispeech.MD5['dev-clean-2']}"):
        fetched("minilibrispeech", settings)
    with pytest.MonkeyPatch.context() as patch:
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        patch.setitem(minilibrispeech.MD5, "dev-clean-2", digest)
        rows = fetched("minilibrispeech", settings)
    assert sorted(row["transcript"] for row in rows) == sorted(SAID)
    note = json.loads((root / "raw" / "minilibrispeech" / "source.json").read_text())
    assert note["verified"] == ["dev-clean-2.tar.gz"]
