"""MMAU-Pro (Kumar et al., 2025): harder questions about sounds, music and speech, some open, some long.

Laid out as the data set gamma-lab-umd/MMAU-Pro on the Hugging Face hub: `test.parquet` with id, audio_path (a list of
`data/<name>`), question, choices, answer, and `data.zip` (44 GiB) with the folder `data`. Questions about several
recordings, without an answer, or whose choices lack the answer are left out and counted in left_out.json; the
published figure is over all 5305. The layout is that which public recipes read; the files themselves could not be
looked at.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from steermoe.atomic_io import write_text
from steermoe.config import MmauPro
from steermoe.corpora import choices, columns, hub, index, sources, tables
from steermoe.corpora.card import Card
from steermoe.corpora.index import Entry
from steermoe.corpora.places import locate
from steermoe.corpora.sources import Source

SPLITS = MmauPro.SPLITS
REPOSITORY = "gamma-lab-umd/MMAU-Pro"
TABLE, AUDIO = "test.parquet", "data.zip"
CARD = Card(
    name="MMAU-Pro",
    hours=None,
    bytes=47_500_000_000,
    licence="CC BY-NC 4.0 by its card; the sounds keep the terms of where they are from",
    source=f"https://huggingface.co/datasets/{REPOSITORY}",
    restrictions="no commercial use; a test set: nothing may be trained on it",
    citation="Kumar et al.: MMAU-Pro: a challenging and comprehensive benchmark for holistic evaluation of "
    "audio general intelligence. 2025",
    language="en",
    task="answer",
    metric="accuracy of closed questions; open ones need a judge",
    normalizer="case and punctuation away",
)
parts, rows = index.parts, index.rows


def fetch(settings: MmauPro, dest: Path) -> None:
    """Put questions and sounds into `dest`, and how many questions are left out, and why, into left_out.json.

    Raises:
        UnavailableError, ArchiveError, SpaceError: as `sources.fetch`; ArchiveError also where a sound is
            missing.
    """
    listed: dict[str, tuple[int, str]] = {}
    if settings.mirror is None:
        listed = hub.listing(REPOSITORY, settings.revision, "")
        hub.known(listed, [TABLE, AUDIO], REPOSITORY)
    base = hub.base(REPOSITORY, settings.revision)
    files = [
        _source(base, TABLE, TABLE, *listed.get(TABLE, (None, None))),
        _source(base, AUDIO, "data", *listed.get(AUDIO, (None, None))),
    ]
    sources.fetch("mmaupro", files, settings, dest)
    left_out: Counter[str] = Counter()
    for split in settings.used:
        index.write_index(dest, split, entries(dest, settings.answer, left_out))
    write_text(dest / "left_out.json", json.dumps(left_out, indent=1, sort_keys=True) + "\n")


def entries(fetched: Path, answer: str, left_out: Counter[str]) -> Iterator[Entry]:
    """The questions, in order; those that are not taken are counted in `left_out`.

    Raises:
        ArchiveError: a sound is missing.
    """
    place = locate(fetched)
    table = place(TABLE)
    for number, row in tables.read_table(table, ("id", "audio_path", "question", "choices", "answer")):
        listed = f"{table}, line {number}"
        offered, right = columns.texts(row, "choices", listed), columns.text(row, "answer", listed)
        recordings = columns.texts(row, "audio_path", listed)
        fault = _fault(recordings, right, offered)
        if fault:
            left_out[fault] += 1
            continue
        offered = offered if len(offered) > 1 else []
        yield Entry(
            columns.identifier(row, "id", listed),
            place.recording(recordings[0], listed),
            "en",
            "none",
            task="answer",
            question=choices.ask(columns.text(row, "question", listed), offered),
            answer=choices.right(right, offered, answer, listed) if offered else right,
            choices=choices.offered(offered, answer),
        )


def _fault(recordings: list[str], right: str, offered: list[str]) -> str | None:
    """Why a question is not taken."""
    if len(recordings) != 1:
        return "several recordings"
    if not right:
        return "no answer"
    return "the answer is none of the choices" if len(offered) > 1 and right not in offered else None


def _source(base: str, path: str, holds: str, size: int | None, checksum: str | None) -> Source:
    return Source(base, path, holds, inside=(holds,), bytes=size, checksum=checksum)
