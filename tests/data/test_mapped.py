"""Audio stays in the files: it is found byte for byte, and whatever is done with a frame copies none of it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from steermoe.data.mapped import LayoutError, mapped_column
from steermoe.data.rows import ROW_GROUP, SCHEMA, ShardError, frame_of, write_frame
from steermoe.data.shards import read_rows


def test_audio_is_found_byte_for_byte(tmp_path: Path, make_row: Callable[..., dict]):
    rows = [make_row(i) for i in range(2 * ROW_GROUP + 3)]
    write_frame(frame_of(rows[:100]), tmp_path / "train-00000.parquet")
    write_frame(frame_of(rows[100:]), tmp_path / "train-00001.parquet")
    write_frame(frame_of([]), tmp_path / "train-00002.parquet")
    paths = sorted(tmp_path.iterdir())
    audio = mapped_column(paths, "audio")
    assert audio.to_list() == [row["audio"] for row in rows]
    assert audio.to_list() == pl.concat([pl.read_parquet(path) for path in paths])["audio"].to_list()
    assert mapped_column([], "audio").to_list() == [] and mapped_column(paths[2:], "audio").dtype == pl.Binary


@pytest.mark.parametrize("options", [{"compression": "zstd"}, {"compression": "uncompressed"}])
def test_another_layout_is_refused(tmp_path: Path, make_row: Callable[..., dict], options: dict):
    frame = frame_of([make_row(i) for i in range(5)])
    frame.write_parquet(tmp_path / "train-00000.parquet", **options)
    with pytest.raises(LayoutError, match="row group 0: audio that is compressed, encoded or may be null"):
        mapped_column([tmp_path / "train-00000.parquet"], "audio")
    with pytest.raises(ShardError, match="may be null; write the shard anew"):
        read_rows(tmp_path, ["train"])


def test_a_damaged_length_is_noticed(tmp_path: Path, make_row: Callable[..., dict]):
    path = tmp_path / "train-00000.parquet"
    frame = frame_of([make_row(i) for i in range(5)])
    write_frame(frame, path)
    data = bytearray(path.read_bytes())
    place = data.index(b"fLaC") - 4
    data[place : place + 4] = (7000).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(LayoutError, match="audio in more than one page, or damaged"):
        mapped_column([path], "audio")


def test_a_shard_that_is_replaced_stays_as_it_was(tmp_path: Path, make_row: Callable[..., dict]):
    path = tmp_path / "train-00000.parquet"
    write_frame(frame_of([make_row(i) for i in range(3)]), path)
    rows = read_rows(tmp_path, ["train"])
    write_frame(frame_of([make_row(i) for i in range(50, 90)]), path)
    assert rows["audio"].to_list() == [make_row(i)["audio"] for i in range(3)]


MEASURE = """
import sys
from pathlib import Path
import numpy as np
import polars as pl
from steermoe.data.shards import read_rows
from steermoe.evaluation.controls import shuffled_audio

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024

folder = Path(sys.argv[1])
read_rows(folder / "small", ["train"])["audio"][0]
before = held()
rows = read_rows([folder / "a", folder / "b"], ["train"])
total = sum(len(data) for data in rows["audio"]) / 2**20
some = rows.filter(pl.col("seconds") > 0, pl.col("speaker") != "speaker-1")
both = pl.concat([some, rows])
heard = shuffled_audio(rows, 0)
for batch in np.random.default_rng(0).permutation(len(rows)).reshape(-1, 4)[:50]:
    rows[batch.tolist()]["audio"].to_list()
for row in range(0, len(both), 3):
    both["audio"][row]
print(total, held() - before, len(some), len(heard))
"""


def test_memory_does_not_grow_with_the_audio(tmp_path: Path, make_row: Callable[..., dict]):
    """120 MiB of audio go through reading, filtering, joining, shuffling and a pass over all rows."""
    rng = np.random.default_rng(0)
    row = make_row(0)
    for folder, start, count in (("small", 0, 2), ("a", 10, 240), ("b", 300, 240)):
        rows = [
            row | {"source_id": str(i), "speaker": f"speaker-{i % 3}", "transcript": str(i), "target": str(i),
                   "audio": row["audio"] + rng.bytes(250_000)}
            for i in range(start, start + count)
        ]  # fmt: skip
        write_frame(frame_of(rows), tmp_path / folder / "train-00000.parquet")
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    total, grown, some, heard = (float(word) for word in run.stdout.split()[-4:])
    assert total > 110 and some == 320 and heard == 480
    assert grown < 40, f"{grown:.0f} MiB held of {total:.0f}"


def test_columns_stand_in_the_order_of_the_schema(tmp_path: Path, make_row: Callable[..., dict]):
    write_frame(frame_of([make_row(0)]), tmp_path / "train-00000.parquet")
    assert read_rows(tmp_path, ["train"]).schema == SCHEMA
    assert read_rows(tmp_path, ["train"], ["audio", "task"]).columns == ["audio", "task"]
