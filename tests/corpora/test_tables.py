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


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"file,words\nb,two\n", "a.csv, line 2: no column 'text'; found: file, words"),
        ("a.csv", b"file,text\nb,two,three\n", "a.csv, line 2: found 3 values, expected 2: file, text"),
        ("a.csv", b'file,text\nb,"two\n', "not a readable .csv table"),
        ("a.csv", b"file,text\nb,\xff\n", "not a readable .csv table"),
        ("a.jsonl", b'{"text": 1}\n{"text"', "not a readable .jsonl table"),
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
