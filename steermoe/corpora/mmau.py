"""MMAU (Sakshi et al., ICLR 2025) and MMAU-Pro (Kumar et al., 2025): multiple-choice questions about audio.

MMAU, split test-mini, 1000 questions; the answers of `test` are not public. In the mirror: `mmau-test-mini.json`, a
list of objects with id, audio_id (`./test-mini-audios/<id>.wav`), question, choices and answer, and the sounds in
`test-mini-audios/` or test-mini-audios.tar.gz, which must be downloaded by hand in a browser. In the release v05.15.25
a quarter of the questions differ from the first: name the one you have. A question whose answer is none of its choices
is rejected and listed by preprocessing.

MMAU-Pro, as the data set gamma-lab-umd/MMAU-Pro on the Hugging Face hub has it: `test.parquet` with id, audio_path (a
list of `data/<name>`), question, choices, answer, and `data.zip` (44 GiB) with the folder `data`. Questions about
several recordings, without an answer, or whose choices lack the answer are left out and listed in left_out.json; the
published figure is over all 5305.

The layouts are those of public recipes; the files themselves could not be looked at.
"""

import string
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from steermoe.config.corpora import Mmau, MmauPro
from steermoe.corpora import tables
from steermoe.corpora.download import Places, Source
from steermoe.corpora.manifest import Entry, ManifestReader
from steermoe.corpora.reader import card

TABLE, AUDIO = "mmau-test-mini.json", "test-mini-audios"
PRO_TABLE, PRO_AUDIO = "test.parquet", "data"
LETTERS = string.ascii_uppercase


def ask(question: str, choices: Sequence[str]) -> str:
    """Return the question, then `(A) first`, `(B) second`, on a line each, if there are choices."""
    listed = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, *listed])


def offered(choices: Sequence[str], kind: str) -> tuple[str, ...]:
    """Return the options in the form of the answer: their `letter` or their `text`."""
    return tuple(choices) if kind == "text" else tuple(LETTERS[: len(choices)])


def fault_of(answer: str | None, choices: Sequence[str]) -> str:
    """Return what is wrong with an answer: it is not among the choices, or they are too many for letters; else ""."""
    if answer in choices and len(choices) <= len(LETTERS):
        return ""
    return f"found answer {answer!r}, expected one of {list(choices)}"


def entries(settings: Mmau, places: Places, split: str, left_out: list[str]) -> Iterator[Entry]:
    """Yield the questions of MMAU, in order."""
    table = places(TABLE)
    for number, row in tables.read_table(table, ("id", "audio_id", "question", "choices", "answer")):
        line = f"{table}, line {number}"
        audio = PurePosixPath(tables.path_of(row, "audio_id", line)).name
        right, choices = tables.text(row, "answer", line), tables.texts(row, "choices", line)
        fault = fault_of(right or None, choices)
        yield Entry(
            tables.identifier(row, "id", line),
            places.recording(f"{AUDIO}/{audio}", line),
            "en",
            "none",
            task="answer",
            question=ask(tables.text(row, "question", line), choices),
            answer="" if fault else offered(choices, settings.answer)[choices.index(right)],
            choices=offered(choices, settings.answer),
            fault=f"{TABLE}, line {number}: {fault}" if fault else "",
        )


def pro_entries(settings: MmauPro, places: Places, split: str, left_out: list[str]) -> Iterator[Entry]:
    """Yield the questions of MMAU-Pro about one recording, in order."""
    table = places(PRO_TABLE)
    for number, row in tables.read_table(table, ("id", "audio_path", "question", "choices", "answer")):
        line = f"{table}, line {number}"
        name, recordings = tables.identifier(row, "id", line), tables.texts(row, "audio_path", line)
        right, choices = tables.text(row, "answer", line), tables.texts(row, "choices", line)
        choices = choices if len(choices) > 1 else []
        fault = fault_of(right, choices) if choices and right else "" if right else "no answer"
        if len(recordings) != 1 or fault:
            left_out.append(f"{name}: {fault or f'{len(recordings)} recordings'}")
            continue
        options = offered(choices, settings.answer)
        yield Entry(
            name,
            places.recording(recordings[0], line),
            "en",
            "none",
            task="answer",
            question=ask(tables.text(row, "question", line), choices),
            answer=options[choices.index(right)] if choices else right,
            choices=options,
        )


def sources(settings: Mmau) -> list[Source]:
    """Return the table and the sounds of MMAU."""
    return [Source(TABLE, TABLE), Source(f"{AUDIO}.tar.gz", AUDIO, inside=(AUDIO, "."))]


def pro_sources(settings: MmauPro) -> list[Source]:
    """Return the table and the sounds of MMAU-Pro."""
    return [Source(PRO_TABLE, PRO_TABLE), Source(f"{PRO_AUDIO}.zip", PRO_AUDIO, inside=(PRO_AUDIO,))]


MMAU = ManifestReader("mmau", Mmau.SPLITS, card("mmau"), sources, entries)
MMAU_PRO = ManifestReader(
    "mmaupro", MmauPro.SPLITS, card("mmaupro"), pro_sources, pro_entries, "gamma-lab-umd/MMAU-Pro"
)
