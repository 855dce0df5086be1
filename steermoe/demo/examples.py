"""Recordings to begin with, spoken by the synthesiser: sentences and voices that no training split has."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from steermoe.audio import synthesis
from steermoe.audio.io import RATE
from steermoe.corpora import grammar, synthetic

KINDS = (("deal", "clean"), ("own", "clean"), ("place", "other"))  # kinds of sentences, and who says them
SEED = 6


@dataclass(frozen=True)
class Example:
    """A recording, what is said in it, and a question that it answers."""

    text: str
    question: str
    path: Path


def speak_examples(folder: Path) -> list[Example]:
    """Speak an example of each of KINDS into WAV files of a folder.

    Raises:
        RuntimeError: the synthesiser does not start.
    """
    engine, rng, found = synthesis.Synthesizer(), np.random.default_rng(SEED), []
    for number, (kind, cast) in enumerate(KINDS):
        sentence = next(grammar.sentences(rng, "test", {kind: 1.0}))
        condition = "noisy" if cast == "other" else "clean"
        samples, _, _ = synthetic.record(engine, rng, sentence.text, synthetic.CASTS[cast], condition)
        path = folder / f"example-{number + 1}.wav"
        soundfile.write(path, samples, RATE)
        found.append(Example(sentence.text, sentence.question, path))
    return found
