"""The manifest of a corpus: complete or not written, and divided into parts the same way every time; damaged files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steermoe import corpora
from steermoe.corpora import manifest
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.manifest import Entry
from steermoe.data.filters import Limits, RejectedError
from steermoe.data.preprocess import preprocess
from steermoe.data.shards import read_rows
from tests.corpora import official
from tests.corpora.official import tone

ENTRIES = [Entry(f"ü{number:04d}", "a.wav", "de", "anna", f"wörter {number}") for number in range(1234)]


@pytest.fixture
def settings(section: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **changed: section("LibriSpeech", **{"test": ["dev-clean"], "mirror": None} | changed)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    manifest.write_manifest(tmp_path, "dev-clean", ENTRIES)
    return tmp_path


def ids(fetched: Path, parts: list[manifest.Part]) -> list[str]:
    data = (fetched / "index" / "dev-clean.jsonl").read_bytes()
    lines = (data[offset:].partition(b"\n")[0] for part in parts for offset in part.offsets)
    return [json.loads(line)["id"] for line in lines]


def test_parts(settings: Any, listed: Path) -> None:
    parts = manifest.parts(settings(), listed)
    assert [(part.split, part.number, len(part.offsets)) for part in parts] == [
        ("dev-clean", 0, 500), ("dev-clean", 1, 500), ("dev-clean", 2, 234),
    ]  # fmt: skip
    assert ids(listed, parts) == [entry.id for entry in ENTRIES]
    with pytest.raises(ArchiveError, match="split 'test-clean' was not fetched; fetched: dev-clean"):
        manifest.parts(settings(test=["test-clean"]), listed)


def test_limit(settings: Any, listed: Path) -> None:
    """As many as asked for, in order, others by another seed, and the larger choice contains the smaller."""
    few, many, other = (
        ids(listed, manifest.parts(settings(limit={"dev-clean": count}, seed=seed), listed))
        for count, seed in ((40, 1), (700, 1), (40, 2))
    )
    assert [len(few), len(many), len(other)] == [40, 700, 40]
    assert set(few) < set(many) and set(few) != set(other) and few == sorted(few)
    position = sum(int(name[1:]) for name in many) / 700
    assert 550 < position < 684  # the middle is 616.5, one standard deviation 9
    with pytest.raises(ArchiveError, match="limit of 'dev-clean': 5000, but the split has 1234 utterances"):
        manifest.parts(settings(limit={"dev-clean": 5000}), listed)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "split 'dev-clean': no utterances"),
        ([Entry("a", f"{x}.wav", "en", "x", "one") for x in "ab"], r"'a' \(b.wav\) occurs twice"),
        ([Entry("a", "a.wav", "en", "x", "")], r"'a' \(a.wav\) has no transcript"),
        ([Entry("a", "a.wav", "en", "x", "said", "answer", question="why?")], r"'a' \(a.wav\) has no answer"),
        ([Entry("a", "a.wav", "en", "x", "said", "caption")], r"'a' \(a.wav\) has no caption"),
    ],
)
def test_what_may_not_be_listed(tmp_path: Path, entries: list[Entry], message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        manifest.write_manifest(tmp_path, "dev-clean", entries)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_damaged_recordings(fill: Any, section: Any, root: Path) -> None:
    """One of twenty is listed and left out; of a test split it is refused, until it is named. Shards stay."""
    said = {f"84-121123-{i:04d}": ("PITCH", tone(500 + i, format="FLAC")) for i in range(20)}
    for split, count in (("train-clean-100", 20), ("test-clean", 10)):
        fill(official.librispeech(split, dict(list(said.items())[:count])))
    for split, number, size in (("train-clean-100", 12, 1500), ("test-clean", 7, 0)):
        path = next((root / "mirror").rglob(f"{split}/**/84-121123-{number:04d}.flac"))
        path.write_bytes(path.read_bytes()[:size])
    settings = section("LibriSpeech", train=["train-clean-100"], test=["test-clean"])
    corpora.fetch("librispeech", settings, root / "raw")
    reader, name = corpora.reader("librispeech"), "librispeech-test-clean-84-121123-0007"
    limits = Limits(max_rejected=0.05, whole=settings.test)
    with pytest.raises(RejectedError, match=rf"preprocessing\.unreadable\n  {name} \(test-clean\): .*empty"):
        preprocess(reader, settings, root / "raw", root / "shards", limits)
    (made,) = root.glob(".runs/*/files/test-clean-00000.parquet")
    inode = made.stat().st_ino
    limits = Limits(max_rejected=0.05, whole=settings.test, unreadable=[name])
    preprocess(reader, settings, root / "raw", root / "shards", limits)
    assert (root / "shards/test-clean-00000.parquet").stat().st_ino == inode
    lost = [json.loads(line) for line in (root / "shards/left_out.jsonl").read_text().splitlines()]
    assert {line["source_id"].rpartition("-")[2] for line in lost} == {"0012", "0007"}
    assert len(read_rows(root / "shards", ["train-clean-100"])) == 19
