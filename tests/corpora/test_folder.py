"""The user's own recordings, with every kind of table and without one."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from steermoe import corpora
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.manifest import Entry
from steermoe.corpora.splits import assign_splits
from tests.corpora.official import tone

ROWS = [
    {"audio": "a/one.wav", "text": "Pitch 500", "split": "train", "speaker": "ann", "question": ""},
    {"audio": "two.flac", "text": "Pitch 600", "split": "test", "speaker": "", "question": ""},
    {"audio": "two.flac", "text": "600", "split": "test", "speaker": "bob", "question": "Which pitch?"},
]


@pytest.fixture
def own(fill: Any) -> Path:
    return fill({"a/one.wav": tone(500, rate=44_100), "two.flac": tone(600, rate=8000, format="FLAC")})


@pytest.fixture
def settings(section: Any) -> Any:
    def make(table: str | None = None, **changed: Any) -> Any:
        values = {"train": ["train"], "test": ["test"], "path": "mirror", "table": table, "language": "de"}
        return section("Folder", **values | changed)

    return make


def write(own: Path, rows: list[dict], kind: str = "jsonl") -> str:
    """Write a table, and return its name."""
    if kind == "jsonl":
        (own / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pl.DataFrame(rows).write_parquet(own / "t.parquet")
    else:
        pl.DataFrame(rows).write_csv(own / f"t.{kind}")
    return f"t.{kind}"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_tables(own: Path, fetched: Any, settings: Any, pitch: Any, kind: str) -> None:
    rows = fetched("folder", settings(write(own, ROWS, kind)))
    keys = ("split", "speaker", "task", "prompt", "transcript", "target")
    assert [(*(row[key] for key in keys), pitch(row)) for row in rows] == [
        ("train", "ann", "transcribe", "", "Pitch 500", "Pitch 500", 500),
        ("test", "unknown", "transcribe", "", "Pitch 600", "Pitch 600", 600),
        ("test", "bob", "answer", "Which pitch?", "", "600", 600),
    ]


def test_captions_languages_and_names_composed_in_another_way(own: Path, fetched: Any, settings: Any) -> None:
    (own / "two.flac").rename(own / "e\u0301.flac")
    changed = {"language": "zh-Hans", "audio": "\xe9.flac"}
    rows = [ROWS[0] | {"task": "caption", "text": "A low hum.", "transcript": "hm"}, ROWS[1] | changed]
    found = fetched("folder", settings(write(own, rows)))
    assert [(row["task"], row["target"], row["transcript"], row["language"]) for row in found] == [
        ("caption", "A low hum.", "hm", "de"),
        ("transcribe", "Pitch 600", "Pitch 600", "zh-Hans"),
    ]


def test_recordings_within_a_parquet_table(
    own: Path, fetched: Any, settings: Any, pitch: Any, left_out: Any
) -> None:
    inside = {"bytes": tone(700), "path": "far/away.wav"}
    rows = [ROWS[0] | {"audio": inside}, ROWS[1] | {"audio": {"bytes": None, "path": "two.flac"}}]
    found = fetched("folder", settings(write(own, rows, "parquet")))
    assert [(row["target"], pitch(row)) for row in found] == [("Pitch 500", 700), ("Pitch 600", 600)]
    assert left_out("folder") == ["a/one.wav: in no row of t.parquet"]


@pytest.mark.parametrize("value", [float("nan"), None, "<NA>", " \u200b"])
def test_missing_values(own: Path, fetched: Any, settings: Any, value: Any) -> None:
    optional = dict.fromkeys(("question", "speaker", "language", "task", "id"), value)
    rows = fetched("folder", settings(write(own, [row | optional for row in ROWS[:2]])))
    assert [(r["task"], r["prompt"], r["speaker"], r["language"], r["target"]) for r in rows] == [
        ("transcribe", "", "unknown", "de", "Pitch 500"),
        ("transcribe", "", "unknown", "de", "Pitch 600"),
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        *(({"text": value}, r"t\.jsonl, line 1: no text of a/one\.wav") for value in
          (" ", float("nan"), None, "nan")),
        *(({column: value}, rf"t\.jsonl, line 1: column '{column}': found .*expected text")
          for column, value in zip(("text", "question", "speaker", "language", "split", "task", "id", "audio"),
                                   (3, 1.5, True, ["a"], {"a": "b"}, 0, 2.0, 7), strict=True)),
        *(({name: "x", meant: ...}, rf"unknown column '{name}'; is it '{meant}'") for name, meant in
          (("Question", "question"), ("quesiton", "question"), ("prompt", "question"), ("lang", "language"),
           ("spk", "speaker"), ("Speaker ID", "speaker"), ("SPLIT", "split"), ("langauge", "language"))),
        ({"audio": "none.wav"}, r"line 1: no recording .*none\.wav"),
        ({"audio": ""}, "no column `audio` or `path`, or it is empty"),
        ({"audio": "../secret.wav"}, r"found '\.\./secret\.wav', expected a path from the folder"),
        ({"audio": "/tmp/secret.wav"}, "expected a path from the folder, inside of it"),
        ({"split": "tset"}, "found split 'tset', legal: train, dev, test"),
        ({"split": None}, r"one\.wav: no split, as of 1 of 3"),
        ({"task": "sing"}, "found task 'sing' without a question; legal: transcribe and caption without"),
        ({"task": "answer"}, "found task 'answer' without a question"),
        ({"task": "caption", "question": "Who?"}, "found task 'caption' with a question"),
        ({"language": "German"}, r"line 1: found language 'German', legal: a BCP 47 tag such as en, de"),
    ],
)  # fmt: skip
def test_a_wrong_row(own: Path, settings: Any, root: Path, changed: dict, message: str) -> None:
    rows = [{k: v for k, v in (ROWS[0] | changed).items() if v is not ...}, *ROWS[1:]]
    table = write(own, rows)
    with pytest.raises(ArchiveError, match=message):
        corpora.fetch("folder", settings(table), root / "raw")
    assert not (root / "raw").exists()


def test_other_columns_are_listed_once(own: Path, fetched: Any, settings: Any, capsys: Any) -> None:
    frame = pl.DataFrame(ROWS).with_columns(age=pl.lit("7"), duration=pl.lit("1"), file=pl.lit("x"))
    frame.rename({name: f" \ufeff{name} " for name in frame.columns}).write_csv(own / "t.csv")
    assert len(fetched("folder", settings("t.csv"))) == 3
    assert capsys.readouterr().err.count("not read: 'age', 'duration', 'file'") == 1


@pytest.fixture
def pairs(fill: Any) -> Path:
    """Recordings with a .txt next to each."""
    texts = {"train/one.txt": "one", "test/two.txt": "two"}
    return fill({"train/one.wav": tone(500), "test/two.wav": tone(600), **texts})


@pytest.fixture
def texts(fetched: Any, settings: Any) -> Any:
    """Returns the target of every row by its id."""
    return lambda: {row["source_id"]: row["target"] for row in fetched("folder", settings())}


BOTH = {"folder-train-train/one": "one", "folder-test-test/two": "two"}


def test_links_are_followed_and_loops_are_not(pairs: Path, root: Path, texts: Any) -> None:
    (pairs / "train").rename(root / "elsewhere")
    (pairs / "train").symlink_to(root / "elsewhere")
    (root / "elsewhere" / "again").symlink_to(pairs)
    assert texts() == BOTH


@pytest.mark.parametrize("name", ["a.sph", "a.WAVE", "a"])
def test_recordings_are_recognised_by_content(pairs: Path, texts: Any, name: str) -> None:
    (pairs / "train" / name).write_bytes(tone(700))
    (pairs / "train" / "a.TXT").write_text("a")
    assert texts()["folder-train-train/a"] == "a"


@pytest.mark.parametrize("suffix", ["oga", "MP4"])
def test_no_kind_of_recording_is_ignored(pairs: Path, settings: Any, root: Path, suffix: str) -> None:
    (pairs / f"train/three.{suffix}").write_bytes(b"whatever it is")
    with pytest.raises(
        ArchiveError, match=rf"three\.{suffix}: no transcript; expected .*train/three\.txt, or a t"
    ):
        corpora.fetch("folder", settings(), root / "raw")


def test_what_is_left_out_is_reported(pairs: Path, texts: Any, left_out: Any, capsys: Any) -> None:
    for name in ("._one.wav", ".DS_Store", "Thumbs.db", "picture.jpg", "table.json", "odd.bin"):
        (pairs / "train" / name).write_bytes(b"\0\1\2\3")
    (pairs / "train" / "gone.txt").write_text("no recording")
    (pairs / "train" / "odd.txt").write_text("no audio")
    (pairs / "Dev").mkdir()
    (pairs / "Dev" / "three.wav").write_bytes(tone(700))
    (pairs / "Dev" / "three.txt").write_text("three")
    assert texts() == BOTH
    listed = left_out("folder")
    assert [line.split(":")[0] for line in listed] == ["Dev/three.wav", "train/gone.txt", "train/odd.txt"]
    assert "but odd.bin" in listed[2] and "folder: 3 (Dev/three.wav" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbfhe\xcc\x81\xe2\x80\x8b llo\r\nthere\x07", "h\xe9 llo there"),
        ("\u0645\u06cc\u200c\u062e\u0648\u200e".encode(), "\u0645\u06cc\u200c\u062e\u0648"),
    ],
)
def test_texts_are_cleaned(pairs: Path, texts: Any, data: bytes, expected: str) -> None:
    (pairs / "train" / "one.txt").write_bytes(data)
    assert texts()["folder-train-train/one"] == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train/one.txt": b"ol\xe9\n"}, r"one\.txt, line 1: found byte 0xe9, which is not UTF-8 .*Windows-1252"),
        ({"train/one.txt": "ab".encode("utf-16")}, r"one\.txt, line 1: .*UTF-16"),
        ({"train/one.txt": "ab".encode("utf-16-le")}, r"one\.txt: found U\+0000"),
        ({"train/one.txt": "\ufeff\u200b\n"}, r"one\.txt: empty"),
        ({"train/one.txt": ..., "test/two.txt": ...}, r"two\.wav: .*without one are 2 \(two\.wav, one\.wav\)"),
        ({"three.mp3": tone(700, format="MP3"), "three.txt": "3"}, r"three\.mp3: no split, as of 1 of 3 recordings"),
        ({"train/one.wav": b"no audio", "train/one.xyz": b"no audio", "train/two.txt": "", "train/one.txt": ...},
         r"one\.wav: no transcript"),
        ({"train/one.wav": ..., "train/one.xyz": b"no audio"},
         r"split 'train': no utterances in it; .*one\.txt.*but one\.xyz"),
    ],
)  # fmt: skip
def test_wrong_files(pairs: Path, fill: Any, root: Path, settings: Any, files: dict, message: str) -> None:
    fill({name: data for name, data in files.items() if data is not ...})
    for name in (name for name, data in files.items() if data is ...):
        (pairs / name).unlink()
    with pytest.raises(ArchiveError, match=message):
        corpora.fetch("folder", settings(), root / "raw")
    assert not (root / "raw").exists()


def test_no_folder(root: Path, settings: Any) -> None:
    with pytest.raises(ArchiveError, match=r"corpora\.folder\.path: 'mirror' \(.*\) is not a folder"):
        corpora.fetch("folder", settings(), root / "raw")


@pytest.mark.parametrize(("count", "sizes"), [(3, (1, 1, 1)), (20, (14, 2, 4)), (100, (70, 10, 20))])
def test_recordings_without_splits_are_shared_out(count: int, sizes: tuple[int, ...]) -> None:
    entries = [Entry(str(n), f"{n}.wav", "en", "unknown", "told") for n in range(count)]
    found = assign_splits(entries, ["train", "dev", "test"], 1)
    assert tuple(len(found[split]) for split in ("train", "dev", "test")) == sizes
    assert sorted(map(id, entries)) == sorted(id(entry) for split in found.values() for entry in split)
    assert assign_splits(entries[::-1], ["train", "dev", "test"], 1) == {s: e[::-1] for s, e in found.items()}
    with pytest.raises(ArchiveError, match="2 recordings, at least one is needed"):
        assign_splits(entries[:2], ["train", "dev", "test"], 1)


def test_no_recording_and_no_speaker_is_in_two_splits() -> None:
    asked = [Entry(str(n), f"{n % 8}.wav", "en", "unknown", "told") for n in range(16)]
    voices = [Entry(str(n), f"{n}.wav", "en", f"voice {n % 12}", "told") for n in range(60)]
    folders = [Entry(str(n), f"{n % 12}/{n}.wav", "en", "unknown", "told") for n in range(60)]
    for entries, group in (
        (asked, lambda e: e.audio),
        (voices, lambda e: e.speaker),
        (folders, lambda e: e.audio.partition("/")[0]),
    ):
        of: dict[str, set[str]] = {}
        for split, rows in assign_splits(entries, ["train", "dev", "test"], 1).items():
            for row in rows:
                of.setdefault(group(row), set()).add(split)
        assert all(len(splits) == 1 for splits in of.values())


def test_a_folder_without_splits_can_be_used_as_a_whole(own: Path, fetched: Any, settings: Any) -> None:
    for name in ("a/one", "two"):
        (own / f"{name}.txt").write_text("told")
    assert len(fetched("folder", settings(train=[]))) == 2
    assert [row["split"] for row in fetched("folder", settings())] == ["train", "test"]
