"""Shards: what is written is read back without loading the recordings; bad values are found and named."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import soundfile

from steermoe.audio import io as waveform
from steermoe.data import video
from steermoe.data.filters import write_skipped
from steermoe.data.schema import SCHEMA, WITH_VIDEO, ShardError, Utterance, validate_shard
from steermoe.data.shards import ROW_GROUP, read_rows, write_shard
from tests.data.conftest import frame_of, write_shards

MakeRow = Callable[..., dict[str, Any]]
PICTURES = video.encode(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8))


@pytest.fixture
def corpus(tmp_path: Path, make_row: MakeRow) -> Path:
    folder = tmp_path / "tones"
    for split, count in (("train", 7), ("dev", 3), ("dev-other", 2)):
        write_shards((make_row(i, split) for i in range(count)), folder, split, rows_per_shard=3)
    return folder


def unchecked(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a parquet file, whatever they are."""
    path = folder / "train-00000.parquet"
    schema = WITH_VIDEO if "video" in rows[0] else SCHEMA
    pl.DataFrame(rows, schema=schema).write_parquet(path, row_group_size=2)
    return path


def encoded(seconds: float, rate: int = waveform.RATE, channels: int = 1, kind: str = "FLAC") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((round(seconds * rate), channels)), rate, format=kind)
    return file.getvalue()


def test_round_trip(corpus: Path, make_row: MakeRow):
    names = [
        f"{name}.parquet" for name in ("dev-00000", "dev-other-00000", *(f"train-0000{i}" for i in range(3)))
    ]
    assert sorted(path.name for path in corpus.iterdir()) == names
    expected = [make_row(i, "dev") for i in range(3)] + [make_row(i) for i in range(7)]
    assert read_rows(corpus, ["dev", "train"]).to_dicts() == expected
    assert read_rows(corpus, ["train"]).schema == SCHEMA
    assert read_rows(corpus, ["train"], ["audio", "target"]).columns == ["audio", "target"]
    write_shards([], corpus, "none", 5)
    assert read_rows(corpus, ["none"]).schema == SCHEMA


def test_row_groups_and_bytes(tmp_path: Path, make_row: MakeRow):
    """Many row groups are read in order, as the library reads them; the same rows give the same bytes."""
    rows = [make_row(i) for i in range(2 * ROW_GROUP + 3)]
    for name in ("train-00000", "other-00000"):
        assert write_shard(rows, tmp_path / f"{name}.parquet") is None
    assert (tmp_path / "train-00000.parquet").read_bytes() == (tmp_path / "other-00000.parquet").read_bytes()
    audio = read_rows(tmp_path, ["train"])["audio"].to_list()
    assert audio == [row["audio"] for row in rows]
    assert audio == pl.read_parquet(tmp_path / "train-00000.parquet")["audio"].to_list()
    most = sum(len(row["audio"]) for row in rows[:5])
    rest = write_shard(iter(rows), tmp_path / "small-00000.parquet", most)
    assert rest is rows[5] and len(pl.read_parquet(tmp_path / "small-00000.parquet")) == 5


def test_several_folders(corpus: Path, tmp_path: Path, make_row: MakeRow):
    other = tmp_path / "other"
    write_shards([make_row(50, "dev")], other, "dev", 10)
    write_skipped(tmp_path / "digits", "no network")
    frame = read_rows([tmp_path / "digits", corpus, other], ["dev"])
    assert frame["source_id"].to_list() == [f"tones-dev-{i:04d}" for i in (0, 1, 2, 50)]
    assert read_rows(tmp_path / "digits", ["train"]).schema == SCHEMA
    write_shards([make_row(0, "train")], other, "train", 10)
    with pytest.raises(ShardError, match=r"other/train-00000.*'tones-train-0000' is in .*tones/train-00000"):
        read_rows([corpus, other], ["train"])


def test_videos_are_read_where_there_are_some(tmp_path: Path, make_row: MakeRow):
    pictures = [video.encode(np.full((n, 6, 6), n, np.uint8)) for n in (1, 2, 3)]
    write_shards((make_row(i, video=pictures[i]) for i in range(3)), tmp_path / "seen", "train", 2)
    write_shards((make_row(i + 3) for i in range(2)), tmp_path / "heard", "train", 2)
    rows = read_rows(tmp_path / "seen", ["train"])
    assert rows.schema == WITH_VIDEO and rows["video"].to_list() == pictures
    assert read_rows(tmp_path / "seen", ["train"], ["video"]).columns == ["video"]
    both = read_rows([tmp_path / "heard", tmp_path / "seen"], ["train"])
    assert both["video"].to_list() == [None, None, *pictures]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"text": "of no column"}, r"row 1: missing columns \[\], unknown columns \['text'\]"),
        ({"video": PICTURES}, r"row 1: missing columns \[\], unknown columns \['video'\]"),
        ({"seconds": "long"}, r"row 1 \('tones-train-0001'\), column seconds: found 'long' of type str"),
        ({"target": None}, "column target: found None of type NoneType, expected large_string"),
        ({"answers": [3]}, r"column answers: found \[3\]"),
    ],
)
def test_bad_rows_are_not_written(tmp_path: Path, make_row: MakeRow, second: dict, message: str):
    with pytest.raises(ShardError, match=message):
        write_shards([make_row(0), make_row(1) | second], tmp_path, "train", 2)
    assert list(tmp_path.iterdir()) == []


