"""What is written is read back, whole splits at a time; what is missing is missed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from steermoe.data import video
from steermoe.data.rows import SCHEMA, WITH_VIDEO, ShardError, frame_of
from steermoe.data.shards import read_rows, write_shards
from steermoe.data.skipped import write_skipped


@pytest.fixture
def corpus(tmp_path: Path, make_row: Callable[..., dict]) -> Path:
    folder = tmp_path / "tones"
    for split, count in (("train", 7), ("dev", 3), ("dev-other", 2)):
        write_shards((make_row(i, split) for i in range(count)), folder, split, rows_per_shard=3)
    return folder


def test_round_trip(corpus: Path, make_row: Callable[..., dict]):
    assert sorted(path.name for path in corpus.iterdir()) == [
        "dev-00000.parquet",
        "dev-other-00000.parquet",
        "train-00000.parquet",
        "train-00001.parquet",
        "train-00002.parquet",
    ]
    expected = [make_row(i, "dev") for i in range(3)] + [make_row(i) for i in range(7)]
    assert read_rows(corpus, ["dev", "train"]).to_dicts() == expected


def test_rows_stream(tmp_path: Path, make_row: Callable[..., dict]):
    """No more than a shard's rows are drawn before the shard is written."""
    present = []

    def rows():
        for i in range(6):
            present.append(len(list(tmp_path.glob("*.parquet"))))
            yield make_row(i)

    assert len(write_shards(rows(), tmp_path, "train", 2)) == 3
    assert present == [0, 0, 1, 1, 2, 2]


def test_columns(corpus: Path):
    frame = read_rows(corpus, ["train"], ["seconds", "target"])
    assert frame.columns == ["seconds", "target"]
    assert len(frame) == 7
    with pytest.raises(ValueError, match="no column 'text' in shards; they have: source_id, split"):
        read_rows(corpus, ["train"], ["text"])


def test_audio_is_looked_at_only_where_it_is_read(corpus: Path, make_row: Callable[..., dict]):
    frame_of([make_row(0, "bad", audio=b"?")]).write_parquet(corpus / "bad-00000.parquet")
    assert len(read_rows(corpus, ["bad"], ["target"])) == 1
    with pytest.raises(ShardError, match="bad-00000"):
        read_rows(corpus, ["bad"])


def test_several_folders(corpus: Path, tmp_path: Path, make_row: Callable[..., dict]):
    other = tmp_path / "other"
    write_shards([make_row(50, "dev")], other, "dev", 10)
    frame = read_rows([corpus, other], ["dev"])
    assert frame["source_id"].to_list() == [f"tones-dev-{i:04d}" for i in (0, 1, 2, 50)]
    write_shards([make_row(0, "train")], other, "train", 10)
    with pytest.raises(ShardError, match=r"other/train-00000.*'tones-train-0000' is in .*tones/train-00000"):
        read_rows([corpus, other], ["train"])


def test_a_skipped_corpus_has_no_rows(corpus: Path, tmp_path: Path):
    write_skipped(tmp_path / "digits", "no network")
    frame = read_rows(tmp_path / "digits", ["train", "unseen"])
    assert frame.is_empty()
    assert frame.schema == SCHEMA
    assert len(read_rows([tmp_path / "digits", corpus], ["train"])) == 7
    assert read_rows(tmp_path / "digits", ["train"], ["seconds"]).schema == {"seconds": pl.Float64}


def test_an_empty_split_is_a_split(tmp_path: Path):
    assert [path.name for path in write_shards([], tmp_path, "dev", 5)] == ["dev-00000.parquet"]
    assert read_rows(tmp_path, ["dev"]).schema == SCHEMA


def test_full_shards_have_no_empty_one_behind(tmp_path: Path, make_row: Callable[..., dict]):
    assert len(write_shards((make_row(i) for i in range(6)), tmp_path, "train", 3)) == 2


def test_missing(corpus: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="no split 'test'; it has: dev, dev-other, train"):
        read_rows(corpus, ["test"])
    with pytest.raises(ValueError, match=r"none: no such folder of shards"):
        read_rows(tmp_path / "none", ["test"])
    (corpus / "train-00001.parquet").unlink()
    with pytest.raises(ShardError, match=r"train-00001\.parquet is missing"):
        read_rows(corpus, ["train"])


def test_bad_rows_leave_no_shard(tmp_path: Path, make_row: Callable[..., dict]):
    rows = [make_row(i) for i in range(3)] + [make_row(3, target="not what is said")]
    with pytest.raises(
        ShardError, match=r"train-00001\.parquet.*\n.*row 1, column target: found 'not what is said'"
    ):
        write_shards(rows, tmp_path, "train", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["train-00000.parquet"]
    with pytest.raises(FileExistsError, match="1 shards of 'train' already"):
        write_shards(rows[:3], tmp_path, "train", 2)


def test_videos_are_read_where_there_are_some(tmp_path: Path, make_row: Callable[..., dict]):
    pictures = [video.encode(np.full((n, 6, 6), n, np.uint8)) for n in (1, 2, 3)]
    write_shards((make_row(i, video=pictures[i]) for i in range(3)), tmp_path / "seen", "train", 2)
    write_shards((make_row(i + 3) for i in range(2)), tmp_path / "heard", "train", 2)
    rows = read_rows(tmp_path / "seen", ["train"])
    assert rows.schema == WITH_VIDEO and rows["video"].to_list() == pictures
    assert read_rows(tmp_path / "seen", ["train"], ["video"]).columns == ["video"]
    assert read_rows(tmp_path / "heard", ["train"]).schema == SCHEMA
    both = read_rows([tmp_path / "heard", tmp_path / "seen"], ["train"])
    assert both["video"].to_list() == [None, None, *pictures]
    path = tmp_path / "seen" / "train-00001.parquet"
    data = path.read_bytes()
    path.write_bytes(data.replace(pictures[2][:8], b"12345678"))
    with pytest.raises(
        ShardError, match=r"train-00001\.parquet: .*\n  row 0, column video: found not an animated"
    ):
        read_rows(tmp_path / "seen", ["train"])
