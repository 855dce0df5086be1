"""FLEURS and Multilingual LibriSpeech (MLS), whose splits are named by language: `de_de-test`, `german-test`.

FLEURS (Conneau et al., SLT 2022): the sentences of FLoRes read in 102 languages, as the data set google/fleurs on the
Hugging Face hub has them: `data/<language>/<split>.tsv` (no header, no quotes) and
`data/<language>/audio/<split>.tar.gz` with `<split>/<file name>`. Speakers are not identified.

MLS (Pratap et al., Interspeech 2020; OpenSLR 94): audiobooks. An archive per language has
`mls_<language>[_opus]/<split>/transcripts.txt` with lines `<speaker>_<book>_<utterance><tab>words`, and
`<split>/audio/<speaker>/<book>/<speaker>_<book>_<utterance>.{flac,opus}`. The MD5 sums are those that public code
copied from the official md5sum.txt; they could not be compared with it.
"""

from collections.abc import Iterator
from pathlib import Path

from steermoe.config.corpora import Fleurs, Mls
from steermoe.corpora import tables
from steermoe.corpora.download import Places, Source
from steermoe.corpora.manifest import Entry, ManifestReader
from steermoe.corpora.reader import card

COLUMNS = ("id", "file_name", "raw", "normalised", "characters", "samples", "gender")
MLS_BASE = "https://dl.fbaipublicfiles.com/mls"
MLS_TAGS = {
    **{"english": "en", "german": "de", "dutch": "nl", "french": "fr", "spanish": "es"},
    **{"italian": "it", "portuguese": "pt", "polish": "pl"},
}
MLS_MD5 = {
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


def fleurs_sources(settings: Fleurs) -> list[Source]:
    """Return the table and the archive of every split in use."""
    found = []
    for split in settings.used:
        table, audio = _fleurs_paths(split)
        found += [Source(table, table), Source(f"{audio}.tar.gz", audio, inside=(Path(audio).name,))]
    return found


def fleurs_entries(settings: Fleurs, places: Places, split: str, left_out: list[str]) -> Iterator[Entry]:
    """Yield the utterances of a split, as listed; `settings.text` is the column of the transcript."""
    table, audio = _fleurs_paths(split)
    for number, row in tables.read_columns(places(table), COLUMNS):
        path = places.recording(f"{audio}/{row['file_name']}", f"{places(table)}, line {number}")
        yield Entry(Path(path).stem, path, language_of(split), "unknown", row[settings.text].strip())


def language_of(split: str) -> str:
    """Return the language of a split of FLEURS without the country: `de` of `de_de-test`."""
    return split.partition("_")[0]


def _fleurs_paths(split: str) -> tuple[str, str]:
    language, _, part = split.rpartition("-")
    return f"data/{language}/{part}.tsv", f"data/{language}/audio/{part}"


def mls_sources(settings: Mls) -> list[Source]:
    """Return the archives of the languages in use."""
    roots = sorted({_mls_root(split, settings.encoding) for split in settings.used})
    return [
        Source(f"{root}.tar.gz", root, f"{MLS_BASE}/{root}.tar.gz", (root,), checksum=f"md5:{MLS_MD5[root]}")
        for root in roots
    ]


def mls_entries(settings: Mls, places: Places, split: str, left_out: list[str]) -> Iterator[Entry]:
    """Yield the utterances of a split, as listed."""
    language, _, part = split.rpartition("-")
    folder = f"{_mls_root(split, settings.encoding)}/{part}"
    listed = places(f"{folder}/transcripts.txt")
    for number, row in tables.read_columns(listed, ("name", "words")):
        speaker, book, *_ = [*row["name"].split("_"), "", ""]
        audio = f"{folder}/audio/{speaker}/{book}/{row['name']}.{settings.encoding}"
        places.recording(audio, f"{listed}, line {number}")
        yield Entry(row["name"], audio, MLS_TAGS[language], speaker, row["words"].strip())


def _mls_root(split: str, encoding: str) -> str:
    language = split.rpartition("-")[0]
    return f"mls_{language}_opus" if encoding == "opus" else f"mls_{language}"


FLEURS = ManifestReader(
    "fleurs", Fleurs.SPLITS, card("fleurs"), fleurs_sources, fleurs_entries, "google/fleurs"
)
MLS = ManifestReader("mls", Mls.SPLITS, card("mls"), mls_sources, mls_entries)
