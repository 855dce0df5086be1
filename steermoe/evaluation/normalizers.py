"""What two texts may differ in without being counted as different."""

import re
import unicodedata
from collections.abc import Callable

Normalizer = Callable[[str], str]

# An apostrophe belongs to its word between two word characters ("don't"), not at an edge ("'tis", "dogs'").
LONE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")
APOSTROPHES = {ord("\u2019"): "'", ord("\u02bc"): "'"}


def as_written(text: str) -> str:
    """The text itself."""
    return text


def folded(text: str) -> str:
    """Unicode NFKC, case folded, punctuation taken out but for apostrophes inside words, single spaces.

    Punctuation separates words ("twenty-three" reads as two). Numbers, symbols such as `+` and accents stay.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(
        APOSTROPHES
    )
    text = "".join(" " if unicodedata.category(c).startswith("P") and c != "'" else c for c in text)
    return " ".join(LONE_APOSTROPHE.sub(" ", text).split())


def normalizer(name: str) -> Normalizer:
    """The normaliser of that name; ValueError for another."""
    if name not in NORMALIZERS:
        raise ValueError(f"unknown normalizer {name!r}; known: {', '.join(NORMALIZERS)}")
    return NORMALIZERS[name]


NORMALIZERS: dict[str, Normalizer] = {"none": as_written, "folded": folded}
