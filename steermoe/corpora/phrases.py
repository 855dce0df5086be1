"""Free English texts for voices to speak: the example sentences of WordNet 3.1 (Fellbaum 1998).

The WordNet licence allows any use, with its notice.
"""

import hashlib
import re
from pathlib import Path

PARTS = ("noun", "verb", "adj", "adv")
MIN_WORDS, MAX_WORDS = 4, 12
_QUOTED = re.compile(r'"([^"]+)"')
_PLAIN = re.compile(r"[A-Za-z][a-z']*( [A-Za-z][a-z']*)*[.!?]?")


def example_phrases(wordnet: Path) -> list[str]:
    """Return the different examples of 4 to 12 plain words, as sentences with a capital letter and a full stop.

    Two that differ in case and punctuation only count as one.

    Args:
        wordnet: folder with data.noun, data.verb, data.adj and data.adv.
    """
    found: dict[str, str] = {}
    for part in PARTS:
        for line in (wordnet / f"data.{part}").read_text(encoding="utf-8").splitlines():
            _, bar, gloss = line.partition(" | ")
            for phrase in _QUOTED.findall(gloss) if bar else ():
                text = " ".join(phrase.split())
                if _PLAIN.fullmatch(text) and MIN_WORDS <= len(text.split()) <= MAX_WORDS:
                    sentence = text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")
                    found.setdefault(sentence.casefold().rstrip(".!?"), sentence)
    return list(found.values())


def shuffled(texts: list[str], seed: int) -> list[str]:
    """Return the texts in an order that depends on each text and the seed only, not on the others."""
    return sorted(texts, key=lambda text: hashlib.blake2b(f"{seed} {text}".encode()).digest())
