"""FLEURS (Conneau et al., SLT 2022): the sentences of FLoRes read in 102 languages. Splits: `de_de-test`.

Laid out as the data set google/fleurs on the Hugging Face hub: `data/<language>/<split>.tsv` (no header, no
quotes: id, file name, raw transcript, normalised transcript, its characters, samples, gender) and
`data/<language>/audio/<split>.tar.gz` with `<split>/<file name>`. Sizes and checksums are those of the hub at the
revision of the configuration. Nothing tells speakers apart. The layout is that which public recipes read.
"""

from collections.abc import Iterator
from pathlib import Path

from steermoe.config import Fleurs
from steermoe.corpora import hub, index, sources, tables
from steermoe.corpora.card import Card
from steermoe.corpora.index import Entry
from steermoe.corpora.places import locate
from steermoe.corpora.sources import Source

SPLITS = Fleurs.SPLITS
REPOSITORY = "google/fleurs"
COLUMNS = ("id", "file_name", "raw", "normalised", "characters", "samples", "gender")
CARD = Card(
    name="FLEURS",
    hours=1400,
    bytes=None,
    licence="CC BY 4.0",
    source="https://huggingface.co/datasets/google/fleurs",
    restrictions="name the authors, and say what you changed; commercial use is allowed",
    citation="Conneau et al.: FLEURS: few-shot learning evaluation of universal representations of speech. "
    "SLT 2022",
    language="as the split says (de_de-test)",
    task="transcribe",
    metric="WER; CER for languages written without spaces",
    normalizer="case and punctuation away; its own, with corpora.fleurs.text: normalised",
)
parts, rows = index.parts, index.rows


def fetch(settings: Fleurs, dest: Path) -> None:
    """Put the splits in use into `dest`.

    Raises:
        UnavailableError, ArchiveError, SpaceError: as `sources.fetch`; ArchiveError also where a recording is
            missing, or the table is not as expected.
    """
    paths = [path for split in settings.used for path in _paths(split)]
    listed: dict[str, tuple[int, str]] = {}
    if settings.mirror is None:
        for language in sorted({_halves(split)[0] for split in settings.used}):
            listed |= hub.listing(REPOSITORY, settings.revision, f"data/{language}")
        hub.known(listed, paths, REPOSITORY)
    base = hub.base(REPOSITORY, settings.revision)
    files = [_source(base, path, *listed.get(path, (None, None))) for path in paths]
    sources.fetch("fleurs", files, settings, dest)
    for split in settings.used:
        index.write_index(dest, split, entries(dest, split, settings.text))


def entries(fetched: Path, split: str, text: str) -> Iterator[Entry]:
    """The utterances of a split, as listed; `text` is the column of the transcript.

    Raises:
        ArchiveError: a listed recording is not there.
    """
    table, audio = (source.holds for source in (_source("", path, None, None) for path in _paths(split)))
    place = locate(fetched)
    for number, row in tables.read_columns(place(table), COLUMNS):
        path = place.recording(f"{audio}/{row['file_name']}", f"{place(table)}, line {number}")
        yield Entry(Path(path).stem, path, language_of(split), "unknown", row[text].strip())


def language_of(split: str) -> str:
    """The language of a split, without the country: `de` of `de_de-test`."""
    return split.partition("_")[0]


def _halves(split: str) -> tuple[str, str]:
    language, _, part = split.rpartition("-")
    return language, part


def _paths(split: str) -> tuple[str, str]:
    """The files of a split on the hub: the table and the archive."""
    language, part = _halves(split)
    return f"data/{language}/{part}.tsv", f"data/{language}/audio/{part}.tar.gz"


def _source(base: str, path: str, size: int | None, checksum: str | None) -> Source:
    holds = path.removesuffix(".tar.gz")
    inside = (Path(holds).name,)
    return Source(base, path, holds, inside, bytes=size, checksum=checksum, factor=1.5)
