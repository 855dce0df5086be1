"""Digit strings from an archive of tones, each of which tells its recording; and from the real archive."""

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from steermoe import corpora
from steermoe.audio import io as waveform
from steermoe.config.corpora import Digits
from steermoe.corpora import digits
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.reader import Generated
from steermoe.data.preprocess import preprocess
from steermoe.data.shards import read_rows
from tests.corpora.official import tarred

REAL = Path(__file__).parents[3] / "shared" / "data" / "fsdd"
SPEAKERS = ("anna", "ben", "nicolas")
INDICES = 8  # recordings of each digit by each speaker
FOLDER = "free-spoken-digit-dataset-1.0.9/recordings"
Heard = tuple[str, int, int]  # speaker, digit, index


def hertz(speaker: str, digit: int, index: int) -> int:
    """The tone of a recording, which no other has."""
    return 400 + 12 * ((SPEAKERS.index(speaker) * 10 + digit) * INDICES + index)


def wav(sound: np.ndarray, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def recording(speaker: str, digit: int, index: int) -> bytes:
    """0.25 s; loudness differs from recording to recording."""
    return wav(
        (0.05 + 0.1 * index) * np.sin(2 * np.pi * hertz(speaker, digit, index) * np.arange(2000) / 8000)
    )


BY_TONE = {hertz(*one): one for one in itertools.product(SPEAKERS, range(10), range(INDICES))}
RECORDINGS = {
    f"{FOLDER}/{digit}_{speaker}_{index}.wav": recording(speaker, digit, index)
    for speaker, digit, index in BY_TONE.values()
}


def settings(**changed: object) -> Digits:
    values = {
        "train": ["train"], "dev": [], "test": ["test", "unseen"], "seed": 29,
        "strings": {"train": 60, "test": 40, "unseen": 40}, "max_digits": 6, "mirror": None, "required": True,
    }  # fmt: skip
    return Digits.model_validate(values | changed)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fetched corpus."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "any-name.tar.gz").write_bytes(
        tarred({"free-spoken-digit-dataset-1.0.9/README.md": b"#"} | RECORDINGS)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(folder))
        corpora.fetch("digits", settings(mirror="."), folder / "raw")
    assert not list((folder / ".runs").iterdir())
    return folder / "raw"


def all_rows(config: Digits, source: Path) -> list[dict]:
    return [row for part in digits.parts(config, source) for row in digits.rows(config, source, part)]


def spans(sound: np.ndarray) -> list[tuple[int, int]]:
    """Where there is sound: begin and end of everything without 40 ms of silence."""
    loud = np.flatnonzero(np.abs(sound) > 1e-3)
    breaks = np.flatnonzero(np.diff(loud) > 0.04 * waveform.RATE)
    begins, ends = [0, *(breaks + 1)], [*breaks, len(loud) - 1]
    return [(int(loud[a]), int(loud[b]) + 1) for a, b in zip(begins, ends, strict=True)]


def listen(sound: np.ndarray) -> list[Heard]:
    """The recordings in a string, by their tones."""
    heard = []
    for begin, end in spans(sound):
        spectrum = np.abs(np.fft.rfft(sound[begin:end] * np.hanning(end - begin), 2**15))
        peak = np.argmax(spectrum) * waveform.RATE / 2**15
        nearest = min(BY_TONE, key=lambda tone: abs(tone - peak))
        assert abs(nearest - peak) < 3
        heard.append(BY_TONE[nearest])
    return heard


def test_speaker_and_transcript_are_true_and_no_recording_is_in_two_splits(source: Path) -> None:
    heard: dict[str, set[Heard]] = {split: set() for split in digits.SPLITS}
    lengths = set()
    for row in all_rows(settings(), source):
        recordings = listen(waveform.load(row["audio"]))
        assert [digits.WORDS[digit] for _, digit, _ in recordings] == row["transcript"].split()
        assert {speaker for speaker, _, _ in recordings} == {row["speaker"]}
        heard[row["split"]] |= set(recordings)
        lengths.add(len(recordings))
    assert lengths == {1, 2, 3, 4, 5, 6}
    assert {(speaker, index < 5) for speaker, _, index in heard["train"]} == {("anna", False), ("ben", False)}
    assert {(speaker, index < 5) for speaker, _, index in heard["test"]} == {("anna", True), ("ben", True)}
    assert {speaker for speaker, _, _ in heard["unseen"]} == {"nicolas"}
    assert {index for _, _, index in heard["unseen"]} == set(range(8))
    assert all(not one & other for one, other in itertools.combinations(heard.values(), 2))
    assert all({digit for _, digit, _ in recordings} == set(range(10)) for recordings in heard.values())


