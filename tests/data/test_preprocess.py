"""A corpus to shards by real processes: the same bytes for any number of workers, and after any death."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import soundfile
from tokenizers import Tokenizer

from steermoe.audio import io as waveform
from steermoe.audio.io import RATE
from steermoe.data import filestate
from steermoe.data import preprocess as preprocessing
from steermoe.data.filters import Limits, RejectedError, skipped_reason, tokenizer_file, write_skipped
from steermoe.data.preprocess import PartError, overlap, preprocess
from steermoe.data.schema import ShardError
from steermoe.data.shards import read_rows
from tests.data.conftest import write_shards

READERS = Path(__file__).parent / "readers"
TOKENIZER = Path(__file__).parents[2] / "pretrained" / "llm"


@pytest.fixture(autouse=True)
def _readers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(READERS)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are made in this process, which is faster."""
    monkeypatch.setattr(preprocessing, "_in_process", preprocessing._run)


@pytest.fixture
def tones() -> Any:
    import tones  # pyright: ignore[reportMissingImports]

    return tones


@pytest.fixture
def recordings() -> Any:
    import recordings  # pyright: ignore[reportMissingImports]

    return recordings


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Every kind of file that is decoded, 0.5 s each, in `train`; two plain ones in `test`."""
    folder = tmp_path / "raw"
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
    for name, rate, channels, subtype in (
        ("plain.flac", RATE, 1, "PCM_16"),
        ("stereo.wav", 44_100, 2, "PCM_16"),
        ("eight_bit.wav", 8_000, 1, "PCM_U8"),
        ("studio.flac", 96_000, 2, "PCM_24"),
        ("radio.mp3", 44_100, 2, "MPEG_LAYER_III"),
        ("vorbis.ogg", 22_050, 1, "VORBIS"),
        ("opus.ogg", 48_000, 2, "OPUS"),
        ("old.aiff", 22_050, 1, "PCM_16"),
    ):
        soundfile.write(folder / "train" / name, tone(0.5, rate, channels), rate, subtype=subtype)
    for number in range(2):
        soundfile.write(folder / "test" / f"said_{number}.flac", tone(0.3 + number, RATE), RATE)
    return folder


def tone(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    wave = 0.4 * np.sin(2 * np.pi * 300 * np.arange(round(seconds * rate)) / rate)
    return np.stack([wave] * channels, axis=1).astype(np.float32)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def begun(log: Path) -> list[str]:
    return [line.split()[0] for line in log.read_text().splitlines()]


def listed(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]


def finished(root: Path) -> dict[str, int]:
    """Inodes of the shards that an interrupted run has left."""
    return {path.name: path.stat().st_ino for path in root.glob(".runs/*/files/*.parquet")}


def test_shards_and_summary(tones: Any, source: Path, tmp_path: Path):
    settings, out = tones.Settings(log=tmp_path / "log"), tmp_path / "out"
    summary = preprocess(tones, settings, source, out, workers=2)
    usual = {"dropped": 0, "rejected": 0}
    assert summary == {
        "splits": {
            "train": {"shards": 2, "rows": 8, "seconds": pytest.approx(2.0), **usual},
            "test": {"shards": 1, "rows": 4, "seconds": pytest.approx(1.0), **usual},
        }
    }
    assert json.loads((out / "summary.json").read_text()) == summary
    shards = ["test-00000.parquet", "train-00000.parquet", "train-00001.parquet"]
    assert sorted(contents(out)) == ["left_out.jsonl", "summary.json", *shards]
    rows = read_rows(out, ["train", "test"])
    parts = [("train", 0), ("train", 1), ("test", 0)]
    assert rows["transcript"].to_list() == [f"{split} {part} {n}" for split, part in parts for n in range(4)]
    # Every part had a process of its own, so the state that the reader carries did not reach the next.
    assert len(set(settings.log.read_text().split()[1::2])) == 3 and rows["audio"].n_unique() == 4


def test_killed_and_repeated(tones: Any, source: Path, tmp_path: Path):
    settings = tones.Settings(log=tmp_path / "log", pause=2.0, parts={"train": 2, "test": 0})
    out = tmp_path / "out"
    command = f"""
