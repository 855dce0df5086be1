"""Clotho v2.1 (Drossos et al., ICASSP 2020; Zenodo 4783391): everyday sounds, five captions each.

`clotho_audio_<split>.7z` has a folder `<split>` of WAV files at 44.1 kHz, 15 to 30 s; `clotho_captions_<split>.csv`
the columns file_name, caption_1 to caption_5. A row's target is one caption, told by the end of its id (`-c1`), and
`answers` has all five, against which captions are scored. The archives are 7z (extra `sevenzip`). The sizes and MD5
sums are those that public code for it carries; that of the evaluation archive's size is not published.
"""

from collections.abc import Iterator
from pathlib import Path

from steermoe.config import Clotho
from steermoe.corpora import index, sources, tables
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.card import Card
from steermoe.corpora.index import Entry
from steermoe.corpora.places import locate
from steermoe.corpora.sources import Source

SPLITS = Clotho.SPLITS
BASE = "https://zenodo.org/records/4783391/files"
CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))
FILES = {  # bytes and md5 of the sounds, md5 of the captions
    "development": (4_541_582_263, "c8b05bc7acdb13895bb3c6a29608667e", "d4090b39ce9f2491908eebf4d5b09bae"),
    "validation": (1_260_701_425, "7dba730be08bada48bd15dc4e668df59", "5879e023032b22a2c930aaa0528bead4"),
    "evaluation": (None, "4569624ccadf96223f19cb59fe4f849f", "1b16b9e57cf7bdb7f13a13802aeb57e2"),
}
CARD = Card(
    name="Clotho v2.1",
    hours=37,
    bytes=None,
    licence="captions: Tampere University licence; every sound under its own Freesound licence",
    source="https://zenodo.org/records/4783391",
    restrictions="the captions are for academic use; some sounds are CC BY-NC or Sampling+",
    citation="Drossos, Lipping, Virtanen: Clotho: an audio captioning dataset. ICASSP 2020",
    language="en",
    task="caption",
    metric="ROUGE-L against all five captions (papers have SPIDEr and FENSE, which are not computed here)",
    normalizer="case and punctuation away",
)
parts, rows = index.parts, index.rows


def fetch(settings: Clotho, dest: Path) -> None:
    """Put sounds and captions of the splits in use into `dest`.

    Raises:
        UnavailableError, ArchiveError, SpaceError, ModuleNotFoundError: as `sources.fetch`; ArchiveError also
            where a sound or a caption is missing.
    """
    files = [source for split in settings.used for source in _sources(split)]
    sources.fetch("clotho", files, settings, dest)
    for split in settings.used:
        index.write_index(dest, split, entries(dest, split, settings.captions[split]))


def entries(fetched: Path, split: str, captions: str) -> Iterator[Entry]:
    """The captions of a split, in the order of the table: `each`, or the `first` of every sound.

    Raises:
        ArchiveError: a sound or a caption is missing.
    """
    sounds, listed = (source.holds for source in _sources(split))
    place = locate(fetched)
    for number, row in tables.read_table(place(listed), ("file_name", *CAPTIONS)):
        line = f"{place(listed)}, line {number}"
        audio = place.recording(f"{sounds}/{row['file_name']}", line)
        told = tuple(row[column].strip() for column in CAPTIONS)
        if not all(told):
            raise ArchiveError(f"{line}: found captions {told}, expected {len(CAPTIONS)}, none empty")
        for i, caption in enumerate(told if captions == "each" else told[:1], 1):
            name = f"{Path(row['file_name']).stem}-c{i}"
            yield Entry(name, audio, "en", "none", task="caption", answer=caption, answers=told)


def _sources(split: str) -> tuple[Source, Source]:
    size, sounds, captions = FILES[split]
    archive, table = f"clotho_audio_{split}.7z", f"clotho_captions_{split}.csv"
    return (
        Source(BASE, archive, split, inside=(split,), bytes=size, checksum=f"md5:{sounds}", factor=1.6),
        Source(BASE, table, table, checksum=f"md5:{captions}"),
    )
