"""Telephone prompts: what is no transcript, which text is in which split, packages of Debian, and the real ones."""

import gzip
import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from steermoe import corpora
from steermoe.corpora import debian, prompts
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.download import UnavailableError
from tests.corpora import official

LINES = {
    "vm-goodbye": '"Goodbye..."',
    "digits/1": "one",
    "vm-Old": "old",
    "silence/1": "(1 second of silence)",
}
APT = """#!/bin/sh
for named; do :; done
exec cp "{mirror}/$(echo "$named" | tr = _)_all.deb" .
"""


def packages(files: official.Files, monkeypatch: pytest.MonkeyPatch) -> official.Files:
    """Debian's packages of the files of a language, whose checksums take the place of the real ones."""
    recordings, texts = prompts._packages("en")
    table = files["core-sounds-en.txt"]
    sounds = {f"./{recordings.holds}/{name}": data for name, data in files.items() if name.endswith(".g722")}
    inside = (sounds, {f"./{texts.holds}/core-sounds-en.txt.gz": gzip.compress(table, mtime=0)})
    found = {
        source.path: official.debian(official.tarred(of))
        for source, of in zip((recordings, texts), inside, strict=True)
    }
    digests = tuple(hashlib.sha256(data).hexdigest() for data in found.values())
    monkeypatch.setitem(prompts.RECORDED, "en", prompts.RECORDED["en"]._replace(packages=digests))
    return found


