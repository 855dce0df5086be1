"""Clotho-AQA (Lipping et al., EUSIPCO 2022; Zenodo 6473207): questions about everyday sounds.

`clotho_aqa_<split>.csv` has the columns file_name, QuestionText, answer, confidence: three rows a question, from
three people, who often disagree. `audio_files.zip` has all sounds in one folder. What a figure means depends on
the protocol, so the configuration names one for each split:

    raw          every answer of every question is a row (an oracle that knows all three reaches 78 %)
    clean        a row a question that two or three agree on, with the answer of the majority
    unanimous    a row a question that all agree on
    binary       of these, the ones that are answered yes or no
    single-word  of `clean`, the ones that are answered by one word other than yes and no

Answers are compared without case and outer spaces; a row has the answer as first written. Rows tell the question
in their id (`q0012`) and, under `raw`, the answer's number (`q0012-a2`), so every other protocol can be had from
raw predictions by `agreed` and `of_protocol`. Checksums are not published in a place that could be read; the lock
notes what was downloaded. Whether the archive has a folder `audio_files` in it could not be checked either: both
ways are read.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from steermoe.config import ClothoAqa
from steermoe.corpora import index, sources, tables
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.card import Card
from steermoe.corpora.index import Entry, Part
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


def parts(settings: ClothoAqa, source: Path) -> list[Part]:
    """The parts of every split in use."""
    return index.parts(settings, source)


def rows(settings: ClothoAqa, source: Path, part: Part) -> Iterator[dict]:
    """The questions of a part."""
    return index.rows("clothoaqa", source, part)


def agreed(answers: Sequence[str]) -> tuple[str, int]:
    """The most frequent answer as first written, and how many gave it (1: all differ)."""
    keys = [_key(answer) for answer in answers]
    key, count = Counter(keys).most_common(1)[0]
    return answers[keys.index(key)].strip(), count


def of_protocol(answers: Sequence[str], protocol: str) -> list[str]:
    """The answers of a question that are right under a protocol; none where it is left out.

    Raises:
        ValueError: unknown protocol.
    """
    answer, count = agreed(answers)
    yes_or_no = _key(answer) in ("yes", "no")
    match protocol:
        case "raw":
            return [one.strip() for one in answers]
        case "clean":
            chosen = count >= 2
        case "unanimous":
            chosen = count == len(answers)
        case "binary":
            chosen = count == len(answers) and yes_or_no
        case "single-word":
            chosen = count >= 2 and not yes_or_no and len(answer.split()) == 1
        case _:
            raise ValueError(
                f"unknown protocol {protocol!r}; one of: raw, clean, unanimous, binary, single-word"
            )
    return [answer] if chosen else []


def entries(fetched: Path, split: str, protocol: str) -> Iterator[Entry]:
    """The questions of a split, in the order of the table, under a protocol.

    Raises:
        ArchiveError: a sound is missing, or a question has not three answers.
    """
    place = sources.locate(fetched)
    table = place(_table(split))
    asked: dict[tuple[str, str], list[list[str]]] = {}  # a question may be asked twice about a sound
    for number, row in tables.read_table(table, COLUMNS):
        name, question = row["file_name"].strip(), row["QuestionText"].strip()
        audio = f"{AUDIO.holds}/{name}"
        if "/" in name or not place(audio).is_file():
            raise ArchiveError(f"{table}, line {number}: no sound {place(audio)}")
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
        right = of_protocol(answers, protocol)
        for i, answer in enumerate(right):
            suffix = f"-a{i}" if protocol == "raw" else ""
            yield Entry(
                f"q{number:04d}{suffix}", f"{AUDIO.holds}/{name}", "none", question=question, answer=answer
            )


def _table(split: str) -> str:
    return f"clotho_aqa_{split}.csv"


def _key(answer: str) -> str:
    return answer.strip().casefold()
