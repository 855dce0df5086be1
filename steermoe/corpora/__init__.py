"""Corpora: one reader a file, a row each in CORPORA.

A reader is a module with

    SPLITS: tuple[str, ...]
    fetch(settings, dest): put the source into the folder `dest`, which exists and outlives a killed try
    parts(settings, source) -> list: what can be made apart from each other, split by split, in order. A part
        has `split` and `number` (from 0 in every split), can be pickled, and becomes one shard
    rows(settings, source, part) -> Iterator[dict]: the utterances of a part, with the columns of
        `steermoe.data.schemas.Utterance`. Runs in a process of its own

`settings` is the corpus' section of the configuration. The same settings and source give the same rows. A
reader whose source cannot be had, and need not be, marks `dest` by `steermoe.data.skipped.write_skipped`.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from pydantic import BaseModel

from steermoe.data.skipped import skipped_reason
from steermoe.data.staging import Staging


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


def fetch(name: str, settings: BaseModel, out: Path) -> None:
    """Fetch a corpus into the folder `out`, which appears whole or not at all; a killed try is continued."""
    key = {"fetch": CORPORA.get(name), "settings": settings.model_dump(mode="json")}
    with Staging(out, key) as staging:
        reader(name).fetch(settings, staging.files)
        reason = skipped_reason(staging.files)
        staging.commit()
    if reason is not None:
        print(f"SKIPPED {name}: {reason}", file=sys.stderr)


CORPORA = {
    "synthetic": "steermoe.corpora.synthetic",
    "digits": "steermoe.corpora.digits",
}
