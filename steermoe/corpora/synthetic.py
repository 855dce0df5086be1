"""A synthetic English corpus: espeak-ng voices say sentences of `grammar.py`.

Voices, accents and texts of the test splits occur in no training split. `clean` is unseen voices without noise;
`other` adds unseen accents, noise and reverberation. `fetch` writes the recipe (nothing is downloaded); `rows`
speaks one part of a split. A part is a fixed sequence of calls, so it must run in a fresh process to give the
same bytes again (espeak-ng carries state from call to call).
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soxr

from steermoe.audio import augment, synthesis
from steermoe.audio import io as waveform
from steermoe.config.corpora import Synthetic
from steermoe.corpora import grammar
from steermoe.corpora.reader import Generated, card, generated_row, in_parts

PART_ROWS = 500  # utterances a part


@dataclasses.dataclass(frozen=True)
class Cast:
    """The voices of one group of splits."""

    accents: tuple[str, ...]
    variants: tuple[str, ...]


CASTS = {
    "pretrain": Cast(
        ("en", "en-us", "en-gb-x-rp"),
        tuple(
            "Alex Andrea Annie Denis Gene Henrique Jacky Lee Marco Michael Reed adam anika antonio belinda "
            "benjamin boris david ed edward f1 f2 f4 f5 grandma gustave ian iven iven3 john linda m1 m2 m3 m5 "
            "m7 max michel mike2 norbert pablo paul quincy rob sandro steph steph3 victor".split()
        ),
    ),
    "train": Cast(
        ("en", "en-us", "en-gb-x-gbcwmd", "en-shaw"),
        tuple(
            "Alicia Andy Diogo Hugo Mario announcer aunty caleb f3 grandpa iven2 m4 m6 marcelo pedro robert "
            "steph2 travis".split()
        ),
    ),
    "dev": Cast(("en", "en-us"), ("Nguyen", "edward2", "m8", "zac")),
    "clean": Cast(("en", "en-us", "en-gb-x-rp"), ("Gene2", "Mike", "iven4", "shelby", "miguel", "Storm")),
    "other": Cast(
        ("en-gb-scotland", "en-029", "en-us-nyc", "en-gb-x-gbclan"),
        ("AnxiousAndy", "croak", "klatt2", "klatt4", "klatt5"),
    ),
}
TEXTS = {"pretrain": "train", "train": "train", "dev": "dev", "clean": "test", "other": "test"}
SPLITS = ("train", "dev", "clean", "other")
ASKED = {
    kind: grammar.SHARES[kind] for kind in ("deal", "place", "own", "meet", "sum")
}  # kinds with a question

CARD = card("synthetic")


def fetch(settings: Synthetic, dest: Path) -> None:
    """Write the recipe; the speech itself is made by `rows`."""
    recipe = {
        "settings": settings.model_dump(),
        "casts": {name: dataclasses.asdict(cast) for name, cast in CASTS.items()},
        "words": grammar.vocabulary(),
    }
    (dest / "recipe.json").write_text(json.dumps(recipe, indent=1))


def parts(settings: Synthetic, source: Path) -> list[Generated]:
    """Return the parts of every split, in order."""
    found = []
    for split in SPLITS:
        statements = in_parts(split, settings.utterances[split], PART_ROWS)
        found += statements
        found += in_parts(split, settings.questions[split], PART_ROWS, "answer", len(statements))
    return found


def rows(settings: Synthetic, source: Path, part: Generated) -> Iterator[dict]:
    """Speak one part, with the columns of `steermoe.data.schema.Utterance`."""
    rng = np.random.default_rng([settings.seed, SPLITS.index(part.split), part.number])
    shares = ASKED if part.task == "answer" else None
    texts = grammar.sentences(rng, TEXTS[part.split], shares)
    noisy_share = {"clean": 0.0, "other": 1.0}.get(part.split, settings.noisy_share)
    engine = synthesis.Synthesizer()
    for i in range(part.count):
        sentence = next(texts)
        condition = "noisy" if rng.random() < noisy_share else "clean"
        spoken, _, voice = record(engine, rng, sentence.text, CASTS[part.split], condition)
        asked = {"prompt": sentence.question, "target": sentence.answer} if part.task == "answer" else {}
        yield generated_row("synthetic", part, i, voice, sentence.text, spoken, **asked)


def record(
    engine: synthesis.Synthesizer, rng: np.random.Generator, text: str, cast: Cast, condition: str
) -> tuple[np.ndarray, list[float], str]:
    """Say `text` by a random voice of the cast under a condition: `clean`, `mild` (15-40 dB noise) or `noisy`
    (reverberation and 8-20 dB).

    Returns:
        waveform (N,) at 16 kHz, onsets of the words in seconds, the voice's name.
    """
    voice = synthesis.Voice(
        accent=cast.accents[rng.integers(len(cast.accents))],
        variant=cast.variants[rng.integers(len(cast.variants))],
        words_per_minute=int(rng.integers(140, 191)),
        pitch=int(rng.integers(30, 71)),
        pitch_range=int(rng.integers(30, 71)),
    )
    raw, onsets = engine.speak(text, voice)
    spoken = soxr.resample(raw, synthesis.RATE, waveform.RATE)
    lead, tail = rng.uniform(0.05, 0.3, 2)
    spoken = np.pad(spoken, (int(lead * waveform.RATE), int(tail * waveform.RATE)))
    if condition == "noisy":
        spoken = augment.reverberate(rng, spoken, waveform.RATE, rt60=rng.uniform(0.2, 0.6))
        spoken = augment.add_noise(rng, spoken, snr_db=rng.uniform(8, 20))
    elif condition == "mild":
        spoken = augment.add_noise(rng, spoken, snr_db=rng.uniform(15, 40))
    spoken = augment.normalise_peak(spoken, peak=rng.uniform(0.3, 0.9))
    return spoken, [seconds + lead for seconds in onsets], voice.name