import sys
sys.path.insert(0, {str(READERS)!r})
from pathlib import Path
import tones
from steermoe.data.preprocess import preprocess
settings = tones.Settings.model_validate_json({settings.model_dump_json()!r})
preprocess(tones, settings, Path({str(source)!r}), Path({str(out)!r}), workers=2)
"""
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen([sys.executable, "-c", command], env=environment)
    deadline = time.monotonic() + 300
    # Both parts have begun: a worker that outlives the process would else begin its part after it.
    while "train-00000.parquet" not in finished(tmp_path) or len(begun(settings.log)) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    inode, before = finished(tmp_path)["train-00000.parquet"], begun(settings.log)
    orphan = next(
        line.split()[1] for line in settings.log.read_text().splitlines() if line.startswith("train-1")
    )
    while Path(f"/proc/{orphan}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    preprocess(tones, settings, source, out, workers=2)
    assert begun(settings.log)[len(before) :] == ["train-1"]
    assert (out / "train-00000.parquet").stat().st_ino == inode
    assert not list((tmp_path / ".runs").iterdir())
    undisturbed = tones.Settings(log=tmp_path / "log", parts={"train": 2, "test": 0})
    preprocess(tones, undisturbed, source, tmp_path / "undisturbed", workers=2)
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("raise", PartError, r"part train-00001\.parquet failed; repeat (.|\n)*ValueError: row 2 has no transcript"),
        ("die", PartError, r"part train-00001\.parquet failed: its process was killed, .*; repeat the command"),
        ("target", ShardError, r"train-00001\.parquet: .*\n  row 0, column target: found 'another'"),
        ("twice", ShardError, r"train-00001\.parquet: column source_id: 'train-0-0' is in .*00000"),
    ],
)  # fmt: skip
def test_a_part_that_fails(
    tones: Any, source: Path, tmp_path: Path, monkeypatch: Any, fault: str, error: type, message: str
):
    settings = tones.Settings(log=tmp_path / "log", fault=fault, parts={"train": 2, "test": 0})
    if fault in ("target", "twice"):
        monkeypatch.setattr(preprocessing, "_in_process", preprocessing._run)
    for _ in range(2):
        with pytest.raises(error, match=message):
            preprocess(tones, settings, source, tmp_path / "out", workers=1)
        assert not (tmp_path / "out").exists()
    again = [] if fault == "twice" else ["train-1"]
    assert begun(settings.log) == ["train-0", "train-1", *again]


def test_a_skipped_corpus_stays_skipped(
    tones: Any, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert skipped_reason(source) is None
    write_skipped(source, 'no network: "example.org"')
    settings, skipped = tones.Settings(log=tmp_path / "log"), {"skipped": 'no network: "example.org"'}
    assert preprocess(tones, settings, source, tmp_path / "out") == skipped
    assert list(contents(tmp_path / "out")) == ["SKIPPED.json"]
    assert skipped_reason(tmp_path / "out") == skipped["skipped"]
    assert read_rows(tmp_path / "out", ["train"]).is_empty()
    assert "SKIPPED out: no network" in capsys.readouterr().err and not settings.log.exists()


@pytest.mark.usefixtures("in_this_process")
def test_every_kind_becomes_16_khz_mono(recordings: Any, source: Path, tmp_path: Path):
    summary = preprocess(recordings, recordings.Settings(), source, tmp_path / "out", workers=1)
    assert summary["splits"]["train"]["rows"] == 8
    for row in read_rows(tmp_path / "out", ["train"]).iter_rows(named=True):
        sound, name = waveform.load(row["audio"]), row["source_id"]
        assert abs(len(sound) - RATE // 2) <= 0.03 * RATE and row["seconds"] == len(sound) / RATE
        assert np.sqrt(2 * np.mean(sound[2000:-2000] ** 2)) == pytest.approx(0.4, rel=0.05), name
    kept = read_rows(tmp_path / "out", ["train"]).filter(source_id="train/plain.flac")["audio"][0]
    assert kept == (source / "train" / "plain.flac").read_bytes() and listed(tmp_path / "out") == []
    shutil.copy(
        source / "train" / "plain.flac", source / "train" / "more.flac"
    )  # made anew, not taken for done
    again = preprocess(recordings, recordings.Settings(), source, tmp_path / "out", workers=1)
    assert again["splits"]["train"]["rows"] == 9


BAD = {
    "zz_apple.m4a": (b"\x00\x00\x00\x20ftypM4A " + bytes(200), "not readable as audio"),
    "zz_empty.wav": (b"", "empty, 0 bytes"),
    "zz_noise.flac": (b"\x13\x37" * 4000, "no samples"),
}


@pytest.mark.usefixtures("in_this_process")
def test_bad_files_are_listed_up_to_a_share(recordings: Any, source: Path, tmp_path: Path):
    for name, (data, _) in BAD.items():
        (source / "train" / name).write_bytes(data)
    settings, out = recordings.Settings(part_rows=4), tmp_path / "out"
    message = r"3 of 11 utterances cannot be used, allowed is a share of 0\.05 (.|\n)*train/zz_empty\.wav"
    with pytest.raises(RejectedError, match=message):
        preprocess(recordings, settings, source, out, Limits(max_rejected=0.05, whole=["test"]))
    kept = finished(tmp_path)["train-00000.parquet"]
    assert not out.exists()
    summary = preprocess(recordings, settings, source, out, Limits(max_rejected=3 / 11, whole=["test"]))
    assert summary["splits"]["train"]["rejected"] == 3 and summary["splits"]["train"]["rows"] == 8
    assert (out / "train-00000.parquet").stat().st_ino == kept  # nothing was made twice
    found = listed(out)
    assert [item["source_id"] for item in found] == [f"train/{name}" for name in BAD]
    for item, (_, reason) in zip(found, BAD.values(), strict=True):
        assert item["kind"] == "rejected" and reason in item["reason"] and item["split"] == "train"


@pytest.mark.usefixtures("in_this_process")
def test_a_test_split_is_whole_but_for_what_is_named(recordings: Any, source: Path, tmp_path: Path):
    (source / "test" / "zz_noise.flac").write_bytes(BAD["zz_noise.flac"][0])
    settings, out, bad = recordings.Settings(), tmp_path / "out", "test/zz_noise.flac"
    with pytest.raises(RejectedError, match=r"1 utterances of test splits (.|\n)*test/zz_noise\.flac"):
        preprocess(recordings, settings, source, out, Limits(whole=["test"], max_rejected=0.5))
    without_effect = Limits(whole=["test"], unreadable=[bad, "test/said_0.flac"])
    with pytest.raises(RejectedError, match=r"names 'test/said_0\.flac', which is no unreadable utterance"):
        preprocess(recordings, settings, source, out, without_effect)
    summary = preprocess(recordings, settings, source, out, Limits(whole=["test"], unreadable=[bad]))
    assert summary["splits"]["test"]["rows"] == 2 and summary["splits"]["test"]["rejected"] == 1


@pytest.mark.usefixtures("in_this_process")
def test_long_utterances_are_dropped_but_not_from_test(recordings: Any, source: Path, tmp_path: Path):
    soundfile.write(source / "train" / "long.flac", tone(2, RATE), RATE)
    words = "three_" * 9 + "three"
    for split in ("train", "test"):
        soundfile.write(source / split / f"{words}.flac", tone(0.2, RATE), RATE)
    tokenizer = tokenizer_file(str(TOKENIZER))
    text = words.replace("_", " ")
    tokens = len(Tokenizer.from_file(str(tokenizer)).encode(text, add_special_tokens=False).ids)
    limits = Limits(max_seconds=1.0, max_tokens=tokens - 1, tokenizer=tokenizer, whole=["test"])
    summary = preprocess(recordings, recordings.Settings(), source, tmp_path / "out", limits)
    assert summary["splits"]["train"]["dropped"] == 2 and summary["splits"]["test"]["dropped"] == 0
    assert summary["splits"]["test"]["rows"] == 3  # 1.3 s, and the many words, among them
    assert {item["source_id"]: item["reason"] for item in listed(tmp_path / "out")} == {
        "train/long.flac": "2.00 s, allowed are 1",
        f"train/{words}.flac": f"target of {tokens} tokens, allowed are {tokens - 1}",
    }
    row = {"split": "train", "seconds": 9.0, "target": text}
    assert Limits(max_tokens=tokens, tokenizer=tokenizer).exceeded(row) is None
    message = (
        r"nothing is left of split 'train': all of its 10 (.|\n)*preprocessing\.max_seconds(.|\n)*0\.50 s"
    )
    with pytest.raises(RejectedError, match=message):
        preprocess(recordings, recordings.Settings(), source, tmp_path / "none", Limits(0.1, whole=["test"]))


def test_tokens_cannot_be_counted_without_a_tokenizer(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"no tokenizer.json, by which tokens are counted; .*max_tokens to null"
    ):
        tokenizer_file(str(tmp_path))


def lengthen(source: Path) -> int:
    """Six recordings of noise in `train`, 2 s each, with a damaged one amid; bytes of one of them in a shard."""
    rng = np.random.default_rng(5)
    for number in range(6):
        sound = 0.3 * rng.standard_normal(2 * RATE).clip(-3, 3)
        soundfile.write(source / "train" / f"noise_{number}.wav", sound, RATE, subtype="PCM_16")
    (source / "train" / "noise_4x.wav").write_bytes(b"")
    return len(waveform.as_flac(source / "train" / "noise_0.wav")[0])


def test_a_part_too_large_for_a_shard_continues(
    recordings: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same bytes for any number of workers; the same rows as in one shard."""
    most = 3 * lengthen(source) + 4000
    settings, limits = recordings.Settings(part_rows=12), Limits(max_rejected=0.1)
    real = preprocessing._in_process
    monkeypatch.setattr(preprocessing, "_in_process", preprocessing._run)
    whole = preprocess(recordings, settings, source, tmp_path / "whole", limits)
    for out, workers in (("one", 1), ("three", 3)):
        if workers == 3:
            monkeypatch.setattr(preprocessing, "_in_process", real)
        summary = preprocess(recordings, settings, source, tmp_path / out, limits, workers, most)
        cut = summary["splits"]["train"].pop("shards")
        usual = {key: value for key, value in whole["splits"]["train"].items() if key != "shards"}
        assert cut > 3 and summary["splits"]["train"] == usual
    one = contents(tmp_path / "one")
    assert sorted(name for name in one if name.startswith("train-")) == [
        "train-00000.parquet",
        *(f"train-00000_{number:05d}.parquet" for number in range(1, cut - 1)),
        "train-00001.parquet",
    ]
    assert one == contents(tmp_path / "three")
    for name in ("test-00000.parquet", "left_out.jsonl", "train-00001.parquet"):
        assert one[name] == contents(tmp_path / "whole")[name], name
    rows = read_rows(tmp_path / "one", ["train", "test"])
    assert rows.equals(read_rows(tmp_path / "whole", ["train", "test"]))
    for path in (tmp_path / "one").glob("*.parquet"):
        assert 0 < pl.read_parquet(path)["audio"].bin.size().sum() <= most
    (tmp_path / "one" / "train-00000_00001.parquet").unlink()
    with pytest.raises(ShardError, match=r"train-00000_00001\.parquet is missing"):
        read_rows(tmp_path / "one", ["train"])