def test_missing(corpus: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="no split 'test'; it has: dev, dev-other, train"):
        read_rows(corpus, ["test"])
    with pytest.raises(ValueError, match=r"none: no such folder of shards"):
        read_rows(tmp_path / "none", ["test"])
    with pytest.raises(ValueError, match="no column 'text' in shards; they have: source_id, split"):
        read_rows(corpus, ["train"], ["text"])
    (corpus / "train-00001.parquet").unlink()
    with pytest.raises(ShardError, match=r"train-00001\.parquet is missing"):
        read_rows(corpus, ["train"])


def test_a_shard_that_is_replaced_stays_as_it_was(tmp_path: Path, make_row: MakeRow):
    write_shards([make_row(i) for i in range(3)], tmp_path, "train", 50)
    rows = read_rows(tmp_path, ["train"])
    write_shards([make_row(i) for i in range(10, 40)], tmp_path, "train", 50)
    assert rows["audio"].to_list() == [make_row(i)["audio"] for i in range(3)]


@pytest.mark.parametrize("damage", ["foreign", "length", "audio", "video", "0", "100", "-20"])
def test_a_damaged_shard_is_refused(tmp_path: Path, make_row: MakeRow, damage: str):
    path = tmp_path / "train-00000.parquet"
    write_shard([make_row(i, video=PICTURES) for i in range(3)], path)
    data = bytearray(path.read_bytes())
    message = "not a parquet file, or damaged"
    if damage == "foreign":
        unchecked(tmp_path, [make_row(i) for i in range(3)])
        data, message = (
            path.read_bytes(),
            "row group 0: column audio is compressed or damaged; write the shard anew",
        )
    elif damage == "length":
        place = data.index(b"fLaC") - 4
        data[place : place + 4] = (7000).to_bytes(4, "little")
        message = "damaged"
    elif damage in ("audio", "video"):
        start = data.index(b"fLaC" if damage == "audio" else PICTURES[:8])
        data[start : start + 4] = b"1234"
        message = rf"row 0, column {damage}: found "
    else:
        data = data[: int(damage)]
    path.write_bytes(data)
    with pytest.raises(ShardError, match=rf"train-00000\.parquet: (.|\n)*{message}"):
        read_rows(tmp_path, ["train"])


MEASURE = """
import sys
from pathlib import Path
import numpy as np
import polars as pl
from steermoe.data.schema import validate_shard
from steermoe.data.shards import read_rows

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024

folder = Path(sys.argv[1])
read_rows(folder / "small", ["train"])["audio"][0]
validate_shard(folder / "small" / "train-00000.parquet")
before = held()
rows = read_rows([folder / "a", folder / "b"], ["train"])
total = sum(len(data) for data in rows["audio"]) / 2**20
some = rows.filter(pl.col("seconds") > 0, pl.col("speaker") != "speaker-1")
both = pl.concat([some, rows])
for batch in np.random.default_rng(0).permutation(len(rows)).reshape(-1, 4)[:50]:
    rows[batch.tolist()]["audio"].to_list()
for row in range(0, len(both), 3):
    both["audio"][row]
mapped = held() - before
validate_shard(folder / "a" / "train-00000.parquet")
print(total, mapped, held() - before)
"""


def test_memory_does_not_grow_with_the_audio(tmp_path: Path, make_row: MakeRow):
    """120 MiB of audio are read, filtered, joined, passed over and checked."""
    rng, row = np.random.default_rng(0), make_row(0)
    for folder, start, count in (("small", 0, 2), ("a", 10, 240), ("b", 300, 240)):
        rows = [
            row
            | {"source_id": str(i), "speaker": f"speaker-{i % 3}", "audio": row["audio"] + rng.bytes(250_000)}
            for i in range(start, start + count)
        ]
        write_shard(rows, tmp_path / folder / "train-00000.parquet")
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    total, mapped, checked = (float(word) for word in run.stdout.split()[-3:])
    assert total > 110 and mapped < 40 and checked < 90, run.stdout


def test_good_rows_pass(tmp_path: Path, make_row: MakeRow):
    question = {"task": "answer", "prompt": "which?", "target": "B"}
    rows = [
        make_row(0),
        make_row(1, **question, transcript=""),
        make_row(2, **question, answers=["B", "B", "C"], choices=["A", "B"], language="zh-Hans"),
    ]
    for some in (rows, [row | {"video": PICTURES} for row in rows]):
        for audio in ("decode", "header", "skip"):
            validate_shard(unchecked(tmp_path, some), audio)