def offer(mirror: Path, root: Path, monkeypatch: pytest.MonkeyPatch, script: str = APT) -> None:
    """Put an apt-get first into PATH that copies packages from the mirror."""
    apt = root / "bin" / "apt-get"
    apt.parent.mkdir()
    apt.write_text(script.format(mirror=mirror))
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{apt.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(prompts, "URL", "http://127.0.0.1:1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries


def test_packages_of_debian(
    fill: Any, section: Any, fetched: Any, left_out: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rows from packages in a folder, from packages that apt downloads, and from where they are installed."""
    files = official.prompts(LINES)
    mirror = fill(packages(files, monkeypatch))
    settings = section("TelephonePrompts", train=["en-train"], test=["en-test"], seed=10)
    rows = fetched("prompts", settings)
    assert {row["target"]: row["split"] for row in rows} == {
        "Goodbye": "en-test", "one": "en-train", "old": "en-train"
    }  # fmt: skip
    assert left_out("prompts") == ["en/silence/1: not speech alone: (1 second of silence)"]
    offer(mirror, root, monkeypatch)
    assert fetched("prompts", settings.model_copy(update={"mirror": None})) == rows
    assert not (root / "raw/prompts/.fetch").exists()
    recordings, texts = prompts._packages("en")
    fill({f"{recordings.holds}/{name}": data for name, data in files.items()}, "system")
    fill({f"{texts.holds}/core-sounds-en.txt.gz": gzip.compress(files["core-sounds-en.txt"])}, "system")
    assert fetched("prompts", settings.model_copy(update={"mirror": "system"})) == rows
    assert not (root / "raw/prompts/data").exists()


def test_what_apt_cannot_or_may_not_bring(
    fill: Any, section: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = packages(official.prompts(LINES), monkeypatch)
    mirror = fill({name: data[:-3] for name, data in made.items()})
    settings = section("TelephonePrompts", mirror=None)
    offer(mirror, root, monkeypatch)
    with pytest.raises(
        ArchiveError, match=r"asterisk-core-sounds-en-g722_1\.6\.1-1_all\.deb: wrong checksum"
    ):
        corpora.fetch("prompts", settings, root / "raw")
    fill(dict.fromkeys(made, b""), "mirror")
    for path in mirror.iterdir():
        path.unlink()
    message = r"g722=1\.6\.1-1 cannot be downloaded: apt-get says 1; .*; http.* cannot be downloaded: Conn"
    with pytest.raises(UnavailableError, match=message):
        corpora.fetch("prompts", settings, root / "raw")
    monkeypatch.setenv("PATH", str(root))
    with pytest.raises(UnavailableError, match=r"no apt-get; http.*tar\.gz cannot be downloaded"):
        corpora.fetch("prompts", settings, root / "raw")
    assert not (root / "raw").exists()


@pytest.mark.parametrize(
    ("text", "seconds", "message"),
    [
        ('Please hold, while I try 28.8 "extensions"; don\'t hang up...', 5, ""),
        ("a", 0.6, ""),
        ("", 1, "no transcript"),
        ("...", 1, "no transcript"),
        ("[sound of monkeys screaming]", 16, "not speech alone"),
        ("<beep ascending>", 1, "not speech alone"),
        ("IAX (note: does not say 2)", 1, "not speech alone"),
        ("press * to pause", 2, "signs that are said in words"),
        ("Password? Please try again?", 5, ""),
        ("il tempo sar? esattamente", 5, "question marks in the place of letters"),
        ("Se questo ? corretto", 5, "question marks in the place of letters"),
        ("removed. vm-then-pound: then press pound", 5, "texts of several recordings"),
        ("hello", None, "no recording"),
        ("hello", 31, "31.00 s, more than 30"),
        ("a descending beep", 0.4, "too much text for 0.40 s"),
        ("hello", 0, "too much text for 0.00 s"),
    ],
)
def test_faults(text: str, seconds: float | None, message: str) -> None:
    assert bool(message) == bool(prompts.fault_of(text, seconds))
    assert prompts.fault_of(text, seconds).startswith(message)


def test_two_transcripts_and_what_is_without(fill: Any, section: Any, fetched: Any, left_out: Any) -> None:
    files = official.prompts({"a": "one", "b": "two", "c": "three"})
    table = b"a: one\na: ten\nb: two\nb: two\nd: four\n"
    fill({f"en/{name}": data for name, data in (files | {"core-sounds-en.txt": table}).items()})
    rows = fetched("prompts", section("TelephonePrompts", seed=0))
    assert [row["target"] for row in rows] == ["two"]
    assert left_out("prompts") == [
        "en/a: two transcripts, the second is 'ten'", "en/c: no transcript", "en/a: no transcript",
        "en/d: no recording",
    ]  # fmt: skip


def test_no_text_is_in_two_splits() -> None:
    """Nor a run of six words; what is added moves no other text, and the seed decides."""
    words = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()
    texts = [" ".join(chosen) for chosen in itertools.permutations(words, 3)]
    long = [" ".join(words[start : start + 7]) for start in range(4)]
    split_of = prompts.share([*texts, *long], 1)
    assert len({split_of[text] for text in long}) == 1
    assert prompts.share([*long, *texts[:100]], 1).items() <= split_of.items()
    assert prompts.share(texts, 2) != prompts.share(texts, 1)
    counts = {
        split: list(split_of.values()).count(split) / len(split_of) for split in ("train", "dev", "test")
    }
    assert counts == pytest.approx({"train": 0.7, "dev": 0.1, "test": 0.2}, abs=0.05)


def test_the_real_prompts(section: Any, fetched: Any, left_out: Any, root: Path) -> None:
    """English, from Debian."""
    try:
        debian.download(prompts._packages("en"), root / "mirror")
    except UnavailableError as error:
        pytest.skip(str(error))
    splits = ["en-train", "en-dev", "en-test"]
    of = {use: [split] for use, split in zip(("train", "dev", "test"), splits, strict=True)}
    rows = fetched("prompts", section("TelephonePrompts", **of, limit=dict.fromkeys(splits, 6)))
    assert [row["split"] for row in rows] == [split for split in splits for _ in range(6)]
    for row in rows:
        assert 0.5 < len(row["target"]) / row["seconds"] < 25
    listed = [
        (json.loads(line), split)
        for split in splits
        for line in (root / f"raw/prompts/index/{split}.jsonl").read_text().splitlines()
    ]
    said = {entry["id"]: entry["transcript"] for entry, _ in listed}
    assert len(listed) == len(said) == 534
    assert said["agent-alreadyon"].startswith(
        "That agent is already logged on. Please enter your agent number"
    )
    assert said["confbridge-leave-in"] == "To leave the conference" and said["digits/7"] == "seven"
    texts = {(prompts._words(entry["transcript"]), split) for entry, split in listed}
    assert len({text for text, _ in texts}) == len(texts) > 490
    assert {line.partition(":")[0] for line in left_out("prompts")} >= {
        "en/beep",
        "en/tt-monkeys",
        "en/silence/9",
    }