@pytest.mark.usefixtures("in_this_process")
def test_a_part_is_resumed_after_its_finished_shards(
    recordings: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = (Limits(max_rejected=0.1), 1, 3 * lengthen(source) + 4000)
    settings, checked, real = recordings.Settings(part_rows=99), [], preprocessing.validate_shard

    def check(path: Path) -> None:
        checked.append(path)
        if len(checked) == 3:
            raise ShardError("the third shard fails")
        real(path)

    with monkeypatch.context() as patched:
        patched.setattr(preprocessing, "validate_shard", check)
        with pytest.raises(ShardError, match="third shard"):
            preprocess(recordings, settings, source, tmp_path / "out", *arguments)
    made = {name: inode for name, inode in finished(tmp_path).items() if name.startswith("train")}
    assert len(made) == 2 and not (tmp_path / "out").exists()
    preprocess(recordings, settings, source, tmp_path / "out", *arguments)
    assert made.items() <= {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()}.items()
    preprocess(recordings, settings, source, tmp_path / "undisturbed", *arguments)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_a_failure_ends_the_parts_that_wait(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preprocessing, "_in_process", lambda job: 1 / job)
    with pytest.raises(ZeroDivisionError):
        list(preprocessing._in_processes(range(50), workers=1))  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("in_this_process")
def test_unusable_recordings_are_named(recordings: Any, source: Path, tmp_path: Path):
    soundfile.write(source / "test" / "zz_long.flac", np.random.default_rng(1).uniform(-1, 1, 3 * RATE), RATE)
    message = r"test-00000_00001\.parquet: row 0 \('test/zz_long\.flac'\): .*0\.1 MiB; cut the recording"
    with pytest.raises(ShardError, match=message):
        preprocess(recordings, recordings.Settings(), source, tmp_path / "out", shard_bytes=60_000)
    # A missing file is no bad file: it would be the reader's mistake, or half a source.
    (source / "train" / "gone.flac").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ShardError, match=r"gone\.flac cannot be read .*lists the corpus again"):
        preprocess(recordings, recordings.Settings(), source, tmp_path / "out", Limits(max_rejected=0.9))


