"""The user's own recordings, with every kind of table and without one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from steermoe import config, corpora
from steermoe.config.errors import located
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
    lines = dict(located(caught.value, config.Folder))
    assert lines["language"] == ': found "german (Austria)"; allowed: a BCP 47 tag; und where unknown'


def texts(fetched: Any, section: Any, **changed: Any) -> dict[str, str]:
    return {row["source_id"]: row["target"] for row in fetched("folder", settings(section, None, **changed))}


@pytest.fixture
def pairs(fill: Callable[..., Path], tone: Any) -> Path:
    files = {
        "train/one.wav": tone(500),
        "train/one.txt": "one",
        "test/two.wav": tone(600),
        "test/two.txt": "two",
    }
    return fill(files)


def test_links_are_followed_and_loops_are_not(pairs: Path, root: Path, fetched: Any, section: Any):
    (pairs / "train").rename(root / "elsewhere")
    (pairs / "train").symlink_to(root / "elsewhere")
    (root / "elsewhere" / "again").symlink_to(pairs)
    assert texts(fetched, section) == {"folder-train-train/one": "one", "folder-test-test/two": "two"}


@pytest.mark.parametrize("name", ["a.sph", "a.caf", "a.3gp", "a.WAVE", "a.m4b", "a.mov", "a.unheard", "a"])
def test_content_tells_recordings(pairs: Path, fetched: Any, section: Any, tone: Any, name: str):
    (pairs / "train" / name).write_bytes(tone(700))
    (pairs / "train" / "a.TXT").write_text("a")
    assert texts(fetched, section)["folder-train-train/a"] == "a"


def test_what_is_left_out_is_reported(
    pairs: Path, root: Path, section: Any, fetched: Any, tone: Any, capsys: Any
):
    for name in ("._one.wav", ".DS_Store", "Thumbs.db", "picture.jpg", "table.json"):
        (pairs / "train" / name).write_bytes(b"\0\1\2\3")
    (pairs / "train" / "gone.txt").write_text("no recording")
    (pairs / "train" / "odd.bin").write_bytes(b"\0\1\2\3")
    (pairs / "train" / "odd.txt").write_text("no audio")
    (pairs / "Dev").mkdir()
    (pairs / "Dev" / "three.wav").write_bytes(tone(700))
    (pairs / "Dev" / "three.txt").write_text("three")
    assert len(texts(fetched, section)) == 2
    listed = json.loads((root / "raw" / "folder" / "left_out.json").read_text())
    assert [line.split(":")[0] for line in listed] == ["Dev/three.wav", "train/gone.txt", "train/odd.txt"]
    assert "but odd.bin" in listed[2] and "3 left out" in capsys.readouterr().err


def test_all_missing_transcripts_are_named_and_nothing_left_is_an_error(
    pairs: Path, section: Any, root: Path
):
    (pairs / "test" / "two.txt").unlink()
    (pairs / "train" / "one.txt").unlink()
    with pytest.raises(ArchiveError, match=r"without one are 2: two\.wav, one\.wav"):
        corpora.fetch("folder", settings(section, None), root / "raw")
    (pairs / "train" / "one.wav").rename(pairs / "one.xyz")
    (pairs / "one.xyz").write_bytes(b"no audio")
    (pairs / "one.txt").write_text("one")
    (pairs / "test" / "two.txt").write_text("two")
    with pytest.raises(ArchiveError, match=r"split 'train': no utterances in it; .*one\.txt.*but one\.xyz"):
        corpora.fetch("folder", settings(section, None), root / "raw")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbfhe\xcc\x81\xe2\x80\x8b llo\r\nthere\x07", "h\xe9 llo there"),
        (
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645\u200e".encode(),
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        ),
        ("soft\u00adly".encode(), "softly"),
    ],
)
def test_only_what_is_read_is_text(pairs: Path, fetched: Any, section: Any, data: bytes, expected: str):
    (pairs / "train" / "one.txt").write_bytes(data)
    assert texts(fetched, section)["folder-train-train/one"] == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ol\xe9\n", r"one\.txt, line 1: found byte 0xe9, which is not UTF-8 .*Windows-1252"),
        ("ab".encode("utf-16"), r"one\.txt, line 1: .*UTF-16"),
        ("ab".encode("utf-16-le"), r"one\.txt: found U\+0000"),
        ("\ufeff\u200b\n".encode(), r"one\.txt: empty"),
    ],
)
def test_no_text(pairs: Path, root: Path, section: Any, data: bytes, message: str):
    (pairs / "train" / "one.txt").write_bytes(data)
    with pytest.raises(ArchiveError, match=message):
        corpora.fetch("folder", settings(section, None), root / "raw")


def rows_of(own: Path, fetched: Any, section: Any, **changed: Any) -> list[dict]:
    (own / "t.jsonl").write_text("".join(json.dumps(row | changed) + "\n" for row in ROWS[:2]))
    return fetched("folder", settings(section, "t.jsonl"))


@pytest.mark.parametrize("value", [float("nan"), None, "", "nan", "<NA>", " \u200b"])
def test_missing_values_are_missing(own: Path, fetched: Any, section: Any, value: Any):
    rows = rows_of(own, fetched, section, question=value, speaker=value, language=value, task=value, id=value)
    assert [(r["task"], r["prompt"], r["speaker"], r["language"], r["target"]) for r in rows] == [
        ("transcribe", "", "unknown", "de", "Pitch 500"),
        ("transcribe", "", "unknown", "de", "Pitch 600"),
    ]


@pytest.mark.parametrize(
    "column", ["text", "question", "speaker", "language", "split", "task", "id", "audio"]
)
@pytest.mark.parametrize("value", [3, 1.5, True, ["a"], {"a": "b"}])
def test_cells_without_text_are_refused(own: Path, root: Path, section: Any, column: str, value: Any):
    rows = [ROWS[0], ROWS[1] | {column: value}]
    (own / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ArchiveError, match=rf"t\.jsonl, line 2: column '{column}': found .*expected text"):
        corpora.fetch("folder", settings(section, "t.jsonl"), root / "raw")


@pytest.mark.parametrize("value", [float("nan"), None, "", "nan", "NaN"])
def test_a_text_must_be_there(own: Path, root: Path, section: Any, value: Any):
    (own / "t.jsonl").write_text(json.dumps(ROWS[0] | {"text": value}) + "\n")
    with pytest.raises(ArchiveError, match=r"t\.jsonl, line 1: no text of a/one\.wav"):
        corpora.fetch("folder", settings(section, "t.jsonl"), root / "raw")


def test_numbers_of_parquet_columns(own: Path, fetched: Any, section: Any):
    frame = pl.DataFrame(ROWS[:2]).with_columns(question=pl.lit(float("nan")))
    frame.write_parquet(own / "t.parquet")
    assert {row["task"] for row in fetched("folder", settings(section, "t.parquet"))} == {"transcribe"}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *(("Question", "question"), ("quesiton", "question"), ("prompt", "question"), ("lang", "language")),
        *(("spk", "speaker"), ("Speaker ID", "speaker"), ("SPLIT", "split"), ("langauge", "language")),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_columns_that_look_like_known_ones(
    own: Path, root: Path, section: Any, kind: str, name: str, meant: str
):
    frame = pl.DataFrame(ROWS).drop(meant, strict=False).with_columns(pl.lit("x").alias(name))
    write = {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[kind]
    write(own / f"t.{kind}")
    with pytest.raises(ArchiveError, match=rf"unknown column '{name}'; is it '{meant}'"):
        corpora.fetch("folder", settings(section, f"t.{kind}"), root / "raw")


def test_other_columns_are_listed_once(own: Path, fetched: Any, section: Any, capsys: Any):
    frame = pl.DataFrame(ROWS).with_columns(age=pl.lit("7"), duration=pl.lit("1"), file=pl.lit("x"))
    frame.rename({name: f" \ufeff{name} " for name in frame.columns}).write_csv(own / "t.csv")
    assert len(fetched("folder", settings(section, "t.csv"))) == 3
    assert capsys.readouterr().err.count("not read: 'age', 'duration', 'file'") == 1


def test_recordings_within_a_parquet_table(
    own: Path, fetched: Any, section: Any, pitch: Any, tone: Any, capsys: Any
):
    inside = {"bytes": tone(700), "path": "far/away.wav"}
    rows = [ROWS[0] | {"audio": inside}, ROWS[1] | {"audio": {"bytes": None, "path": "two.flac"}}]
    pl.DataFrame(rows).write_parquet(own / "t.parquet")
    found = fetched("folder", settings(section, "t.parquet"))
    assert [(row["target"], pitch(row)) for row in found] == [("Pitch 500", 700), ("Pitch 600", 600)]
    assert "a/one.wav: in no row" in capsys.readouterr().err


def test_names_composed_in_another_way(own: Path, fetched: Any, section: Any):
    (own / "two.flac").rename(own / "e\u0301.flac")
    rows = [ROWS[0], ROWS[1] | {"audio": "\xe9.flac"}]
    (own / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(fetched("folder", settings(section, "t.jsonl"))) == 2


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
