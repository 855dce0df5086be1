"""Clotho-AQA (Lipping et al., EUSIPCO 2022; Zenodo 6473207): questions about everyday sounds.

`clotho_aqa_<split>.csv` has the columns file_name, QuestionText, answer, confidence: three rows a question, from
three people, who often disagree. `audio_files.zip` has all sounds in one folder. A row is a question: its target is
the answer that most gave (the first of those, where they tie), and `answers` has all three. What a figure means
depends on which questions it is over, so the configuration names a protocol for each split:

    raw          all
    clean        those that two or three agree on
    unanimous    those that all agree on
    binary       of `unanimous`, those that are answered yes or no
    single-word  of `clean`, those that are answered by one word other than yes and no

Here answers are compared without case and outer spaces. An evaluation of `raw` reports the figures of every protocol
(see `steermoe.evaluation.qa`), after its own normaliser. Checksums are not
published in a place that could be read; the lock notes what was downloaded. Whether the archive has a folder
`audio_files` in it could not be checked either: both ways are read.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from steermoe.config import ClothoAqa
from steermoe.corpora import index, sources, tables
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.card import Card
from steermoe.corpora.index import Entry
from steermoe.corpora.places import locate
from steermoe.corpora.sources import Source

SPLITS = ClothoAqa.SPLITS
BASE = "https://zenodo.org/records/6473207/files"
AUDIO = Source(
    BASE, "audio_files.zip", holds="audio_files", inside=("audio_files", "."), bytes=3_140_677_494, factor=1.5
)
COLUMNS = ("file_name", "QuestionText", "answer", "confidence")
PEOPLE = 3  # answers a question
CARD = Card(
    name="Clotho-AQA",
    hours=None,
    bytes=AUDIO.bytes,
    licence="questions MIT; every sound under its own Freesound licence (clotho_aqa_metadata.csv)",
    source="https://zenodo.org/records/6473207",
    restrictions="some sounds are CC BY-NC or Sampling+: no commercial use, and no passing on of the whole",
    citation="Lipping, Sudarsanam, Drossos, Virtanen: Clotho-AQA: a crowdsourced dataset for audio question "
    "answering. EUSIPCO 2022",
    language="en",
    task="answer",
    metric="accuracy, with the protocol's name",
    normalizer="case and punctuation away",
)
parts, rows = index.parts, index.rows


def fetch(settings: ClothoAqa, dest: Path) -> None:
    """Put sounds and questions of the splits in use into `dest`.

    Raises:
        UnavailableError, ArchiveError, SpaceError: as `sources.fetch`; ArchiveError also where a sound is
            missing, or a question has not three answers.
    """
    files = [AUDIO, *(Source(BASE, _table(split), holds=_table(split)) for split in settings.used)]
    sources.fetch("clothoaqa", files, settings, dest)
    for split in settings.used:
        index.write_index(dest, split, entries(dest, split, settings.protocol[split]))


def agreed(answers: Sequence[str]) -> tuple[str, int]:
    """The most frequent answer as first written, and how many gave it (1: all differ)."""
    keys = [_key(answer) for answer in answers]
    key, count = Counter(keys).most_common(1)[0]
    return answers[keys.index(key)].strip(), count


def chosen(answers: Sequence[str], protocol: str) -> bool:
    """Whether a question belongs to a protocol.

    Raises:
        ValueError: unknown protocol.
    """
    answer, count = agreed(answers)
    yes_or_no = _key(answer) in ("yes", "no")
    match protocol:
        case "raw":
            return True
        case "clean":
            return count >= 2
        case "unanimous":
            return count == len(answers)
        case "binary":
            return count == len(answers) and yes_or_no
        case "single-word":
            return count >= 2 and not yes_or_no and len(answer.split()) == 1
        case _:
            raise ValueError(
                f"unknown protocol {protocol!r}; one of: raw, clean, unanimous, binary, single-word"
            )


def entries(fetched: Path, split: str, protocol: str) -> Iterator[Entry]:
    """The questions of a split, in the order of the table, under a protocol.

    Raises:
        ArchiveError: a sound is missing, or a question has not three answers.
    """
    place = locate(fetched)
    table = place(_table(split))
    asked: dict[tuple[str, str], list[list[str]]] = {}  # a question may be asked twice about a sound
    for number, row in tables.read_table(table, COLUMNS):
        name, question = row["file_name"].strip(), row["QuestionText"].strip()
        place.recording(f"{AUDIO.holds}/{name}", f"{table}, line {number}")
        groups = asked.setdefault((name, question), [[]])
        if len(groups[-1]) == PEOPLE:
            groups.append([])
        groups[-1].append(row["answer"])
    questions = [(*key, answers) for key, groups in asked.items() for answers in groups]
    for number, (name, question, answers) in enumerate(questions):
        if len(answers) != PEOPLE or not all(answer.strip() for answer in answers):
            raise ArchiveError(
                f"{table}: {name!r}, {question!r}: found answers {answers}, expected {PEOPLE}, none empty"
            )
        if chosen(answers, protocol):
            yield Entry(
                f"q{number:04d}",
                f"{AUDIO.holds}/{name}",
                "en",
                "none",
                task="answer",
                question=question,
                answer=agreed(answers)[0],
                answers=tuple(answer.strip() for answer in answers),
            )


def _table(split: str) -> str:
    return f"clotho_aqa_{split}.csv"


def _key(answer: str) -> str:
    return answer.strip().casefold()
