"""The same rows from every kind of table, and a message for each that is none."""

import json
from pathlib import Path

import polars as pl
import pytest

from steermoe.corpora import tables
from steermoe.corpora.archives import ArchiveError

ROWS = [{"file": "ä.wav", "text": 'a "quoted", word'}, {"file": "b.wav", "text": "two"}]


def test_every_kind(tmp_path: Path):
    frame = pl.DataFrame(ROWS)
    frame.write_csv(tmp_path / "a.csv")
    (tmp_path / "mark.csv").write_text("\ufeff" + (tmp_path / "a.csv").read_text())
    frame.write_csv(tmp_path / "a.tsv", separator="\t")
    frame.write_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    for path in sorted(tmp_path.iterdir()):
        assert [row for _, row in tables.read_table(path, ["file", "text"])] == ROWS, path.name


def test_empty_lines_are_skipped_and_rows_are_counted_where_they_begin(tmp_path: Path):
    (tmp_path / "a.csv").write_text('\nfile,text\n\na,"one\ntwo"\n,\nb,three\n')
    assert [(number, row["file"]) for number, row in tables.read_table(tmp_path / "a.csv", [])] == [
        (4, "a"),
        (7, "b"),
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"file,words\nb,two\n", "a.csv, line 2: no column 'text'; found: file, words"),
        ("a.csv", b"file,text\nb,two,three\n", "a.csv, line 2: found 3 columns, expected 2: file, text"),
        ("a.csv", b'file,text\nb,two\n\nb,"two\n\n', "line 4: not a readable .csv table"),
        (
            "a.csv",
            b"file,text\nb,one\nb,\xff\n",
            "line 3: found byte 0xff, .*Windows-1252",
        ),
        ("a.csv", "file,text\n".encode("utf-16"), "line 1: .*UTF-16"),
        ("a.csv", "file,text\n".encode("utf-16-le"), r"line 1: found U\+0000"),
        ("a.csv", b"text,file,\xef\xbb\xbf text \nb,two,c\n", "line 1: column 'text' occurs 2 times"),
        ("a.jsonl", b'{"text": 1}\n{"text"', "line 2: not a readable .jsonl table .*character 8"),
        ("a.jsonl", b'{"text": 1}\n{"text": 1, "text": 2}', "line 2: column 'text' occurs 2 times"),
        ("a.jsonl", b'{"text": 1}\n{"text": "\xe9"}', "line 2: .*0xe9"),
        ("a.json", b'[{"text": 1},\n{"text"]', "line 2: not a readable .json table"),
        ("a.jsonl", b"[]\n", r"line 1: found \[\], expected an object with columns"),
        ("a.json", b"{}", "found dict, expected a list of objects"),
        ("a.parquet", b"PAR1", "not a parquet file, or damaged"),
        ("a.xlsx", b"", "found a file of kind '.xlsx', legal: .csv, .tsv, .jsonl, .json, .parquet"),
    ],
)
def test_no_such_table(tmp_path: Path, name: str, data: bytes, message: str):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ArchiveError, match=message):
        list(tables.read_table(tmp_path / name, ["text"]))


def test_a_missing_table(tmp_path: Path):
    with pytest.raises(ArchiveError, match="no such table"):
        list(tables.read_table(tmp_path / "a.csv", []))
