"""Questions spoken by neural voices, whose references are the frozen LLM's own answers to the written questions.

This measures what adapters promise: that the LLM keeps its skill when it listens. An answer is right where it is what
the LLM says to the question in writing, true or not; the cascade is measured against the same references.

`fetch` takes the questions of `questions.py` in order, lets the LLM answer each (`answers.py`), leaves out and lists
those whose answer has not ended after MAX_TOKENS, and speaks the others. Words that are asked about, and voices, are
in one split only. Answers and recordings are kept in folders of the user, so an interrupted run goes on.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.progress import Progress

from steermoe.audio import neural_voices
from steermoe.audio.neural_voices import Spoken
from steermoe.config.corpora import SpokenQuestions
from steermoe.corpora import download
from steermoe.corpora.answers import INSTRUCTION, MAX_TOKENS, answers
from steermoe.corpora.manifest import Entry, parts, report_left_out, rows, write_manifest
from steermoe.corpora.neural import SPEED, VOICES
from steermoe.corpora.questions import questions
from steermoe.corpora.reader import card
from steermoe.weights import cache, fetched

__all__ = ["CARD", "SPLITS", "fetch", "parts", "rows"]

SPLITS = SpokenQuestions.SPLITS
CARD = card("spokenquestions")


def fetch(settings: SpokenQuestions, dest: Path) -> None:
    """Answer and speak the questions of the splits in use into `dest`/data, and write the manifest.

    Raises:
        UnavailableError: a voice, or WordNet, cannot be fetched.
        ValueError: there are fewer questions with an answer than the settings ask for; the LLM cannot be found.
    """
    asked, left_out = questions(fetched("wordnet"), settings.seed), list[str]()
    models = fetched("kokoro-82m"), fetched("piper-joe")
    chosen = {split: dict(_answered(settings, split, asked[split], left_out)) for split in settings.used}
    said = {split: _spoken(settings, split, list(of)) for split, of in chosen.items()}
    every, speech = [each for of in said.values() for each in of], cache() / "speech"
    neural_voices.record(every, models, speech)
    (dest / "data").mkdir(exist_ok=True)
    for split, of in said.items():
        for each in of:
            shutil.copyfile(speech / each.file, dest / "data" / each.file)
        write_manifest(dest, split, _entries(of, chosen[split]))
    report_left_out("spokenquestions", left_out, dest)
    download.use_folder("spokenquestions", dest / "data", dest, ())


def _answered(
    settings: SpokenQuestions, split: str, asked: list[str], left_out: list[str]
) -> Iterator[tuple[str, str]]:
    """Yield as many questions as the settings ask for, and their answers; list those without one."""
    wanted, found = settings.questions[split], 0
    with Progress() as progress:
        bar = progress.add_task(f"answering {split}", total=wanted)
        for question, answer in zip(asked, answers(settings.llm, asked, cache() / "answers"), strict=True):
            if answer:
                found += 1
                progress.advance(bar)
                yield question, answer
            else:
                left_out.append(f"{question}: no answer that ends after {MAX_TOKENS} tokens")
            if found == wanted:
                return
    raise ValueError(
        f"corpora.spokenquestions.questions.{split}: found {wanted}; legal: at most {found}, as many as have an answer"
    )


def _spoken(settings: SpokenQuestions, split: str, asked: list[str]) -> list[Spoken]:
    """Return how each question is spoken: the split's voices take turns, in `train` at varied speed."""
    rng, voices = np.random.default_rng([settings.seed, SPLITS.index(split)]), VOICES[split]
    speeds = rng.uniform(*SPEED, len(asked)) if split == "train" else np.ones(len(asked))
    return [
        Spoken(question, voices[number % len(voices)], round(float(speed), 2))
        for number, (question, speed) in enumerate(zip(asked, speeds, strict=True))
    ]


def _entries(said: list[Spoken], answer_of: dict[str, str]) -> Iterator[Entry]:
    for number, spoken in enumerate(said):
        yield Entry(
            id=f"{number:05d}",
            audio=spoken.file,
            language="en",
            speaker=spoken.voice,
            transcript=spoken.text,
            task="answer",
            question=INSTRUCTION,
            answer=answer_of[spoken.text],
        )
