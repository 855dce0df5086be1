"""Phrases of a made WordNet, planned for voices; and spoken by the real voices, where they can be fetched."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steermoe import corpora, weights
from steermoe.audio import augment, neural_voices
from steermoe.audio import io as waveform
from steermoe.audio.neural_voices import PIPER, Spoken
from steermoe.config.corpora import Neural
from steermoe.corpora import neural
from steermoe.corpora.wordnet import example_phrases
from steermoe.data.preprocess import preprocess
from steermoe.data.shards import read_rows

NAMES = "alder birch cedar dogwood elm fir gum hazel ivy juniper".split()
COUNTS = {
    "train": 60,
    "train-piper": 20,
    "dev": 8,
    "clean": 12,
    "noise": 12,
    "reverb": 6,
    "telephone": 12,
    "tune": 7,
}


def settings(**changes: Any) -> Neural:
    values = {
        "train": ["train", "train-piper", "tune"], "dev": ["dev"], "test": ["clean", "noise", "reverb", "telephone"],
        "seed": 5, "limit": None, "utterances": COUNTS, "changed_share": 0.5,
    }  # fmt: skip
    return Neural.model_validate(values | changes)


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred examples of five words, and what must be left out of them."""
    folder = tmp_path_factory.mktemp("wordnet")
    for number, part in enumerate(("noun", "verb", "adj", "adv")):
        of = NAMES[number * 5 % 10 : number * 5 % 10 + 5]
        lines = [
            f'0 03 n 01 x 0 000 | a tree; "the {name} {verb} by the {other}"; "too short"; "in 1984 it was cut down"'
            for name in of
            for verb in (("grows", "falls") if number < 2 else ("bends", "burns"))
            for other in NAMES
        ]
        (folder / f"data.{part}").write_text(
            '  1 the licence, "which is no example of use"\n' + "\n".join(lines) + "\n"
        )
    return folder


def test_phrases_are_sentences_and_each_stands_once(wordnet: Path, tmp_path: Path) -> None:
    phrases = example_phrases(wordnet)
    assert phrases[0] == "The alder grows by the alder." and len(phrases) == len(set(phrases)) == 400
    for part in ("noun", "verb", "adj", "adv"):
        gloss = (
            '"Is it you or him?"; "is it you or him"; "it\'s   a long  way"; "a b"; "the 3 of us went home"'
        )
        (tmp_path / f"data.{part}").write_text(f"0 03 n 01 x 0 000 | {gloss}\n")
    assert example_phrases(tmp_path) == ["Is it you or him?", "It's a long way."]


def test_no_text_and_no_voice_is_in_two_splits(wordnet: Path) -> None:
    planned = neural.planned(settings(), wordnet)
    assert {split: len(of) for split, of in planned.items()} == {
        "test": 12, "dev": 8, "train": 60, "train-piper": 20, "tune": 7,
    }  # fmt: skip
    texts = [each.spoken.text for of in planned.values() for each in of]
    assert len(set(texts)) == len(texts)
    voices = {split: {v for u in of for v in u.spoken.voice.split("+")} for split, of in planned.items()}
    assert voices["test"] == set(neural.VOICES["test"]) and voices["dev"] == set(neural.VOICES["dev"])
    assert (
        PIPER in voices["train"]
        and voices["train-piper"] == {PIPER}
        and voices["train"] <= {PIPER, *neural.VOICES["train"]}
    )
    assert (
        len({*neural.VOICES["train"], *neural.VOICES["dev"], *neural.VOICES["test"], *neural.OUTSIDE}) == 28
    )
    assert any("+" in each.spoken.voice for each in planned["train"])


def test_a_larger_training_split_begins_with_the_smaller_one(wordnet: Path) -> None:
    """What was spoken for it is used again, and that of the other splits."""
    small, large = (
        neural.planned(settings(utterances=COUNTS | {"train": count}), wordnet) for count in (60, 90)
    )
    assert large["train"][:60] == small["train"]
    assert all(large[split] == small[split] for split in ("test", "dev", "train-piper"))


