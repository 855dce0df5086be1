"""Real files of every kind to shards: decoded, refused by name, dropped and listed; test splits stay whole."""

import json
import shutil
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
from steermoe.data.limits import Limits, RejectedError, tokenizer_file
from steermoe.data.preprocess import preprocess
from steermoe.data.rows import ShardError, ShardWriter
from steermoe.data.shards import read_rows

READERS = Path(__file__).parent / "readers"
TOKENIZER = Path(__file__).parents[2] / "pretrained" / "llm"


def tone(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    wave = 0.4 * np.sin(2 * np.pi * 300 * np.arange(round(seconds * rate)) / rate)
    return np.stack([wave] * channels, axis=1).astype(np.float32)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(READERS)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
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


BAD = {
    "zz_empty.wav": (b"", "empty, 0 bytes"),
    "zz_noise.flac": (b"\x13\x37" * 4000, "not readable as audio"),
    "zz_apple.m4a": (
        b"\x00\x00\x00\x20ftypM4A " + bytes(200),
        "not readable as audio",
    ),
}


def spoil(source: Path, split: str, names: list[str]) -> None:
    for name in names:
        (source / split / name).write_bytes(BAD[name][0])


def listed(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]


def test_every_kind_becomes_16_khz_mono(recordings: Any, source: Path, tmp_path: Path):
    summary = preprocess(recordings, recordings.Settings(), source, tmp_path / "out", workers=2)
    assert summary["splits"]["train"] == {
        "shards": 1, "rows": 8, "seconds": pytest.approx(4, abs=0.05), "dropped": 0, "rejected": 0,
    }  # fmt: skip
    for row in read_rows(tmp_path / "out", ["train"]).iter_rows(named=True):
        sound = waveform.load(row["audio"])
        assert abs(len(sound) - RATE // 2) <= 0.03 * RATE and row["seconds"] == len(sound) / RATE
        middle = sound[2000:-2000]
        spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
        assert spectrum.argmax() * RATE / len(middle) == pytest.approx(300, abs=RATE / len(middle)), row[
            "source_id"
        ]
        assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(0.4, rel=0.05), row["source_id"]
    kept = read_rows(tmp_path / "out", ["train"]).filter(source_id="train/plain.flac")["audio"][0]
    assert kept == (source / "train" / "plain.flac").read_bytes()
    assert listed(tmp_path / "out") == []


def test_bytes_do_not_depend_on_the_workers(recordings: Any, source: Path, tmp_path: Path):
    settings = recordings.Settings(part_rows=2)
    for out, workers in (("one", 1), ("three", 3)):
        preprocess(recordings, settings, source, tmp_path / out, workers=workers)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len([name for name in names if name.startswith("train-")]) == 4
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes(), name


def test_bad_files_are_named_and_the_rest_is_made(recordings: Any, source: Path, tmp_path: Path):
    spoil(source, "train", list(BAD))
    limits = Limits(max_rejected=3 / 11, whole=["test"])
    summary = preprocess(recordings, recordings.Settings(part_rows=4), source, tmp_path / "out", limits)
    assert summary["splits"]["train"]["rejected"] == 3 and summary["splits"]["train"]["rows"] == 8
    found = listed(tmp_path / "out")
    assert [item["source_id"] for item in found] == [f"train/{name}" for name in sorted(BAD)]
    for item in found:
        _, reason = BAD[item["source_id"].removeprefix("train/")]
        assert item["kind"] == "rejected" and reason in item["reason"] and item["split"] == "train"


def test_too_many_bad_files_are_an_error_that_forgets_nothing(recordings: Any, source: Path, tmp_path: Path):
    spoil(source, "train", ["zz_empty.wav"])
    settings, out = recordings.Settings(part_rows=4), tmp_path / "out"
    message = r"1 of 11 utterances cannot be used, allowed is a share of 0\.05 (.|\n)*train/zz_empty\.wav"
    with pytest.raises(RejectedError, match=message):
        preprocess(recordings, settings, source, out, Limits(max_rejected=0.05))
    assert not out.exists()
    (made,) = (tmp_path / ".runs").glob("*/files/train-00000.parquet")
    inode = made.stat().st_ino
    preprocess(recordings, settings, source, out, Limits(max_rejected=0.1))
    assert (out / "train-00000.parquet").stat().st_ino == inode


def test_a_test_split_is_whole_but_for_what_is_named(recordings: Any, source: Path, tmp_path: Path):
    spoil(source, "test", ["zz_noise.flac"])
    settings, out = recordings.Settings(), tmp_path / "out"
    with pytest.raises(
        RejectedError, match=r"1 utterances of test splits (.|\n)*test/zz_noise\.flac \(test\)"
    ):
        preprocess(recordings, settings, source, out, Limits(whole=["test"], max_rejected=0.5))
    named = Limits(whole=["test"], unreadable=["test/zz_noise.flac"])
    summary = preprocess(recordings, settings, source, out, named)
    assert summary["splits"]["test"]["rows"] == 2 and summary["splits"]["test"]["rejected"] == 1
    without_effect = Limits(whole=["test"], unreadable=["test/zz_noise.flac", "test/said_0.flac"])
    with pytest.raises(RejectedError, match=r"names 'test/said_0\.flac', which is no unreadable utterance"):
        preprocess(recordings, settings, source, out, without_effect)


def test_what_is_too_long_is_dropped_and_listed_but_not_from_test(
    recordings: Any, source: Path, tmp_path: Path
):
    soundfile.write(source / "train" / "long.flac", tone(2, RATE), RATE)
    words = "three_" * 9 + "three"
    for split in ("train", "test"):
        soundfile.write(source / split / f"{words}.flac", tone(0.2, RATE), RATE)
    counter = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    tokens = len(counter.encode(words.replace("_", " "), add_special_tokens=False).ids)
    limits = Limits(
        max_seconds=1.0, max_tokens=tokens - 1, tokenizer=tokenizer_file(str(TOKENIZER)), whole=["test"]
    )
    summary = preprocess(recordings, recordings.Settings(), source, tmp_path / "out", limits)
    assert summary["splits"]["train"]["dropped"] == 2 and summary["splits"]["test"]["dropped"] == 0
    assert summary["splits"]["test"]["rows"] == 3  # 1.3 s, and the many words, among them
    assert {item["source_id"]: item["reason"] for item in listed(tmp_path / "out")} == {
        "train/long.flac": "2.00 s, allowed are 1",
        f"train/{words}.flac": f"target of {tokens} tokens, allowed are {tokens - 1}",
    }
    exact = Limits(max_tokens=tokens, tokenizer=limits.tokenizer)
    assert (
        preprocess(recordings, recordings.Settings(), source, tmp_path / "out", exact)["splits"]["train"][
            "dropped"
        ]
        == 0
    )


def test_tokens_are_those_of_the_llms_tokenizer():
    from transformers import PreTrainedTokenizerFast

    path = tokenizer_file(str(TOKENIZER))
    counter, llm = Tokenizer.from_file(str(path)), PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    for text in ("ann has two cats", "Gr\u00fc\u00dfe, \u4f60\u597d!", ""):
        assert counter.encode(text, add_special_tokens=False).ids == llm.encode(
            text, add_special_tokens=False
        )


def test_without_a_tokenizer_tokens_are_not_guessed(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"no tokenizer.json, by which tokens are counted; .*max_tokens to null"
    ):
        tokenizer_file(str(tmp_path))


def test_a_shard_has_a_largest_size(tmp_path: Path, make_row: Any):
    most = 2 * len(make_row(0)["audio"])
    with (
        pytest.raises(
            ShardError, match=r"row 2 \('2'\): found .* allowed are .* write fewer rows to a shard"
        ),
        ShardWriter(tmp_path / "train-00000.parquet", most) as shard,
    ):
        for number in range(3):
            shard.add(make_row(0) | {"source_id": str(number)})
    assert not list(tmp_path.glob("*.parquet"))


def lengthen(source: Path) -> int:
    """Six recordings of noise in `train`, 2 s each, with a damaged one amid; bytes of one of them in a shard."""
    rng = np.random.default_rng(5)
    for number in range(6):
        sound = 0.3 * rng.standard_normal(2 * RATE).clip(-3, 3)
        soundfile.write(source / "train" / f"noise_{number}.wav", sound, RATE, subtype="PCM_16")
    (source / "train" / "noise_4x.wav").write_bytes(b"")
    return len(waveform.as_flac(source / "train" / "noise_0.wav")[0])


def test_a_part_too_large_for_a_shard_goes_on_in_others(recordings: Any, source: Path, tmp_path: Path):
    most = 3 * lengthen(source) + 4000
    settings, limits = recordings.Settings(part_rows=12), Limits(max_rejected=0.1)
    whole = preprocess(recordings, settings, source, tmp_path / "whole", limits)
    for out, workers in (("one", 1), ("three", 3)):
        summary = preprocess(recordings, settings, source, tmp_path / out, limits, workers, most)
        cut = summary["splits"]["train"].pop("shards")
        assert cut > 3 and summary["splits"]["train"] == {
            key: value for key, value in whole["splits"]["train"].items() if key != "shards"
        }
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert [name for name in names if name.startswith("train-")] == [
        "train-00000.parquet",
        *(f"train-00000_{number:05d}.parquet" for number in range(1, cut - 1)),
        "train-00001.parquet",
    ]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes(), name
    for name in ("test-00000.parquet", "left_out.jsonl", "train-00001.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    rows = read_rows(tmp_path / "one", ["train", "test"])
    assert rows.equals(read_rows(tmp_path / "whole", ["train", "test"]))
    for path in (tmp_path / "one").glob("*.parquet"):
        assert 0 < pl.read_parquet(path)["audio"].bin.size().sum() <= most
    (tmp_path / "one" / "train-00000_00001.parquet").unlink()
    with pytest.raises(ShardError, match=r"train-00000_00001\.parquet is missing"):
        read_rows(tmp_path / "one", ["train"])


def test_finished_shards_of_a_part_are_kept(recordings: Any, source: Path, tmp_path: Path):
    """The last recording of a part is no recording yet: what came before it is not made again."""
    most = 3 * lengthen(source) + 4000
    settings, limits, out = recordings.Settings(part_rows=99), Limits(max_rejected=0.1), tmp_path / "out"
    last = source / "train" / "zz_last.wav"
    last.symlink_to(source / "later.wav")
    with pytest.raises(ShardError, match=r"zz_last\.wav"):
        preprocess(recordings, settings, source, out, limits, 1, most)
    made = {path.name: path.stat().st_ino for path in tmp_path.glob(".runs/*/files/train-*.parquet")}
    assert len(made) > 1 and not out.exists()
    with pytest.raises(ShardError, match=r"zz_last\.wav"):
        preprocess(recordings, settings, source, out, limits, 1, most)
    assert made == {path.name: path.stat().st_ino for path in tmp_path.glob(".runs/*/files/train-*.parquet")}


def test_a_recording_larger_than_a_shard_is_named(recordings: Any, source: Path, tmp_path: Path):
    soundfile.write(source / "test" / "zz_long.flac", np.random.default_rng(1).uniform(-1, 1, 3 * RATE), RATE)
    message = (
        r"test-00000_00001\.parquet: row 0 \('test/zz_long\.flac'\): found 0\.1 MiB .* allowed are at most 0\.1 a "
        r"shard; cut the recording into shorter ones .*\(preprocessing\.max_seconds\)"
    )
    with pytest.raises(ShardError, match=message):
        preprocess(recordings, recordings.Settings(), source, tmp_path / "out", shard_bytes=60_000)


def test_a_missing_file_is_no_bad_file(recordings: Any, source: Path, tmp_path: Path):
    """It would be the reader's mistake, or half a source."""
    (source / "train" / "gone.flac").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ShardError, match=r"gone\.flac cannot be read .*lists the corpus again"):
        preprocess(recordings, recordings.Settings(), source, tmp_path / "out", Limits(max_rejected=0.9))


def test_a_source_that_changes_is_made_anew(recordings: Any, source: Path, tmp_path: Path):
    out = tmp_path / "out"
    preprocess(recordings, recordings.Settings(), source, out)
    shutil.copy(source / "train" / "plain.flac", source / "train" / "more.flac")
    assert preprocess(recordings, recordings.Settings(), source, out)["splits"]["train"]["rows"] == 9


def test_a_split_of_which_nothing_is_left_is_an_error(recordings: Any, source: Path, tmp_path: Path):
    limits = Limits(max_seconds=0.1, whole=["test"])
    message = (
        r"nothing is left of split 'train': all of its 8 (.|\n)*preprocessing\.max_seconds(.|\n)*0\.50 s"
    )
    with pytest.raises(RejectedError, match=message):
        preprocess(recordings, recordings.Settings(), source, tmp_path / "out", limits)


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
