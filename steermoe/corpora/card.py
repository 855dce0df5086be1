"""What a corpus is, and what its licence asks and forbids: printed before anything of it is downloaded."""

import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A data card.

    Attributes:
        hours: of audio in the whole corpus; None where no figure is published.
        bytes: of all official archives; None where no figure is published.
        licence: its name, or what stands in for one.
        source: where it is from.
        restrictions: what the licence asks or forbids, in plain words.
        citation: of the paper.
        language: ISO 639-1 codes, or where a row says it.
        task: `transcribe`, `answer` or `caption`.
        metric: what results on it are reported in.
        normalizer: what is usually done to texts before they are compared.
    """

    name: str
    hours: float | None
    bytes: int | None
    licence: str
    source: str
    restrictions: str
    citation: str
    language: str
    task: str
    metric: str
    normalizer: str

    def text(self) -> str:
        """The card for people, a few lines."""
        hours = "?" if self.hours is None else f"{self.hours:g} h"
        size = "size not published" if self.bytes is None else f"{self.bytes / 1e9:.3g} GB to download"
        lines = {
            "corpus": f"{self.name}: {hours}, {size}; {self.language}; task {self.task}",
            "source": self.source,
            "licence": self.licence,
            "mind": self.restrictions,
            "scored": f"{self.metric}, usually after: {self.normalizer}",
            "cite": self.citation,
        }
        return "\n".join(
            textwrap.fill(text, 100, initial_indent=f"{key:8}", subsequent_indent=" " * 8)
            for key, text in lines.items()
        )
