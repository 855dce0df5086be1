"""What every reader of a corpus has: a data card, splits, and functions that fetch it, divide it and read it."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from steermoe.audio import io as waveform
from steermoe.config.load import read


@dataclass(frozen=True)
class Card:
    """What a corpus is, and what its licence asks and forbids; printed before anything is downloaded.

    Attributes:
        name: of the corpus.
        source: where it is from.
        citation: of the paper.
        hours: of audio in the whole corpus, where published.
        bytes: of all official archives, where published.
        licence: its name, or what stands in for one.
        restrictions: what the licence asks or forbids, in plain words.
        language: ISO 639-1 codes, or where the language is found.
        task: transcribe, answer, or caption.
        metric: what results on it are reported in.
        normalizer: what is usually done to texts before they are compared.
    """

    name: str
    source: str
    licence: str
    restrictions: str
    citation: str = "none"
    hours: float | None = None
    bytes: int | None = None
    language: str = "en"
    task: str = "transcribe"
    metric: str = "WER"
    normalizer: str = "case and punctuation removed"

    def text(self) -> str:
        """Return the card as a few lines of text."""
        hours = "?" if self.hours is None else f"{self.hours:g} h"
        size = "size not published" if self.bytes is None else f"{self.bytes / 1e9:.3g} GB to download"
        lines = {
            "corpus": f"{self.name}: {hours}, {size}; {self.language}; task {self.task}",
            "source": self.source,
            "licence": self.licence,
            "note": self.restrictions,
            "scored": f"{self.metric}, usually after: {self.normalizer}",
            "cite": self.citation,
        }
        return "\n".join(
            textwrap.fill(text, 100, initial_indent=f"{key:8}", subsequent_indent=" " * 8)
            for key, text in lines.items()
        )


@cache
def _cards() -> dict[str, Any]:
    return read(Path(__file__).with_name("cards.yaml"))


def card(corpus: str) -> Card:
    """Return the data card of a corpus in cards.yaml."""
    return Card(**_cards()[corpus])


class Reader(Protocol):
    """A corpus: a module, or an object of the module `__name__`, in which preprocessing finds `rows`.

    `settings` is the section of the corpus in the configuration. The same settings and source give the same rows.
    """

    CARD: Card
    SPLITS: tuple[str, ...]
    __name__: str

    def fetch(self, settings: Any, dest: Path) -> None:
        """Put the source into the folder `dest`, which exists and outlives an interrupted try.

        Must not depend on `settings.limit`. Raises UnavailableError where a file cannot be downloaded: the corpus is
        skipped if it is not required.
        """
        ...

    def parts(self, settings: Any, source: Path) -> Sequence[Any]:
        """Return the parts of all splits in use, in order: rows that one process makes, as one shard or more.

        A part has the attributes `split` and `number`, its position in the split from 0, and can be pickled.
        """
        ...

    def rows(self, settings: Any, source: Path, part: Any) -> Iterator[dict[str, Any]]:
        """Yield the utterances of a part, with the columns of `steermoe.data.schema.Utterance`.

        Where the audio is a file, `audio` is its path, without sample_rate and seconds: preprocessing decodes it, and
        rejects and lists what it cannot decode. A row with a column `fault`, why it cannot be used, is rejected too.
        """
        ...


@dataclass(frozen=True)
class Generated:
    """The `number`-th part of a split that is generated: `count` items of one task."""

    split: str
    number: int
    count: int
    task: str = "transcribe"


def in_parts(split: str, count: int, size: int, task: str = "transcribe", first: int = 0) -> list[Generated]:
    """Divide `count` items of a split into parts of `size`, numbered from `first`."""
    starts = enumerate(range(0, count, size), first)
    return [Generated(split, number, min(size, count - start), task) for number, start in starts]


def generated_row(
    corpus: str, part: Generated, number: int, speaker: str, text: str, sound: np.ndarray, **other: Any
) -> dict[str, Any]:
    """Return the row of the `number`-th item of a part: `sound` (N,) at 16 kHz with its transcript `text`.

    `other` replaces and adds columns.
    """
    row = {
        "source_id": f"{corpus}-{part.split}-{part.number:03d}-{number:04d}",
        "split": part.split,
        "speaker": speaker,
        "language": "en",
        "task": part.task,
        "prompt": "",
        "transcript": text,
        "target": text,
        "audio": waveform.encode_flac(sound, waveform.RATE),
        "sample_rate": waveform.RATE,
        "seconds": len(sound) / waveform.RATE,
    }
    return row | other
