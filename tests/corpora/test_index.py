"""The list of a corpus' utterances: whole or not at all, and cut into parts the same way every time."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steermoe.corpora import index
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.index import Entry

ENTRIES = [Entry(f"ü{number:04d}", "a.wav", "de", "anna", f"wörter {number}") for number in range(1234)]


@pytest.fixture
def settings(section: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **changed: section("LibriSpeech", **{"test": ["dev-clean"], "mirror": None} | changed)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    index.write_index(tmp_path, "dev-clean", ENTRIES)
    return tmp_path


def ids(fetched: Path, parts: list[index.Part]) -> list[str]:
    data = (fetched / "index" / "dev-clean.jsonl").read_bytes()
    found = []
    for part in parts:
        for offset in part.offsets:
            assert data[offset:].startswith(b'{"id": "')
            found.append(re.match(r'\{"id": "(.*?)"', data[offset:].decode()).group(1))  # type: ignore[union-attr]
    return found


def test_parts(settings: Any, listed: Path):
    parts = index.parts(settings(), listed)
    assert [(part.split, part.number, len(part.offsets)) for part in parts] == [
        ("dev-clean", 0, 500), ("dev-clean", 1, 500), ("dev-clean", 2, 234),
    ]  # fmt: skip
    assert ids(listed, parts) == [entry.id for entry in ENTRIES]


def test_limit(settings: Any, listed: Path):
    """As many as asked, in order, another choice by another seed, and more of them hold the fewer."""
    few, many, other = (
        ids(listed, index.parts(settings(limit={"dev-clean": count}, seed=seed), listed))
        for count, seed in ((40, 1), (700, 1), (40, 2))
    )
    assert [len(few), len(many), len(other)] == [40, 700, 40]
    assert set(few) < set(many)
    assert set(few) != set(other)
    assert few == sorted(few)
    position = sum(int(name[1:]) for name in many) / 700
    assert 550 < position < 684  # the middle is 616.5, one standard deviation 9
    with pytest.raises(ArchiveError, match="limit of 'dev-clean': 5000, but the split has 1234 utterances"):
        index.parts(settings(limit={"dev-clean": 5000}), listed)


def test_another_split(settings: Any, listed: Path):
    with pytest.raises(ArchiveError, match="split 'test-clean' was not fetched; there: dev-clean"):
        index.parts(settings(test=["test-clean"]), listed)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "split 'dev-clean': no utterances"),
        (
            [Entry("a", "a.wav", "en", "x", "one"), Entry("a", "b.wav", "en", "x", "two")],
            r"'a' \(b.wav\) is there twice",
        ),
        ([Entry("a", "a.wav", "en", "x", "")], r"'a' \(a.wav\) has no transcript"),
        (
            [Entry("a", "a.wav", "en", "x", "said", "answer", question="why?")],
            r"'a' \(a.wav\) has no answer",
        ),
        ([Entry("a", "a.wav", "en", "x", "said", "caption")], r"'a' \(a.wav\) has no caption"),
    ],
)
def test_what_may_not_be_listed(tmp_path: Path, entries: list[Entry], message: str):
    with pytest.raises(ArchiveError, match=message):
        index.write_index(tmp_path, "dev-clean", entries)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
