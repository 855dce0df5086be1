"""Corpora: one reader a file, a row each in CORPORA.

A reader is a module with

    CARD: Card, printed before anything is fetched
    SPLITS: tuple[str, ...]
    fetch(settings, dest): put the source into the folder `dest`, which exists and outlives a killed try
    parts(settings, source) -> list: what can be made apart from each other, split by split, in order. A part
        has `split` and `number` (from 0 in every split), can be pickled, and becomes one shard, or several where
        its recordings are too large for one
    rows(settings, source, part) -> Iterator[dict]: the utterances of a part, with the columns of
        `steermoe.data.schema.Utterance`; where the audio is a file, its path, without sample_rate and seconds:
        preprocessing decodes it, and lists what it cannot. A row with a column `fault`, why it cannot be used, is
        rejected and listed too. Runs in a process of its own for every shard

`settings` is the corpus' section of the configuration. The same settings and source give the same rows. `fetch`
must not depend on `settings.limit`. Where it raises UnavailableError, and the corpus is not required, the corpus is
skipped, visibly.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from steermoe.atomic_io import Staging
from steermoe.config import Corpus, Remote
from steermoe.corpora import archives, sources
from steermoe.corpora.card import Card
from steermoe.corpora.downloads import UnavailableError
from steermoe.corpora.sources import WORK
from steermoe.data.filters import write_skipped


class Part(Protocol):
    """A stretch of a split, made by one call of `rows`."""

    @property
    def split(self) -> str:
        """Name of the split."""
        ...

    @property
    def number(self) -> int:
        """Place among the parts of the split, from 0."""
        ...


class Reader(Protocol):
    """The module of a corpus."""

    CARD: Card
    SPLITS: tuple[str, ...]
    __name__: str

    def fetch(self, settings: Any, dest: Path) -> None:
        """Put the source into `dest`."""
        ...

    def parts(self, settings: Any, source: Path) -> Sequence[Part]:
        """What can be made apart from each other."""
        ...

    def rows(self, settings: Any, source: Path, part: Any) -> Iterator[dict[str, Any]]:
        """The utterances of a part."""
        ...


def reader(name: str) -> Reader:
    """The reader of a corpus, imported.

    Raises:
        ValueError: no such corpus.
    """
    if name not in CORPORA:
        raise ValueError(f"unknown corpus {name!r}; one of: {', '.join(CORPORA)}")
    return cast(Reader, importlib.import_module(CORPORA[name]))


def fetch(name: str, settings: Corpus, out: Path) -> None:
    """Fetch a corpus into the folder `out`, which appears whole or not at all; a killed try is continued.

    Raises:
        UnavailableError: the source cannot be had, and the corpus is required.
        ArchiveError, SpaceError: the source is not what it must be; the disk is too small.
    """
    module = reader(name)
    print(module.CARD.text(), flush=True)
    key = {"fetch": CORPORA[name], "settings": settings.model_dump(mode="json", exclude={"limit"})}
    with Staging(out, key) as staging:
        try:
            module.fetch(settings, staging.files)
        except archives.ArchiveError:
            sources.doubt(staging.files)
            raise
        except UnavailableError as error:
            if not isinstance(settings, Remote) or settings.required:
                raise
            reason = (
                f"{error}; the corpus is not required (corpora.{name}.required). Name an archive or a folder "
                f"by corpora.{name}.mirror, or repeat the download stage by force when online"
            )
            for path in staging.files.iterdir():
                archives.clear(path)
            write_skipped(staging.files, reason)
            print(f"SKIPPED {name}: {reason}", file=sys.stderr)
        archives.clear(staging.files / WORK)
        staging.commit()


CORPORA = {
    "synthetic": "steermoe.corpora.synthetic",
    "digits": "steermoe.corpora.digits",
    "librispeech": "steermoe.corpora.librispeech",
    "minilibrispeech": "steermoe.corpora.minilibrispeech",
    "aishell1": "steermoe.corpora.aishell1",
    "aishell2": "steermoe.corpora.aishell2",
    "fleurs": "steermoe.corpora.fleurs",
    "mls": "steermoe.corpora.mls",
    "folder": "steermoe.corpora.folder",
    "clothoaqa": "steermoe.corpora.clothoaqa",
    "clotho": "steermoe.corpora.clotho",
    "mmau": "steermoe.corpora.mmau",
    "mmaupro": "steermoe.corpora.mmaupro",
    "openaudiobench": "steermoe.corpora.openaudiobench",
    "shapes": "steermoe.corpora.shapes",
}
