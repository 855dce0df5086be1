"""Text normalisers: differences between two texts that do not count. docs/scoring.md has them as a table.

`whisper-english` and `whisper-basic` are OpenAI's (Radford et al. 2022, appendix C), from the package
whisper_normalizer. The Open ASR leaderboard adds tables of spellings, names and compounds to the first, which no
package provides, so its figures are not comparable to the last decimal.
"""

import functools
import re
import unicodedata
from typing import Any, Literal, Protocol

# Languages written without spaces between words (of those that corpora here have): they have no WER.
UNSPACED = ("zh", "yue", "wuu", "cmn", "ja", "th", "lo", "km", "my", "bo")

# An apostrophe belongs to its word between two word characters ("don't"), not at an edge ("'tis", "dogs'").
LONE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")
# Ideographs of the basic plane, their extension A and compatibility forms, the planes of the other extensions.
_IDEOGRAPH = "[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
BESIDE_CHINESE = re.compile(rf"(?<={_IDEOGRAPH}) | (?={_IDEOGRAPH})")
# Quotes, accents and primes, modifier letters, those of Greek, Armenian and Hebrew, full-width forms.
APOSTROPHES = (
    "`\u00b4\u2018\u2019\u201b\u2032\u2035\u02b9\u02bb\u02bc\u02bd\ua78c"
    "\u1fbd\u1fbf\u1fef\u1ffd\u1ffe\u055a\u05f3\uff07\uff40"
)
# One code point for what looks the same: minus, full-width tilde for the wave dash. A tatweel only lengthens a line.
TYPED = dict.fromkeys(APOSTROPHES, "'") | {"\u2212": "-", "\uff5e": "\u301c", "\u0640": "", "\u0130": "i"}
# Invisible, but of no category of their own: joiners, Khmer's inherent vowels, fillers of Hangul, variation selectors.
UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_TURKIC = str.maketrans({"I": "\u0131"})
_PERSIAN = str.maketrans({"ي": "ی", "ك": "ک"})
OF_LANGUAGE = {"tr": _TURKIC, "az": _TURKIC, "fa": _PERSIAN, "ur": _PERSIAN}
_DOTTED = re.compile("i\u0307+")  # what Unicode's lower case makes of `İ`
_DOTS = re.compile(r"[.\u2026]{2,}|\u2026")


class Normalizer(Protocol):
    """A row of NORMALIZERS."""

    def __call__(self, text: str, language: str = "und") -> str:
        """Return the text without what is not counted; `language` is its BCP 47 tag."""
        ...


def is_unspaced(language: str) -> bool:
    """Return whether a language, by its BCP 47 tag, is written without spaces between words."""
    return _primary(language) in UNSPACED


def _primary(language: str) -> str:
    return language.replace("_", "-").split("-")[0].lower()


def as_written(text: str, language: str = "und") -> str:
    """Return the text itself."""
    return text


def typed_alike(text: str, language: str, form: Literal["NFC", "NFKC"]) -> str:
    """Return the text in a Unicode form, with one code point for what looks the same; case and punctuation stay.

    Apostrophes, minus signs and decimal digits of all scripts become ASCII; invisible characters and tatweel are
    removed. `İ` and, in Turkish and Azerbaijani, `I` become the small letters of that language (Unicode's lower case
    differs); in Persian and Urdu the Arabic yeh and kaf become those of the language.
    """
    text = unicodedata.normalize(form, "".join(map(_typed, text)))
    text = _DOTTED.sub("i", "".join(map(_typed, text)))  # again, as a form may compose what is to be replaced
    return text.translate(OF_LANGUAGE.get(_primary(language), {}))


def _typed(character: str) -> str:
    if character in TYPED:
        return TYPED[character]
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    is_unseen = (category in ("Cc", "Cf") and not character.isspace()) or UNSEEN.match(character)
    return "" if is_unseen else character


def _spaced(text: str, language: str) -> str:
    """Return the text with single spaces; with none in a language written without."""
    return ("" if is_unspaced(language) else " ").join(text.split())


def folded(text: str, language: str = "und") -> str:
    """Apply `typed_alike`, NFKC and case folding; replace punctuation and pictures (`♪`, emoji) by spaces.

    Apostrophes inside words, numbers, symbols such as `+`, `€` and `°`, accents and vowel marks stay.
    """
    text = unicodedata.normalize("NFKC", typed_alike(text, language, "NFKC").casefold())
    text = "".join(" " if _separates(c) else c for c in text)
    return _spaced(LONE_APOSTROPHE.sub(" ", text), language)


def _separates(character: str) -> bool:
    category = unicodedata.category(character)
    return (category.startswith("P") or category in ("So", "Sk")) and character not in "'°"


@functools.cache
def _whisper(kind: str) -> Any:
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer() if kind == "english" else BasicTextNormalizer(preserve_marks=True)


def whisper_english(text: str, language: str = "und") -> str:
    """Apply `typed_alike` and Whisper's normaliser for English.

    British spellings become American, numbers digits; contractions are written out; words in brackets and hesitations
    (`uh`, `hmm`) are removed, and dots in a row, of which Whisper's own leaves one as a word.
    """
    return _spaced(_whisper("english")(_DOTS.sub(" ", typed_alike(text, language, "NFC"))), language)


def whisper_basic(text: str, language: str = "und") -> str:
    """Apply `typed_alike` and Whisper's normaliser for other languages: no words in brackets, no symbols.

    Unlike Whisper's own it keeps combining marks, without which words of Devanagari or Thai would fall apart.
    """
    return _spaced(_whisper("basic")(typed_alike(text, language, "NFC")), language)


def chinese(text: str, language: str = "und") -> str:
    """Apply `folded` and remove spaces next to Chinese characters, for rows without a language.

    `3` and `三` differ, and traditional characters stay traditional.
    """
    return BESIDE_CHINESE.sub("", folded(text, language))


def normalizer(name: str) -> Normalizer:
    """Return a normaliser by its name; ValueError for an unknown one."""
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
