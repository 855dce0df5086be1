"""Phrases spoken by neural voices: 28 English voices of Kokoro, mixtures of them, and one of Piper.

`train` has 14 voices of Kokoro, mixtures of two of them, and Piper; `train-piper` has Piper alone, which costs a
seventh of the time, and so has `tune`: other texts, for steps after those on the first two. All have varied speed and
pitch, and a share of them is changed by one of the conditions. Voices and texts of `dev` and of the test splits occur
nowhere else. The test splits hold the same recordings: `clean` as they are, the others under a condition: `noise`
(5-20 dB), `reverb` (RT60 0.2-0.6 s), `telephone` (300-3400 Hz, 8-bit A-law). Four voices are in no split: they are
left for a check from outside.

`fetch` speaks the phrases, which takes about 0.6 CPU seconds per second of Kokoro and 0.1 of Piper; recordings are
kept in a folder of the user, so that nothing is spoken twice. Conditions are applied when rows are read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from steermoe.atomic_io import write_bytes
from steermoe.audio import augment, neural_voices
from steermoe.audio import io as waveform
from steermoe.audio.neural_voices import PIPER, Spoken
from steermoe.config.corpora import Neural
from steermoe.corpora import download, manifest
from steermoe.corpora.manifest import Entry, Part, parts
from steermoe.corpora.reader import card
from steermoe.corpora.wordnet import example_phrases, shuffled
from steermoe.weights import cache, fetched

__all__ = ["CARD", "SPLITS", "fetch", "parts", "rows"]

SPLITS = Neural.SPLITS
PIPER_ALONE = ("train-piper", "tune")
TRAIN = ("train", *PIPER_ALONE)
TESTS = ("clean", "noise", "reverb", "telephone")  # the same recordings
OUTSIDE = ("af_bella", "am_eric", "bf_emma", "bm_lewis")  # in no split
VOICES = {
    "train": (
        *("af_alloy", "af_aoede", "af_heart", "af_jessica", "af_kore", "af_nicole", "af_sky"),
        *("am_adam", "am_fenrir", "am_liam", "am_onyx", "am_santa", "bf_alice", "bm_daniel"),
    ),
    "dev": ("af_nova", "am_puck", "bf_lily", "bm_fable"),
    "test": (*("af_river", "af_sarah", "am_echo", "am_michael", "bf_isabella", "bm_george"),),
}
PIPER_SHARE = 0.4  # of the utterances of `train`
MIXED_SHARE = 0.5  # of the utterances of Kokoro in `train`
SPEED = (0.85, 1.15)  # the range of a voice's speed in `train`
RESAMPLING = {PIPER: 0.18, "": 0.08}  # how far pitch and tempo are changed together in `train`, by voice

CARD = card("neural")


@dataclass(frozen=True)
class Utterance:
    """A recording to make: its id in the split, what is spoken, and the factor of pitch and tempo."""

    id: str
    spoken: Spoken
    resampling: float = 1.0


def fetch(settings: Neural, dest: Path) -> None:
    """Speak the phrases of the splits in use into `dest`/data, and write the manifest.

    Raises:
        UnavailableError: a voice, or WordNet, cannot be fetched.
        ValueError: there are fewer phrases than the settings ask for.
    """
    utterances = planned(settings, fetched("wordnet"))
    folder = cache() / "speech"
    spoken = [each.spoken for split in utterances.values() for each in split]
    neural_voices.record(spoken, (fetched("kokoro-82m"), fetched("piper-joe")), folder)
    for split, of in utterances.items():
        entries = [_entry(each, folder, dest) for each in of]
        for name in TESTS if split == "test" else (split,):
            if name in settings.used:
                manifest.write_manifest(dest, name, entries)
    download.use_folder("neural", dest / "data", dest, ())


def planned(settings: Neural, wordnet: Path) -> dict[str, list[Utterance]]:
    """Return what is spoken for the splits in use, for the test splits together.

    Raises:
        ValueError: there are fewer phrases than the settings ask for.
    """
    counts = {name: count for name, count in settings.utterances.items() if name not in TESTS}
    counts["test"] = max(settings.utterances[name] for name in TESTS)
    texts = shuffled(example_phrases(wordnet), settings.seed)
    if sum(counts.values()) > len(texts):
        raise ValueError(
            f"corpora.neural.utterances: found {sum(counts.values())} in all (test splits share theirs); legal: "
            f"at most {len(texts)}, the phrases that WordNet has"
        )
    found, used = {}, 0
    # Piper's texts come from the end, so that they do not change with the size of `train`, nor its texts with theirs.
    for split in ("test", "dev", "train"):
        rng = np.random.default_rng([settings.seed, len(found)])
        found[split] = [_utterance(rng, split, n, texts[used + n]) for n in range(counts[split])]
        used += counts[split]
    rng = np.random.default_rng([settings.seed, len(found)])
    last = iter(texts[::-1])
    for split in PIPER_ALONE:
        found[split] = [_utterance(rng, split, n, next(last)) for n in range(counts[split])]
    return found


def _utterance(rng: np.random.Generator, split: str, number: int, text: str) -> Utterance:
    if split in ("test", "dev"):
        voices = VOICES[split]
        return Utterance(f"{number:05d}", Spoken(text, voices[number % len(voices)]))
    voice = PIPER
    if split == "train" and rng.random() >= PIPER_SHARE:
        voices = VOICES["train"]
        first, second = rng.choice(len(voices), 2, replace=False)
        same_accent = voices[first][0] == voices[second][0]
        mixed = same_accent and rng.random() < MIXED_SHARE
        voice = f"{voices[first]}+{voices[second]}" if mixed else voices[first]
    speed = round(float(rng.uniform(*SPEED)), 2)
    most = RESAMPLING.get(voice, RESAMPLING[""])
    return Utterance(
        f"{number:05d}", Spoken(text, voice, speed), round(1 + float(rng.uniform(-most, most)), 3)
    )


def _entry(utterance: Utterance, folder: Path, dest: Path) -> Entry:
    """Return the entry of an utterance, whose recording is put into `dest`/data."""
    path = dest / "data" / f"{utterance.spoken.file.removesuffix('.flac')}-{utterance.resampling:g}.flac"
    if not path.exists():
        sound = waveform.load(folder / utterance.spoken.file)
        if utterance.resampling != 1:
            sound = soxr.resample(sound, waveform.RATE * utterance.resampling, waveform.RATE)
        write_bytes(path, waveform.encode_flac(sound, waveform.RATE))
    return Entry(
        id=utterance.id,
        audio=path.name,
        language="en",
        speaker=utterance.spoken.voice,
        transcript=utterance.spoken.text,
    )


def rows(settings: Neural, source: Path, part: Part) -> Iterator[dict[str, Any]]:
    """Yield the utterances of a part under their conditions, with the columns of `steermoe.data.schema.Utterance`."""
    rng = np.random.default_rng([settings.seed, SPLITS.index(part.split), part.number])
    for row in manifest.rows(settings, source, part):
        condition = CONDITIONS.get(part.split)
        if part.split in TRAIN and rng.random() < settings.changed_share:
            condition = list(CONDITIONS.values())[rng.integers(len(CONDITIONS))]
        sound = waveform.load(row["audio"])
        if condition is not None:
            sound = augment.normalise_peak(condition(rng, sound), float(np.abs(sound).max()))
        yield row | {
            "audio": waveform.encode_flac(sound, waveform.RATE),
            "sample_rate": waveform.RATE,
            "seconds": len(sound) / waveform.RATE,
        }


def _noise(rng: np.random.Generator, sound: np.ndarray) -> np.ndarray:
    return augment.add_noise(rng, sound, snr_db=rng.uniform(5, 20))


def _reverb(rng: np.random.Generator, sound: np.ndarray) -> np.ndarray:
    return augment.reverberate(rng, sound, waveform.RATE, rt60=rng.uniform(0.2, 0.6))


def _telephone(_: np.random.Generator, sound: np.ndarray) -> np.ndarray:
    return augment.telephone(sound)


CONDITIONS = {"noise": _noise, "reverb": _reverb, "telephone": _telephone}
