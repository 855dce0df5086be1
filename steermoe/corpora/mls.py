"""Multilingual LibriSpeech (Pratap et al., Interspeech 2020; OpenSLR 94): audiobooks. Splits: `german-test`.

`mls_<language>[_opus]/<split>/transcripts.txt` with lines `<speaker>_<book>_<utterance><tab>words`, and
`<split>/audio/<speaker>/<book>/<speaker>_<book>_<utterance>.{flac,opus}`. An archive holds all three splits of a
language. The MD5 sums are those that public code copied from the official md5sum.txt; they could not be compared
with it, and sizes are published in GB only.
"""

from collections.abc import Iterator
from pathlib import Path

from steermoe.config import Mls
from steermoe.corpora import index, sources, tables
from steermoe.corpora.card import Card
from steermoe.corpora.index import Entry
from steermoe.corpora.places import locate
from steermoe.corpora.sources import Source

SPLITS = Mls.SPLITS
TAGS = {
    "english": "en",
    "german": "de",
    "dutch": "nl",
    "french": "fr",
    "spanish": "es",
    "italian": "it",
    "portuguese": "pt",
    "polish": "pl",
}
BASE = "https://dl.fbaipublicfiles.com/mls"
MD5 = {
    "mls_english": "9d4249911e318c2b8dcfcfecb484d865",
    "mls_german": "91ac982bf63869307f1b8950dfb7c776",
    "mls_dutch": "6b171a16baff0108efd320b1ad65b9d1",
    "mls_french": "4172e807697259bff9ad63661aecabf6",
    "mls_spanish": "6c34698dd522dde28fdc43309e9cc1ac",
    "mls_italian": "dc77f5805aecc7182aa20786032e5dc1",
    "mls_portuguese": "12d54613fae75ae5fb1d55836408f3ee",
    "mls_polish": "ce1a1278006cc373c9d1cb6dbfc03d47",
    "mls_english_opus": "60390221eec6f456611563b37f0b052c",
    "mls_german_opus": "b24a9dfd3a8dd1aeabc1341982cc4775",
    "mls_dutch_opus": "96658c55ef85993a56cf2efbf6f83f57",
    "mls_french_opus": "b4716b2fd4f67b07c17c6b2a6068641f",
    "mls_spanish_opus": "a2c4b0ff02a71f10ddb21beffbe640ce",
    "mls_italian_opus": "ca5a74d7e97cc62635022719e0ef529d",
    "mls_portuguese_opus": "4dbd6cbdda61268e5d26c4117b0bf769",
    "mls_polish_opus": "21f83647876c61566c96fdc6298a7b65",
}
CARD = Card(
    name="Multilingual LibriSpeech",
    hours=50_700,
    bytes=None,
    licence="CC BY 4.0",
    source="https://www.openslr.org/94",
    restrictions="name the authors, and say what you changed; commercial use is allowed",
    citation="Pratap, Xu, Sriram, Synnaeve, Collobert: MLS: a large-scale multilingual dataset for speech "
    "research. Interspeech 2020",
    language="as the split says (german-test)",
    task="transcribe",
    metric="WER",
    normalizer="case and punctuation away (the references are lower case without punctuation)",
)
parts, rows = index.parts, index.rows


def fetch(settings: Mls, dest: Path) -> None:
    """Put the languages of the splits in use into `dest`.

    Raises:
        UnavailableError, ArchiveError, SpaceError: as `sources.fetch`; ArchiveError also where a recording is
            missing.
    """
    roots = sorted({_root(split, settings.encoding) for split in settings.used})
    files = [
        Source(BASE, f"{root}.tar.gz", holds=root, inside=(root,), checksum=f"md5:{MD5[root]}")
        for root in roots
    ]
    sources.fetch("mls", files, settings, dest)
    for split in settings.used:
        index.write_index(dest, split, entries(dest, split, settings.encoding))


def entries(fetched: Path, split: str, encoding: str) -> Iterator[Entry]:
    """The utterances of a split, as listed.

    Raises:
        ArchiveError: a listed recording is not there.
    """
    place, folder = locate(fetched), f"{_root(split, encoding)}/{split.rpartition('-')[2]}"
    listed = place(f"{folder}/transcripts.txt")
    for number, row in tables.read_columns(listed, ("name", "words")):
        speaker, book, *_ = [*row["name"].split("_"), "", ""]
        audio = f"{folder}/audio/{speaker}/{book}/{row['name']}.{encoding}"
        place.recording(audio, f"{listed}, line {number}")
        yield Entry(row["name"], audio, TAGS[split.rpartition("-")[0]], speaker, row["words"].strip())


def _root(split: str, encoding: str) -> str:
    language = split.rpartition("-")[0]
    return f"mls_{language}_opus" if encoding == "opus" else f"mls_{language}"
