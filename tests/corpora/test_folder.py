"""The user's own recordings, with every kind of table and without one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from steermoe import config, corpora
from steermoe.config.problems import located
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.index import Entry
from steermoe.corpora.splits import share_out

ROWS = [
    {"audio": "a/one.wav", "text": "Pitch 500", "split": "train", "speaker": "ann", "question": ""},
    {"audio": "two.flac", "text": "Pitch 600", "split": "test", "speaker": "", "question": ""},
    {"audio": "two.flac", "text": "600", "split": "test", "speaker": "bob", "question": "Which pitch?"},
]


@pytest.fixture
def own(fill: Callable[..., Path], tone: Any) -> Path:
    return fill({"a/one.wav": tone(500, rate=44_100), "two.flac": tone(600, rate=8000, format="FLAC")})


def settings(section: Any, table: str | None, **changed: Any) -> Any:
    values = {"train": ["train"], "test": ["test"], "path": "mirror", "table": table, "language": "de"}
    return section("Folder", **values | changed)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_tables(own: Path, fetched: Any, section: Any, pitch: Any, kind: str):
    frame = pl.DataFrame(ROWS)
    if kind == "jsonl":
        (own / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "parquet":
        frame.write_parquet(own / "t.parquet")
    else:
        frame.write_csv(own / f"t.{kind}", separator="\t" if kind == "tsv" else ",")
    rows = fetched("folder", settings(section, f"t.{kind}"))
    keys = ("split", "speaker", "task", "prompt", "transcript", "target")
    assert [(*(row[key] for key in keys), pitch(row)) for row in rows] == [
        ("train", "ann", "transcribe", "", "Pitch 500", "Pitch 500", 500),
        ("test", "unknown", "transcribe", "", "Pitch 600", "Pitch 600", 600),
        ("test", "bob", "answer", "Which pitch?", "", "600", 600),
    ]


def test_text_beside_each_recording(own: Path, fetched: Any, section: Any, pitch: Any, tone: Any):
    (own / "train").mkdir()
    (own / "a").rename(own / "test")
    (own / "two.flac").rename(own / "train" / "two.flac")
    (own / "test" / "one.txt").write_text("Pitch\n500\n")
    with pytest.raises(
        ArchiveError, match=r"two\.flac: no transcript; expected .*train/two\.txt, or a table"
    ):
        fetched("folder", settings(section, None))
    (own / "train" / "two.txt").write_text("Pitch 600")
    rows = fetched("folder", settings(section, None))
    assert [(row["split"], row["transcript"], pitch(row)) for row in rows] == [
        ("train", "Pitch 600", 600),
        ("test", "Pitch 500", 500),
    ]
    (own / "three.mp3").write_bytes(tone(700, format="MP3"))
    (own / "three.txt").write_text("Pitch 700")
    with pytest.raises(ArchiveError, match=r"three\.mp3: nothing says its split, as of 1 of 3 recordings"):
        fetched("folder", settings(section, None))


@pytest.mark.parametrize("suffix", ["oga", "m4a", "MP4", "webm", "mkv", "mka", "aac"])
def test_no_kind_of_recording_is_passed_over(own: Path, section: Any, root: Path, suffix: str):
    for path in ("a/one.txt", "two.txt"):
        (own / path).write_text("told")
    (own / f"three.{suffix}").write_bytes(b"whatever it is")
    with pytest.raises(ArchiveError, match=rf"three\.{suffix}: no transcript; expected .*three\.txt"):
        corpora.fetch("folder", settings(section, None, test=[]), root / "raw")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text": " "}, r"t\.jsonl, line 1: no text of .*one\.wav"),
        ({"audio": "none.wav"}, r"line 1: no recording .*none\.wav"),
        ({"audio": ""}, "no column `audio` or `path`, or nothing in it"),
        ({"audio": "../secret.wav"}, r"found '\.\./secret\.wav', expected a path from the folder"),
        ({"audio": "/tmp/secret.wav"}, "expected a path from the folder, inside of it"),
        ({"split": "tset"}, "found split 'tset', legal: train, dev, test"),
        ({"split": None}, r"one\.wav: nothing says its split, as of 1 of 3"),
        ({"task": "sing"}, "found task 'sing' without a question; legal: transcribe and caption without"),
        ({"task": "answer"}, "found task 'answer' without a question"),
        ({"task": "caption", "question": "Who?"}, "found task 'caption' with a question"),
        ({"language": "German"}, r"line 1: found language 'German', legal: a BCP 47 tag such as en, de"),
        ({"question": "Who?", "task": "transcribe"}, "found task 'transcribe' with a question"),
    ],
)
def test_a_wrong_row(own: Path, section: Any, root: Path, changed: dict, message: str):
    rows = [ROWS[0] | changed, *ROWS[1:]]
    (own / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ArchiveError, match=message):
        corpora.fetch("folder", settings(section, "t.jsonl"), root / "raw")
    assert not (root / "raw").exists()


def test_no_folder(root: Path, section: Any):
    with pytest.raises(ArchiveError, match=r"corpora\.folder\.path: 'mirror' \(.*\) is no folder"):
        corpora.fetch("folder", settings(section, None), root / "raw")


def test_a_caption_and_a_language_of_its_own(own: Path, fetched: Any, section: Any):
    rows = [ROWS[0] | {"task": "caption", "text": "A low hum."}, ROWS[1] | {"language": "zh-Hans"}]
    (own / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = [
        (row["task"], row["target"], row["transcript"], row["language"])
        for row in fetched("folder", settings(section, "t.jsonl"))
    ]
    assert told == [
        ("caption", "A low hum.", "", "de"),
        ("transcribe", "Pitch 600", "Pitch 600", "zh-Hans"),
    ]


def test_unknown_language_in_the_configuration(section: Any):
    with pytest.raises(ValidationError) as caught:
        settings(section, None, language="german (Austria)")
    lines = dict(located(caught.value, config.Folder.model_json_schema()))
    assert lines["language"] == ': found "german (Austria)"; legal: a BCP 47 tag; und where unknown'


@pytest.mark.parametrize(("count", "sizes"), [(3, (1, 1, 1)), (20, (14, 2, 4)), (100, (70, 10, 20))])
def test_recordings_without_splits_are_shared_out(count: int, sizes: tuple[int, ...]):
    entries = [Entry(str(n), f"{n}.wav", "en", "unknown", "told") for n in range(count)]
    found = share_out(entries, ["train", "dev", "test"], 1)
    assert tuple(len(found[split]) for split in ("train", "dev", "test")) == sizes
    assert sorted(map(id, entries)) == sorted(id(entry) for split in found.values() for entry in split)
    assert share_out(entries[::-1], ["train", "dev", "test"], 1) == {s: e[::-1] for s, e in found.items()}
    with pytest.raises(ArchiveError, match="2 recordings, at least one is needed"):
        share_out(entries[:2], ["train", "dev", "test"], 1)


def test_no_recording_and_no_speaker_is_in_two_splits():
    asked = [Entry(str(n), f"{n % 8}.wav", "en", "unknown", "told") for n in range(16)]
    voices = [Entry(str(n), f"{n}.wav", "en", f"voice {n % 12}", "told") for n in range(60)]
    folders = [Entry(str(n), f"{n % 12}/{n}.wav", "en", "unknown", "told") for n in range(60)]
    for entries, group in (
        (asked, lambda e: e.audio),
        (voices, lambda e: e.speaker),
        (folders, lambda e: e.audio.partition("/")[0]),
    ):
        of: dict[str, set[str]] = {}
        for split, rows in share_out(entries, ["train", "dev", "test"], 1).items():
            for row in rows:
                of.setdefault(group(row), set()).add(split)
        assert all(len(splits) == 1 for splits in of.values())


def test_a_folder_without_splits_can_be_used_whole(own: Path, fetched: Any, section: Any):
    for name in ("a/one", "two"):
        (own / f"{name}.txt").write_text("told")
    assert len(fetched("folder", settings(section, None, train=[]))) == 2
    assert [row["split"] for row in fetched("folder", settings(section, None))] == ["train", "test"]
