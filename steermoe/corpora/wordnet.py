"""The entries of WordNet 3.1 (Fellbaum 1998), and its example sentences, which are free texts for voices to speak.

The WordNet licence allows any use, with its notice.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PARTS = ("noun", "verb", "adj", "adv")
ANTONYM = "!"
MIN_WORDS, MAX_WORDS = 4, 12
_QUOTED = re.compile(r'"([^"]+)"')
_PLAIN = re.compile(r"[A-Za-z][a-z']*( [A-Za-z][a-z']*)*[.!?]?")


class Sense(NamedTuple):
    """A meaning in WordNet: its words, those of them that have an opposite, its kind, and its gloss."""

    words: tuple[str, ...]
    opposed: frozenset[str]
    kind: str
    gloss: str


def senses_of(path: Path) -> Iterator[Sense]:
    """Yield the entries of a data file of WordNet (its format: wndb(5))."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        entry, _, gloss = line.partition(" | ")
        fields = entry.split()
        count = int(fields[3], 16)
        words = [word.partition("(")[0] for word in fields[4 : 4 + 2 * count : 2]]
        rest = fields[4 + 2 * count :]
        pointers = [rest[1 + 4 * number : 5 + 4 * number] for number in range(int(rest[0]))]
        opposed = {words[int(place[:2], 16) - 1] for symbol, _, _, place in pointers if symbol == ANTONYM}
        yield Sense(tuple(words), frozenset(opposed), fields[1], gloss)


def example_phrases(wordnet: Path) -> list[str]:
    """Return the different examples of 4 to 12 plain words, as sentences with a capital letter and a full stop.

    Two that differ in case and punctuation only count as one.

    Args:
        wordnet: folder with data.noun, data.verb, data.adj and data.adv.
    """
    found: dict[str, str] = {}
    for part in PARTS:
        for sense in senses_of(wordnet / f"data.{part}"):
            for phrase in _QUOTED.findall(sense.gloss):
                text = " ".join(phrase.split())
                if _PLAIN.fullmatch(text) and MIN_WORDS <= len(text.split()) <= MAX_WORDS:
                    sentence = text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")
                    found.setdefault(sentence.casefold().rstrip(".!?"), sentence)
    return list(found.values())


def shuffled(texts: list[str], seed: int) -> list[str]:
    """Return the texts in an order that depends on each text and the seed only, not on the others."""
    return sorted(texts, key=lambda text: hashlib.blake2b(f"{seed} {text}".encode()).digest())
