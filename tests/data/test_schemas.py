"""A bad value is found and named, wherever it is; a good shard passes."""

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
from steermoe.data.rows import ROW_GROUP, SCHEMA, WITH_VIDEO, ShardError, ShardWriter, frame_of, write_frame
from steermoe.data.schemas import SeenUtterance, Utterance, validate_shard


def shard(folder: Path, rows: list[dict[str, Any]], name: str = "train-00000.parquet") -> Path:
    """A shard that holds whatever it is given."""
    path = folder / name
    pl.DataFrame(rows, schema=SCHEMA).write_parquet(path, row_group_size=2)
    return path


def encoded(seconds: float, rate: int = waveform.RATE, channels: int = 1, kind: str = "FLAC") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((round(seconds * rate), channels)), rate, format=kind)
    return file.getvalue()


def test_no_more_than_a_few_long_recordings_are_in_memory(tmp_path: Path, make_row: Callable[..., dict]):
    """40 of 130 s, 4 MB each: they are looked at by another process, whose memory is measured."""
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, 130 * waveform.RATE).astype(np.float32)
    audio = waveform.encode_flac(noise, waveform.RATE)
    with ShardWriter(tmp_path / "train-00000.parquet") as writer:
        for number in range(40):
            writer.add(make_row(number, audio=audio, seconds=130.0))
    code = f"""
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from steermoe.data.schemas import validate_shard
before = getrusage(RUSAGE_SELF).ru_maxrss
validate_shard(Path({str(tmp_path / "train-00000.parquet")!r}))
print(getrusage(RUSAGE_SELF).ru_maxrss - before)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(process.stdout) * 1024 < 20 * len(audio)


def test_the_schema_is_the_one_that_is_written():
    columns = Utterance.to_schema().columns
    assert {name: column.dtype.type for name, column in columns.items()} == dict(SCHEMA)
    assert all(column.description and not column.nullable for column in columns.values())


def test_good_rows_pass(tmp_path: Path, make_row: Callable[..., dict]):
    rows = [make_row(i) for i in range(4)] + [
        make_row(4, task="answer", prompt="which tone?", target="the fourth"),
        make_row(
            5,
            task="answer",
            prompt="which?",
            target="B",
            answers=["B", "B", "C"],
            choices=["A", "B"],
            language="zh-Hans",
        ),
    ]
    for audio in ("decode", "header", "skip"):
        validate_shard(shard(tmp_path, rows), audio)
    validate_shard(
        shard(tmp_path, [make_row(0, task="answer", prompt="?", transcript="")])
    )  # nothing is said
    validate_shard(shard(tmp_path, [], "dev-00003.parquet"))


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
        ({"target": None}, "target", "None", "for transcribe the transcript"),
        ({"language": "English"}, "language", "'English'", "a BCP 47 tag such as en"),
        ({"answers": ["tone 1"]}, "answers", "['tone 1']", "for answer and caption: all that people gave"),
        (
            {"task": "answer", "prompt": "?", "answers": ["tone", "a tone"]},
            "answers",
            "['tone', 'a tone']",
            "the target among them, or nothing",
        ),
        (
            {"task": "answer", "prompt": "?", "choices": ["tone 0", "tone 2"]},
            "choices",
            "['tone 0', 'tone 2']",
            "the target among them, or nothing",
        ),
        ({"sample_rate": 8000}, "sample_rate", "8000", "16000"),
        ({"seconds": 0.0}, "seconds", "0.0", "over 0, to 3600"),
        ({"seconds": float("nan")}, "seconds", "nan", "over 0, to 3600"),
        ({"seconds": 0.25}, "audio", "0.2 s where seconds is 0.25", "a mono FLAC file"),
        ({"audio": None}, "audio", "null", "a mono FLAC file"),
        ({"audio": b""}, "audio", "not FLAC", "a mono FLAC file"),
        ({"audio": encoded(0.2, kind="WAV")}, "audio", "b'RIFF", "a mono FLAC file"),
        ({"audio": encoded(0.2)[:40]}, "audio", "not readable as audio", "a mono FLAC file"),
        (
            {"audio": encoded(0.2, rate=8000)},
            "audio",
            "8000 Hz where sample_rate is 16000",
            "a mono FLAC file",
        ),
        ({"audio": encoded(0.2, channels=2)}, "audio", "2 channels", "a mono FLAC file"),
    ],
)
def test_a_violation_is_named(
    tmp_path: Path, make_row: Callable[..., dict], changed: dict, column: str, found: str, allowed: str
):
    path = shard(tmp_path, [make_row(0), make_row(1, **changed), make_row(2), make_row(3)])
    with pytest.raises(ShardError) as error:
        validate_shard(path)
    text = str(error.value)
    assert text.startswith(f"{path}: not a shard of utterances; correct the corpus reader")
    line = next(line for line in text.splitlines() if line.startswith(f"  row 1, column {column}: found "))
    assert found in line
    assert allowed in line
    others = [line for line in text.splitlines()[1:] if not line.startswith("  row 1,")]
    assert not others or column == "source_id"


def test_damage_inside_audio_is_found_by_decoding(tmp_path: Path, make_row: Callable[..., dict]):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32)
    flac = waveform.encode_flac(noise, waveform.RATE)
    damaged = flac[:9000] + b"\x55" * 100 + flac[9100:]
    path = shard(tmp_path, [make_row(0), make_row(1, audio=damaged, seconds=1.0)])
    validate_shard(path, "header")
    with pytest.raises(ShardError, match=r"row 1, column audio: found .*corrupt FLAC"):
        validate_shard(path, "decode")


def test_all_rows_are_counted_across_row_groups(tmp_path: Path, make_row: Callable[..., dict]):
    good = make_row(0)
    rows = [good | {"source_id": str(i)} for i in range(2 * ROW_GROUP + 3)]
    bad = [5, ROW_GROUP, 2 * ROW_GROUP + 2]
    for row in bad:
        rows[row]["audio"] = b"?"
    with pytest.raises(ShardError) as error:
        validate_shard(shard(tmp_path, rows))
    assert [int(line.split()[1][:-1]) for line in str(error.value).splitlines()[1:]] == bad


def test_many_violations_are_cut_short(tmp_path: Path, make_row: Callable[..., dict]):
    with pytest.raises(ShardError) as error:
        validate_shard(shard(tmp_path, [make_row(i, seconds=-1.0) for i in range(30)]), "skip")
    assert len(str(error.value).splitlines()) == 12
    assert str(error.value).endswith("and 20 more")


def test_columns_of_another_kind(tmp_path: Path, make_row: Callable[..., dict]):
    frame = frame_of([make_row(0)])
    for bad, message in (
        (frame.drop("target"), "column target: found nothing, expected String"),
        (
            frame.with_columns(pl.col("seconds").cast(pl.Float32)),
            "column seconds: found Float32, expected Float64",
        ),
        (frame.with_columns(words=pl.lit(3)), "column words: found Int32, expected no such column"),
    ):
        bad.write_parquet(tmp_path / "train-00000.parquet")
        with pytest.raises(ShardError, match=message):
            validate_shard(tmp_path / "train-00000.parquet")


@pytest.mark.parametrize("keep", [0, 100, -20])
def test_a_damaged_file(tmp_path: Path, make_row: Callable[..., dict], keep: int):
    path = shard(tmp_path, [make_row(0)])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ShardError, match=r"train-00000\.parquet: not a parquet file, or damaged"):
        validate_shard(path)


def test_rows_of_another_kind_are_refused(make_row: Callable[..., dict]):
    with pytest.raises(ShardError, match=r"row 1: missing columns \['target'\], unknown columns \['text'\]"):
        row = make_row(1)
        row["text"] = row.pop("target")
        frame_of([make_row(0), row])
    with pytest.raises(
        ShardError, match=r"row 0 \('tones-train-0000'\), column seconds: found 2 of type int, expected"
    ):
        frame_of([make_row(0, seconds=2)])


def test_same_rows_same_bytes(tmp_path: Path, make_row: Callable[..., dict]):
    for name in ("a", "b"):
        write_frame(frame_of([make_row(i) for i in range(20)]), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def seen_shard(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "train-00000.parquet"
    pl.DataFrame(rows, schema=WITH_VIDEO).write_parquet(path, row_group_size=2)
    return path


PICTURES = video.encode(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8))


def test_a_shard_may_have_videos(tmp_path: Path, make_row: Callable[..., dict]):
    path = tmp_path / "train-00000.parquet"
    write_frame(frame_of([make_row(i, video=PICTURES) for i in range(3)]), path)
    for audio in ("decode", "header", "skip"):
        validate_shard(path, audio)
    assert pl.read_parquet_schema(path) == WITH_VIDEO == {**SCHEMA, "video": pl.Binary()}
    assert {name: c.dtype.type for name, c in SeenUtterance.to_schema().columns.items()} == dict(WITH_VIDEO)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (None, "null"),
        (b"no picture at all", "not an animated PNG, or damaged"),
        (PICTURES[: len(PICTURES) // 2], "not an animated PNG, or damaged"),
    ],
)
def test_a_broken_video_is_named(
    tmp_path: Path, make_row: Callable[..., dict], data: bytes | None, found: str
):
    rows = [make_row(0, video=PICTURES), make_row(1, video=PICTURES), make_row(2, video=data)]
    path = seen_shard(tmp_path, rows)
    with pytest.raises(ShardError) as error:
        validate_shard(path, audio="decode")
    (line,) = str(error.value).splitlines()[1:]
    assert str(error.value).startswith(f"{path}: not a shard of utterances; correct the corpus reader")
    assert line.startswith(f"  row 2, column video: found {found}")
    assert line.endswith("allowed: an animated PNG of at least one frame")
    validate_shard(path, audio="skip")


def test_rows_with_and_without_videos_are_not_mixed(make_row: Callable[..., dict]):
    with pytest.raises(ShardError, match=r"row 1: missing columns \['video'\]"):
        frame_of([make_row(0, video=PICTURES), make_row(1)])
    with pytest.raises(ShardError, match=r"row 1: missing columns \[\], unknown columns \['video'\]"):
        frame_of([make_row(0), make_row(1, video=PICTURES)])
