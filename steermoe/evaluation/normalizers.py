"""What two texts may differ in without being counted as different.

`whisper-english` and `whisper-basic` are OpenAI's (Radford et al. 2022, appendix C), as the package
whisper_normalizer has them with the table of spellings. The normaliser of the Open ASR leaderboard adds tables of
spellings, names and compounds to the first, which no package holds: figures of that board cannot be compared to
the last decimal with those made here.
"""

import functools
import re
import unicodedata
from collections.abc import Callable

Normalizer = Callable[[str], str]

# An apostrophe belongs to its word between two word characters ("don't"), not at an edge ("'tis", "dogs'").
LONE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")
# Ideographs of the basic plane, their extension A and compatibility forms, the planes of the other extensions.
_IDEOGRAPH = "[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
BESIDE_CHINESE = re.compile(rf"(?<={_IDEOGRAPH}) | (?={_IDEOGRAPH})")
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


@functools.cache
def _whisper(kind: str) -> Normalizer:
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer() if kind == "english" else BasicTextNormalizer()


def whisper_english(text: str) -> str:
    """Whisper's for English: British spellings become American, numbers digits, contractions are written out.

    Words in brackets and hesitations (`uh`, `hmm`) go. Not for other languages.
    """
    return " ".join(_whisper("english")(text).split())


def whisper_basic(text: str) -> str:
    """Whisper's for other languages: lower case, no words in brackets, symbols and punctuation are spaces.

    Combining marks are symbols to it too: words of scripts that write vowels as marks (Devanagari, Thai) fall
    apart, so CER is the metric there.
    """
    return " ".join(_whisper("basic")(text).split())


def chinese(text: str) -> str:
    """For character error rates of Chinese: as `folded`, without any space beside a Chinese character.

    Full-width letters and digits become half-width (NFKC), as in `folded`. Digits stay digits and numerals stay
    numerals: `3` and `三` differ, as they do in references that spell numbers out (AISHELL). Traditional
    characters stay traditional.
    """
    return BESIDE_CHINESE.sub("", folded(text))


def normalizer(name: str) -> Normalizer:
    """The normaliser of that name; ValueError for another."""
    if name not in NORMALIZERS:
        raise ValueError(f"unknown normalizer {name!r}; known: {', '.join(NORMALIZERS)}")
    return NORMALIZERS[name]


NORMALIZERS: dict[str, Normalizer] = {
    "none": as_written,
    "folded": folded,
    "whisper-english": whisper_english,
    "whisper-basic": whisper_basic,
    "chinese": chinese,
}