def test_levels_and_pauses(source: Path) -> None:
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
        ends, begins = [0, *(end for _, end in places)], [*(begin for begin, _ in places), len(sound)]
        pauses += [(b - a) / 16_000 for a, b in zip(ends, begins, strict=True)]
    assert min(pauses) >= 0.05 - 1e-3 and max(pauses) <= 0.2 + 3e-3 and np.std(pauses) > 0.03


def test_deterministic_in_the_seed(source: Path) -> None:
    strings = {"train": 6, "test": 3, "unseen": 3}
    first, again = (all_rows(settings(strings=strings), source) for _ in range(2))
    assert first == again and len({row["source_id"] for row in first}) == len(first) == 12
    other = all_rows(settings(strings=strings, seed=30), source)
    assert [row["transcript"] for row in other] != [row["transcript"] for row in first]


def test_parts(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "PART_STRINGS", 25)
    config = settings(strings={"train": 60, "test": 50, "unseen": 0}, test=["test"])
    found = digits.parts(config, source)
    assert [(part.split, part.number, part.count) for part in found] == [
        ("train", 0, 25), ("train", 1, 25), ("train", 2, 10), ("test", 0, 25), ("test", 1, 25),
    ]  # fmt: skip
    plans = [digits.plan(config, source, part) for part in found]
    assert [len(plan) for plan in plans] == [25, 25, 10, 25, 25]
    assert plans[0] != plans[1] == digits.plan(config, source, found[1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({f"3_ben_{i}.wav": None for i in range(5)}, "incomplete: no test recording of 3 by ben"),
        ({f"3_ben_{i}.wav": None for i in range(5, 8)}, "incomplete: no training recording of 3 by ben"),
        ({"ten_ben_0.wav": b""}, "expected a name like 7_jackson_32.wav"),
        ({"0_ben_9.wav": wav(np.full(800, 0.1), 16_000)}, "expected 8000 Hz mono, found .*16000"),
        ({"0_ben_9.wav": wav(np.full((800, 2), 0.1))}, "expected 8000 Hz mono, found .*2 channels"),
        ({"0_ben_9.wav": b"RIFF"}, r"0_ben_9\.wav: not readable as audio"),
        (None, r"expected 'recordings' or '\*/recordings' in it, once, found: readme\.txt"),
    ],
)
def test_the_content_of_an_archive_is_checked(
    fill: Any, root: Path, changed: dict | None, message: str
) -> None:
    files: dict = {"readme.txt": b""}
    if changed is not None:
        files = RECORDINGS | {f"{FOLDER}/{name}": data for name, data in changed.items()}
    fill({"a.tar.gz": tarred({name: data for name, data in files.items() if data is not None})})
    with pytest.raises(ArchiveError, match=message):
        corpora.fetch("digits", settings(mirror="mirror"), root / "raw")
    assert not (root / "raw").exists()


def test_a_split_without_speakers(fill: Any, root: Path) -> None:
    """As long as nothing is asked of it, an archive of fewer speakers will do, here an unpacked one."""
    fill(
        {name.rpartition("/")[2]: data for name, data in RECORDINGS.items() if "_anna_" in name},
        "mirror/recordings",
    )
    corpora.fetch("digits", settings(mirror="mirror"), root / "raw")
    message = r"no recordings for split 'unseen' .* recordings of anna.*strings\.unseen to 0"
    with pytest.raises(ValueError, match=message):
        digits.plan(settings(), root / "raw", Generated("unseen", 0, 5))
    assert digits.plan(settings(), root / "raw", Generated("train", 0, 5))


def test_the_real_archive(root: Path) -> None:
    if not list(REAL.glob("*.tar.gz")):
        pytest.skip(f"no archive of the Free Spoken Digit Dataset in {REAL}")
    config = settings(mirror=str(REAL), strings={"train": 40, "test": 20, "unseen": 20})
    corpora.fetch("digits", config, root / "raw")
    recordings = digits.recordings(root / "raw")
    speakers = len({recording.speaker for recording in recordings}) - 1
    counts = {split: sum(r.split == split for r in recordings) for split in digits.SPLITS}
    assert counts == {"train": 450 * speakers, "test": 50 * speakers, "unseen": 500}
    summary = preprocess(corpora.reader("digits"), config, root / "raw", root / "shards")
    assert {split: count["rows"] for split, count in summary["splits"].items()} == config.strings
    for row in read_rows(root / "shards", digits.SPLITS).head(10).iter_rows(named=True):
        sound = waveform.load(row["audio"])
        assert 0.1 < len(sound) / 16_000 / len(row["target"].split()) < 2.5
        assert 0.02 < np.sqrt(np.mean(sound**2)) < 0.2
