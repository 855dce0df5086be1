"""Digit strings from an archive of tones, each of which tells what is heard; and from the real archive."""

import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from steermoe import corpora
from steermoe.audio import waveform
from steermoe.config import Digits
from steermoe.corpora import digits, downloads
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.downloads import UnavailableError
from steermoe.data.filters import skipped_reason
from steermoe.data.preprocess import preprocess
from steermoe.data.shards import read_rows

REAL = Path(__file__).parents[3] / "shared" / "data" / "fsdd"
Heard = tuple[str, int, int]  # speaker, digit, index


def settings(**changed: object) -> Digits:
    values = {
        "train": ["train"],
        "dev": [],
        "test": ["test", "unseen"],
        "seed": 29,
        "strings": {"train": 60, "test": 40, "unseen": 40},
        "max_digits": 6,
        "mirror": None,
        "required": True,
    }
    return Digits.model_validate(values | changed)


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


@pytest.fixture(scope="module")
def source(tone_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "digits"
    folder.mkdir()
    digits.fetch(settings(mirror=str(tone_archive)), folder)
    return folder


def all_rows(config: Digits, source: Path) -> list[dict]:
    return [row for part in digits.parts(config, source) for row in digits.rows(config, source, part)]


def spans(sound: np.ndarray) -> list[tuple[int, int]]:
    """Where there is sound: begin and end of every stretch without 40 ms of silence."""
    loud = np.flatnonzero(np.abs(sound) > 1e-3)
    breaks = np.flatnonzero(np.diff(loud) > 0.04 * waveform.RATE)
    begins, ends = [0, *(breaks + 1)], [*breaks, len(loud) - 1]
    return [(int(loud[a]), int(loud[b]) + 1) for a, b in zip(begins, ends, strict=True)]


def listen(sound: np.ndarray, by_tone: dict[int, Heard]) -> list[Heard]:
    """The recordings in a string, by their tones."""
    heard = []
    for begin, end in spans(sound):
        spectrum = np.abs(np.fft.rfft(sound[begin:end] * np.hanning(end - begin), 2**17))
        peak = np.argmax(spectrum) * waveform.RATE / 2**17
        nearest = min(by_tone, key=lambda tone: abs(tone - peak))
        assert abs(nearest - peak) < 3
        heard.append(by_tone[nearest])
    return heard


def test_what_is_heard_is_what_is_written(source: Path, by_tone: dict[int, Heard]):
    """Over all splits: speaker and transcript are true, and no recording is heard in two splits."""
    heard: dict[str, set[Heard]] = {split: set() for split in digits.SPLITS}
    lengths = []
    for row in all_rows(settings(), source):
        recordings = listen(waveform.load(row["audio"]), by_tone)
        assert [digits.WORDS[digit] for _, digit, _ in recordings] == row["transcript"].split()
        assert {speaker for speaker, _, _ in recordings} == {row["speaker"]}
        assert row["language"] == "en"
        heard[row["split"]] |= set(recordings)
        lengths.append(len(recordings))
    assert set(lengths) == {1, 2, 3, 4, 5, 6}
    assert {(speaker, index < 5) for speaker, _, index in heard["train"]} == {("anna", False), ("ben", False)}
    assert {(speaker, index < 5) for speaker, _, index in heard["test"]} == {("anna", True), ("ben", True)}
    assert {speaker for speaker, _, _ in heard["unseen"]} == {"nicolas"}
    assert {index for _, _, index in heard["unseen"]} == set(range(8))
    for one, other in itertools.combinations(heard.values(), 2):
        assert not one & other
    for recordings in heard.values():
        assert {digit for _, digit, _ in recordings} == set(range(10))


def test_levels_and_pauses(source: Path):
    pauses = []
    for row in all_rows(settings(strings={"train": 30, "test": 10, "unseen": 10}), source):
        sound = waveform.load(row["audio"])
        assert row["seconds"] == len(sound) / 16_000
        assert np.abs(sound).max() <= digits.PEAK + 1e-4
        places = spans(sound)
        for begin, end in places:
            # The tone's quiet first and last milliseconds are outside of its span.
            assert (end - begin) / 16_000 == pytest.approx(0.25, abs=0.003)
            middle = sound[begin + 400 : end - 400]
            assert np.sqrt(np.mean(middle**2)) == pytest.approx(digits.LEVEL, rel=0.05)
        ends = [0, *(end for _, end in places)]
        begins = [*(begin for begin, _ in places), len(sound)]
        pauses += [(b - a) / 16_000 for a, b in zip(ends, begins, strict=True)]
    assert min(pauses) >= 0.05 - 1e-3
    assert max(pauses) <= 0.2 + 3e-3
    assert np.std(pauses) > 0.03


def test_deterministic_in_the_seed(source: Path):
    first, again = (all_rows(settings(), source) for _ in range(2))
    assert first == again
    other = all_rows(settings(seed=30), source)
    assert [row["transcript"] for row in other] != [row["transcript"] for row in first]
    assert len({row["source_id"] for row in first}) == len(first) == 140


def test_parts(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(digits, "PART_STRINGS", 25)
    config = settings(strings={"train": 60, "test": 50, "unseen": 0}, test=["test"])
    found = digits.parts(config, source)
    assert [(part.split, part.number, part.count) for part in found] == [
        ("train", 0, 25), ("train", 1, 25), ("train", 2, 10), ("test", 0, 25), ("test", 1, 25),
    ]  # fmt: skip
    plans = [digits.plan(config, source, part) for part in found]
    assert [len(plan) for plan in plans] == [25, 25, 10, 25, 25]
    assert plans[0] != plans[1]
    assert digits.plan(config, source, found[1]) == plans[1]


def test_splits_are_those_of_the_configuration():
    assert digits.SPLITS == Digits.SPLITS == corpora.reader("digits").SPLITS


def test_fetch(tone_archive: Path, tmp_path: Path):
    for mirror in (str(tone_archive), str(tone_archive.parent)):
        corpora.fetch("digits", settings(mirror=mirror), tmp_path / "raw")
        assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == ["recordings", "source.json"]
        assert len(list((tmp_path / "raw" / "recordings").iterdir())) == 240
        assert not list((tmp_path / ".runs").iterdir())
    about = json.loads((tmp_path / "raw" / "source.json").read_text())
    assert about["speakers"] == ["anna", "ben", "nicolas"]
    assert about["recordings"] == 240
    assert tone_archive.exists()


def wav(rate: int = 8000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.full((800, channels), 0.1), rate, format="WAV")
    return file.getvalue()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"3_ben_1.wav": None, "3_ben_0.wav": None}, None),
        ({f"3_ben_{i}.wav": None for i in range(5)}, "incomplete, no test recording of 3 by ben"),
        ({f"3_ben_{i}.wav": None for i in range(5, 8)}, "incomplete, no training recording of 3 by ben"),
        ({"ten_ben_0.wav": wav()}, "expected a name like 7_jackson_32.wav"),
        ({"0_ben_9.wav": wav(16_000)}, "expected 8000 Hz mono, found .*16000"),
        ({"0_ben_9.wav": wav(channels=2)}, "expected 8000 Hz mono, found .*2 channels"),
        ({"0_ben_9.wav": b"RIFF"}, r"0_ben_9\.wav: not readable as audio"),
    ],
)
def test_the_content_of_an_archive_is_checked(
    tmp_path: Path,
    tone_recordings: dict[str, bytes],
    pack_archive: Callable,
    changed: dict,
    message: str | None,
):
    folder = next(iter(tone_recordings)).rpartition("/")[0]
    files: dict = tone_recordings | {f"{folder}/{name}": data for name, data in changed.items()}
    archive = pack_archive(
        tmp_path / "a.tar.gz", {name: data for name, data in files.items() if data is not None}
    )
    if message is None:
        corpora.fetch("digits", settings(mirror=str(archive)), tmp_path / "raw")
        return
    with pytest.raises(ValueError, match=message):
        corpora.fetch("digits", settings(mirror=str(archive)), tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_an_archive_of_something_else(tmp_path: Path, pack_archive: Callable):
    archive = pack_archive(tmp_path / "a.tar.gz", {"readme.txt": b"nothing here"})
    with pytest.raises(ArchiveError, match="expected one folder `recordings` with WAV files, found 0"):
        corpora.fetch("digits", settings(mirror=str(archive)), tmp_path / "raw")


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(digits, "URL", "http://127.0.0.1:1/v1.0.9.tar.gz")
    monkeypatch.setattr(downloads, "PAUSES", ())
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(UnavailableError, match="is this machine online"):
        corpora.fetch("digits", settings(), tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
    optional = settings(required=False)
    corpora.fetch("digits", optional, tmp_path / "raw")
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["SKIPPED.json"]
    reason = skipped_reason(tmp_path / "raw")
    assert reason is not None
    assert "corpora.digits.mirror" in reason
    assert f"SKIPPED digits: {reason}" in capsys.readouterr().err
    preprocess(corpora.reader("digits"), optional, tmp_path / "raw", tmp_path / "shards")
    assert read_rows(tmp_path / "shards", ["train", "unseen"]).is_empty()
    with pytest.raises(ArchiveError, match="no such file or folder"):  # a wrong path is never skipped
        corpora.fetch("digits", settings(required=False, mirror="nowhere"), tmp_path / "again")


def test_a_split_without_speakers(tmp_path: Path, source: Path):
    (tmp_path / "recordings").mkdir()
    for path in (source / "recordings").glob("*_anna_*.wav"):
        (tmp_path / "recordings" / path.name).write_bytes(path.read_bytes())
    part = digits.Part("unseen", 0, 5)
    with pytest.raises(
        ValueError, match=r"no recordings for split 'unseen' .* recordings of anna.*strings\.unseen to 0"
    ):
        digits.plan(settings(), tmp_path, part)


def test_unknown_corpus():
    with pytest.raises(ValueError, match="unknown corpus 'fsdd'; one of: synthetic, digits, librispeech"):
        corpora.reader("fsdd")


def test_the_real_archive(tmp_path: Path):
    if not list(REAL.glob("*.tar.gz")):
        pytest.skip(f"no archive of the Free Spoken Digit Dataset in {REAL}")
    config = settings(mirror=str(REAL), strings={"train": 40, "test": 20, "unseen": 20})
    corpora.fetch("digits", config, tmp_path / "raw")
    recordings = digits.recordings(tmp_path / "raw")
    assert len(recordings) % 500 == 0
    by_split = {split: {r for r in recordings if r.split == split} for split in digits.SPLITS}
    speakers = len({recording.speaker for recording in recordings}) - 1
    assert {split: len(found) for split, found in by_split.items()} == {
        "train": 450 * speakers,
        "test": 50 * speakers,
        "unseen": 500,
    }
    summary = preprocess(corpora.reader("digits"), config, tmp_path / "raw", tmp_path / "shards")
    assert {split: count["rows"] for split, count in summary["splits"].items()} == config.strings
    rows = read_rows(tmp_path / "shards", digits.SPLITS)
    assert rows["target"].str.split(" ").list.len().is_between(1, 6).all()
    assert rows["seconds"].is_between(0.2, 10).all()
    for row in rows.head(10).iter_rows(named=True):
        sound = waveform.load(row["audio"])
        pieces = len(row["target"].split())
        assert 0.1 < len(sound) / 16_000 / pieces < 2.5
        assert 0.02 < np.sqrt(np.mean(sound**2)) < 0.2
