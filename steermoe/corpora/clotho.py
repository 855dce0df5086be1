"""Clotho v2.1 (Drossos et al., ICASSP 2020) and Clotho-AQA (Lipping et al., EUSIPCO 2022): everyday sounds.

Clotho (Zenodo 4783391): `clotho_audio_<split>.7z` has a folder `<split>` of WAV files, 15 to 30 s, and
`clotho_captions_<split>.csv` the columns file_name, caption_1 to caption_5. A row's target is one caption (the end of
its id, `-c1`, says which), and `answers` has all five, against which captions are scored. Unpacking needs the extra
`sevenzip`. The MD5 sums are those of public code.

Clotho-AQA (Zenodo 6473207): `clotho_aqa_<split>.csv` has the columns file_name, QuestionText, answer, confidence, with
three rows per question, from three people, who often disagree. `audio_files.zip` has all sounds, in a folder or not. A
row is a question: its target is the most frequent answer (the first of those, where they tie), and `answers` has all
three. A figure depends on which questions it is over, so the configuration names a protocol for each split:

    raw          all
    clean        those that two or three agree on
    unanimous    those that all agree on
    binary       of `unanimous`, those that are answered yes or no
    single-word  of `clean`, those that are answered by one word other than yes and no

Answers are compared here without case and outer spaces. An evaluation of `raw` reports every protocol, after its own
normaliser (`steermoe.evaluation.qa`). Checksums are not published where they could be read.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from steermoe.config.corpora import Clotho, ClothoAqa
from steermoe.corpora import tables
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.download import Places, Source
from steermoe.corpora.manifest import Entry, ManifestReader
from steermoe.corpora.reader import card

ZENODO = "https://zenodo.org/records"
CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))
FILES = {  # bytes and md5 of the sounds, md5 of the captions
    "development": (4_541_582_263, "c8b05bc7acdb13895bb3c6a29608667e", "d4090b39ce9f2491908eebf4d5b09bae"),
    "validation": (1_260_701_425, "7dba730be08bada48bd15dc4e668df59", "5879e023032b22a2c930aaa0528bead4"),
    "evaluation": (None, "4569624ccadf96223f19cb59fe4f849f", "1b16b9e57cf7bdb7f13a13802aeb57e2"),
}
SOUNDS = Source(
    "audio_files.zip",
    "audio_files",
    f"{ZENODO}/6473207/files/audio_files.zip",
    inside=("audio_files", "."),
    bytes=3_140_677_494,
)
COLUMNS = ("file_name", "QuestionText", "answer", "confidence")
PEOPLE = 3  # answers per question


def clotho_sources(settings: Clotho) -> list[Source]:
    """Return sounds and captions of the splits in use."""
    found, base = [], f"{ZENODO}/4783391/files"
    for split in settings.used:
        size, sounds, captions = FILES[split]
        archive, table = f"clotho_audio_{split}.7z", f"clotho_captions_{split}.csv"
        found += [
            Source(archive, split, f"{base}/{archive}", (split,), size, f"md5:{sounds}"),
            Source(table, table, f"{base}/{table}", checksum=f"md5:{captions}"),
        ]
    return found


def clotho_entries(settings: Clotho, places: Places, split: str, left_out: list[str]) -> Iterator[Entry]:
    """Yield the captions of a split, in the order of the table: `each`, or the `first` of every sound."""
    table = places(f"clotho_captions_{split}.csv")
    for number, row in tables.read_table(table, ("file_name", *CAPTIONS)):
        line = f"{table}, line {number}"
        audio = places.recording(f"{split}/{row['file_name']}", line)
        captions = tuple(row[column].strip() for column in CAPTIONS)
        if not all(captions):
            raise ArchiveError(f"{line}: found captions {captions}, expected {len(CAPTIONS)}, none empty")
        chosen = captions if settings.captions[split] == "each" else captions[:1]
        for i, caption in enumerate(chosen, 1):
            name = f"{Path(row['file_name']).stem}-c{i}"
            yield Entry(name, audio, "en", "none", task="caption", answer=caption, answers=captions)


def agreed(answers: Sequence[str]) -> tuple[str, int]:
    """Return the most frequent answer as first written, and how many gave it (1: all differ)."""
    keys = [_key(answer) for answer in answers]
    key, count = Counter(keys).most_common(1)[0]
    return answers[keys.index(key)].strip(), count


def chosen(answers: Sequence[str], protocol: str) -> bool:
    """Return whether a question belongs to a protocol.

    Raises:
        ValueError: unknown protocol.
    """
    answer, count = agreed(answers)
    unanimous, yes_or_no = count == len(answers), _key(answer) in ("yes", "no")
    protocols = {
        "raw": True,
        "clean": count >= 2,
        "unanimous": unanimous,
        "binary": unanimous and yes_or_no,
        "single-word": count >= 2 and not yes_or_no and len(answer.split()) == 1,
    }
    if protocol not in protocols:
        raise ValueError(f"unknown protocol {protocol!r}; one of: {', '.join(protocols)}")
    return protocols[protocol]


def aqa_sources(settings: ClothoAqa) -> list[Source]:
    """Return the sounds and the tables of the splits in use."""
    tables_of = [f"clotho_aqa_{split}.csv" for split in settings.used]
    return [SOUNDS, *(Source(table, table, f"{ZENODO}/6473207/files/{table}") for table in tables_of)]


def aqa_entries(settings: ClothoAqa, places: Places, split: str, left_out: list[str]) -> Iterator[Entry]:
    """Yield the questions of a split that belong to its protocol, in the order of the table."""
    table = places(f"clotho_aqa_{split}.csv")
    asked: dict[tuple[str, str], list[list[str]]] = {}  # a question may be asked twice about a sound
    for number, row in tables.read_table(table, COLUMNS):
        name, question = row["file_name"].strip(), row["QuestionText"].strip()
        places.recording(f"{SOUNDS.holds}/{name}", f"{table}, line {number}")
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
        if chosen(answers, settings.protocol[split]):
            yield Entry(
                f"q{number:04d}",
                f"{SOUNDS.holds}/{name}",
                "en",
                "none",
                task="answer",
                question=question,
                answer=agreed(answers)[0],
                answers=tuple(answer.strip() for answer in answers),
            )


def _key(answer: str) -> str:
    return answer.strip().casefold()


CLOTHO = ManifestReader("clotho", Clotho.SPLITS, card("clotho"), clotho_sources, clotho_entries)
CLOTHO_AQA = ManifestReader("clothoaqa", ClothoAqa.SPLITS, card("clothoaqa"), aqa_sources, aqa_entries)