@pytest.mark.usefixtures("in_this_process")
def test_files_that_were_changed_since_they_were_listed_are_refused(
    recordings: Any, source: Path, tmp_path: Path
):
    own = tmp_path / "own.txt"
    own.write_text("as it was")
    filestate.note(source, {own: None})
    preprocess(recordings, recordings.Settings(), source, tmp_path / "out", workers=1)
    own.write_text("corrected")
    with pytest.raises(filestate.ChangedError, match=r"own\.txt was changed"):
        preprocess(recordings, recordings.Settings(), source, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_splits_that_overlap_are_reported(tmp_path: Path, make_row: Callable[..., dict[str, Any]]):
    write_shards((make_row(i, speaker=f"s{i}") for i in range(6)), tmp_path, "train", 4)
    others = [make_row(i, "test", speaker="unknown") for i in range(8, 10)]
    write_shards(others, tmp_path, "test", 4)
    assert overlap(tmp_path, ["train"], ["test"]) == overlap(tmp_path, ["train"], []) == ""
    again = [make_row(i, "more", speaker=f"s{i}") for i in (2, 3)]
    again.append(make_row(3, "more", source_id="asked", speaker="s9"))  # of the same recording
    write_shards(again, tmp_path, "more", 4)
    found = overlap(tmp_path, ["train"], ["test", "more"])
    assert "2 recordings (tones-more-0002, tones-more-0003)" in found and "2 speakers (s2, s3)" in found
