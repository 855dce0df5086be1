"""MMAU (Sakshi et al., ICLR 2025): multiple-choice questions about sounds, music and speech.

Split test-mini, 1000 questions; the answers of `test` are not public. In the mirror: `mmau-test-mini.json`, a list
of objects with id, audio_id (`./test-mini-audios/<id>.wav`), question, choices and answer, and the sounds in
`test-mini-audios/` or in test-mini-audios.tar.gz. The sounds are at a place for browsers only, so they must be got
by hand. Of the release v05.15.25 a quarter of the questions differ from the first: name the one you have. A question
whose answer is none of its choices is rejected and listed by preprocessing. The layout is that of the project's
repository; the files themselves could not be looked at.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from steermoe.config import Mmau
from steermoe.corpora import choices, columns, index, sources, tables
from steermoe.corpora.card import Card
from steermoe.corpora.index import Entry
from steermoe.corpora.places import locate
from steermoe.corpora.sources import Source

SPLITS = Mmau.SPLITS
TABLE = Source("", "mmau-test-mini.json", holds="mmau-test-mini.json")
AUDIO = Source(
    "", "test-mini-audios.tar.gz", "test-mini-audios", inside=("test-mini-audios", "."), factor=1.5
)
CARD = Card(
    name="MMAU test-mini",
    hours=None,
    bytes=None,
    licence="CC BY-NC 4.0 by its card on the hub; the sounds keep the terms of the sets they are from",
    source="https://github.com/Sakshi113/MMAU (questions; links to the sounds)",
    restrictions="no commercial use; a test set: nothing may be trained on it",
    citation="Sakshi et al.: MMAU: a massive multi-task audio understanding and reasoning benchmark. ICLR 2025",
    language="en",
    task="answer",
    metric="accuracy, with the release's name",
    normalizer="case and punctuation away",
)
parts, rows = index.parts, index.rows


def fetch(settings: Mmau, dest: Path) -> None:
    """Put questions and sounds into `dest`.

    Raises:
        UnavailableError: there is no mirror.
        ArchiveError, SpaceError: as `sources.fetch`; ArchiveError also where a sound is missing.
    """
    sources.fetch("mmau", [TABLE, AUDIO], settings, dest)
    for split in settings.used:
        index.write_index(dest, split, entries(dest, settings.answer))


def entries(fetched: Path, answer: str) -> Iterator[Entry]:
    """The questions, in order; the answer is the `letter` or the `text` of the right choice.

    Raises:
        ArchiveError: a sound is missing.
    """
    place = locate(fetched)
    table = place(TABLE.holds)
    for number, row in tables.read_table(table, ("id", "audio_id", "question", "choices", "answer")):
        listed = f"{table}, line {number}"
        audio_id = columns.path(row, "audio_id", listed)
        audio = place.recording(f"{AUDIO.holds}/{PurePosixPath(audio_id).name}", listed)
        right, offered = columns.text(row, "answer", listed), columns.texts(row, "choices", listed)
        fault = choices.fault(right or None, offered)
        yield Entry(
            columns.identifier(row, "id", listed),
            audio,
            "en",
            "none",
            task="answer",
            question=choices.ask(columns.text(row, "question", listed), offered),
            answer="" if fault else choices.right(right, offered, answer, listed),
            choices=choices.offered(offered, answer),
            fault=f"{TABLE.holds}, line {number}: {fault}" if fault else "",
        )