def test_more_phrases_than_there_are(wordnet: Path) -> None:
    with pytest.raises(ValueError, match=r"corpora\.neural\.utterances.*at most 400"):
        neural.planned(settings(utterances=COUNTS | {"train": 361}), wordnet)


def test_a_telephone_carries_its_band_only() -> None:
    seconds = np.arange(waveform.RATE) / waveform.RATE
    kept = {}
    for hertz in (100, 1000, 3000, 5000):
        tone = 0.5 * np.sin(2 * np.pi * hertz * seconds).astype(np.float32)
        carried = augment.telephone(tone)
        assert carried.shape == tone.shape and carried.dtype == np.float32
        kept[hertz] = carried[2000:-2000].std() / tone.std()
    assert kept[1000] == pytest.approx(1, abs=0.1) and kept[3000] == pytest.approx(1, abs=0.2)
    assert kept[100] < 0.1 and kept[5000] < 0.01


@pytest.fixture(scope="module")
def voices() -> tuple[Path, Path]:
    """The folders of Kokoro and Piper."""
    pytest.importorskip("kokoro_onnx")
    try:
        return weights.fetched("kokoro-82m"), weights.fetched("piper-joe")
    except weights.UnavailableError as error:
        pytest.skip(f"the voices cannot be fetched: {error}")


SPOKEN = [
    Spoken("The cat climbed the fence.", "af_heart"),
    Spoken("The cat climbed the fence.", "af_heart+af_kore"),
    Spoken("The cat climbed the fence.", PIPER),
    Spoken("The cat climbed the fence.", PIPER, 1.3),
]


def test_a_recording_does_not_depend_on_what_was_spoken_before(
    voices: tuple[Path, Path], tmp_path: Path
) -> None:
    assert neural_voices.record(SPOKEN, voices, tmp_path / "two", 2) == len(SPOKEN)
    files = sorted((tmp_path / "two").iterdir())
    assert len(files) == len(SPOKEN)
    sounds = {each: waveform.load(tmp_path / "two" / each.file) for each in SPOKEN}
    assert all(1 < len(sound) / waveform.RATE < 3 for sound in sounds.values())
    assert len(sounds[SPOKEN[3]]) < 0.9 * len(sounds[SPOKEN[2]])
    engine = neural_voices.Engine(*voices)
    for each in reversed(SPOKEN):
        again = waveform.encode_flac(engine.speak(each), waveform.RATE)
        assert again == (tmp_path / "two" / each.file).read_bytes()
    files[0].unlink()
    assert neural_voices.record(SPOKEN, voices, tmp_path / "two", 1) == 1
    with pytest.raises(ValueError, match="unknown voice 'af_nobody'; one of: piper-joe, af_alloy"):
        engine.speak(Spoken("Hello there.", "af_nobody"))


def test_corpus_becomes_shards_under_their_conditions(
    voices: tuple[Path, Path], wordnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"wordnet": wordnet, "kokoro-82m": voices[0], "piper-joe": voices[1]}
    monkeypatch.setattr(neural, "fetched", lambda name: folders[name])
    monkeypatch.setattr(neural, "cache", lambda: tmp_path / "cache")
    counts = {
        "train": 1,
        "train-piper": 3,
        "dev": 1,
        "clean": 2,
        "noise": 2,
        "reverb": 2,
        "telephone": 2,
        "tune": 1,
    }
    chosen = settings(utterances=counts, changed_share=0.0)
    corpora.fetch("neural", chosen, tmp_path / "raw")
    summary = preprocess(neural, chosen, tmp_path / "raw", tmp_path / "shards", workers=1)
    assert {split: of["rows"] for split, of in summary["splits"].items()} == counts
    clean, *changed = (
        read_rows(tmp_path / "shards", [split]) for split in ("clean", "noise", "reverb", "telephone")
    )
    for of in changed:
        assert of["transcript"].to_list() == clean["transcript"].to_list()
        assert of["seconds"].to_list() == clean["seconds"].to_list()
        assert not set(of["audio"]) & set(clean["audio"])
    assert len(list((tmp_path / "cache" / "speech").iterdir())) == 8