@pytest.mark.parametrize(
    ("changed", "column", "found", "allowed"),
    [
        ({"source_id": "tones-train-0002"}, "source_id", "'tones-train-0002'", "text that no other row has"),
        ({"source_id": ""}, "source_id", "''", "text that no other row has"),
        ({"split": "dev"}, "split", "'dev' in a shard of 'train'", "lower-case letters"),
        ({"speaker": None}, "speaker", "None", "text"),
        ({"task": "translate"}, "task", "'translate'", "transcribe or answer"),
        ({"prompt": "who?"}, "prompt", "'who?'", "the question where the task is answer, else empty"),
        ({"task": "answer"}, "prompt", "''", "the question where the task is answer, else empty"),
        ({"transcript": "another"}, "target", "'tone 1'", "for transcribe the transcript"),
        ({"transcript": "", "target": ""}, "target", "''", "for transcribe the transcript"),
        ({"language": "English"}, "language", "'English'", "a BCP 47 tag such as en"),
        ({"answers": ["tone 1"]}, "answers", "['tone 1']", "for answer and caption: all that people gave"),
        ({"task": "answer", "prompt": "?", "answers": ["a tone"]}, "answers", "['a tone']", "the target among them"),
        ({"task": "answer", "prompt": "?", "choices": ["tone"]}, "choices", "['tone']", "the target among them"),
        ({"sample_rate": 8000}, "sample_rate", "8000", "16000"),
        ({"seconds": 0.0}, "seconds", "0.0", "over 0, to 3600"),
        ({"seconds": float("nan")}, "seconds", "nan", "over 0, to 3600"),
        ({"seconds": 0.25}, "audio", "0.2 s where seconds is 0.25", "a mono FLAC file"),
        ({"audio": None}, "audio", "null", "a mono FLAC file"),
        ({"audio": encoded(0.2, kind="WAV")}, "audio", "b'RIFF", "a mono FLAC file"),
        ({"audio": encoded(0.2)[:40]}, "audio", "not readable as audio", "a mono FLAC file"),
        ({"audio": encoded(0.2, rate=8000)}, "audio", "8000 Hz where sample_rate is 16000", "a mono FLAC file"),
        ({"audio": encoded(0.2, channels=2)}, "audio", "2 channels", "a mono FLAC file"),
        ({"video": None}, "video", "null", "an animated PNG of at least one frame"),
        ({"video": PICTURES[: len(PICTURES) // 2]}, "video", "not an animated PNG, or damaged", "an animated PNG"),
    ],
)  # fmt: skip
def test_a_violation_is_named(
    tmp_path: Path, make_row: MakeRow, changed: dict, column: str, found: str, allowed: str
):
    seen = {"video": PICTURES} if "video" in changed else {}
    path = unchecked(tmp_path, [make_row(i, **seen) | (changed if i == 1 else {}) for i in range(4)])
    with pytest.raises(ShardError) as error:
        validate_shard(path, "decode")
    text = str(error.value)
    assert text.startswith(f"{path}: not a shard of utterances; correct the corpus reader")
    line = next(line for line in text.splitlines() if line.startswith(f"  row 1, column {column}: found "))
    assert found in line and allowed in line
    assert column == "source_id" or all(line.startswith("  row 1,") for line in text.splitlines()[1:])


def test_damage_inside_audio_is_found_by_decoding(tmp_path: Path, make_row: MakeRow):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32)
    flac = waveform.encode_flac(noise, waveform.RATE)
    damaged = flac[:9000] + b"\x55" * 100 + flac[9100:]
    path = unchecked(tmp_path, [make_row(0), make_row(1, audio=damaged, seconds=1.0)])
    validate_shard(path, "header")
    with pytest.raises(ShardError, match=r"row 1, column audio: found .*corrupt FLAC"):
        validate_shard(path, "decode")


def test_many_violations_are_cut_short(tmp_path: Path, make_row: MakeRow):
    with pytest.raises(ShardError) as error:
        validate_shard(unchecked(tmp_path, [make_row(i, seconds=-1.0) for i in range(30)]), "skip")
    assert len(str(error.value).splitlines()) == 12 and str(error.value).endswith("and 20 more")


def test_columns_of_another_kind(tmp_path: Path, make_row: MakeRow):
    frame = frame_of([make_row(0)])
    assert all(
        column.description and not column.nullable for column in Utterance.to_schema().columns.values()
    )
    for bad, message in (
        (frame.drop("target"), "column target: found nothing, expected String"),
        (frame.cast({"seconds": pl.Float32}), "column seconds: found Float32, expected Float64"),
        (frame.with_columns(words=pl.lit(3)), "column words: found Int32, expected no such column"),
    ):
        bad.write_parquet(tmp_path / "train-00000.parquet")
        with pytest.raises(ShardError, match=message):
            validate_shard(tmp_path / "train-00000.parquet")
