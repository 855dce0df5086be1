"""Decode and clean texts of users and files.

`clean` removes byte-order marks, zero-width and directional characters, soft hyphens, control characters and
noncharacters, composes letters (Unicode NFC) and replaces every run of whitespace, line breaks included, by one space.
Two invisible characters change how letters are written and stay where they do: the zero-width joiner (U+200D) after a
letter or mark of a script of JOINING, and the non-joiner (U+200C) between two.
"""

import unicodedata
from pathlib import Path

JOINING = frozenset(
    (
        "ARABIC SYRIAC NKO MONGOLIAN DEVANAGARI BENGALI GURMUKHI GUJARATI ORIYA TAMIL TELUGU KANNADA MALAYALAM "
        "SINHALA TIBETAN MYANMAR KHMER BALINESE JAVANESE"
    ).split()
)
_NON_JOINER, _JOINER = "\u200c", "\u200d"
# Format characters (category Cf) that are visible: signs under numbers and letters.
_SEEN = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")


class TextError(ValueError):
    """Not text: NUL characters, halves of surrogate pairs, or bytes that are not UTF-8."""


def clean(text: str) -> str:
    """Return the text without what the module removes. Cleaning twice changes nothing.

    Raises:
        TextError: it holds NUL characters or unpaired surrogates, as binary data and broken escapes do.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    broken = next((c for c in text if c == "\0" or unicodedata.category(c) == "Cs"), None)
    if broken is not None:
        raise TextError(
            f"found U+{ord(broken):04X} (NUL or half a surrogate pair) in {text[:40]!r}, expected text"
        )
    seen = [c for c in text if c.isspace() or c in (_NON_JOINER, _JOINER) or not _invisible(c)]
    kept = [c for i, c in enumerate(seen) if c not in (_NON_JOINER, _JOINER) or _joins(seen, i)]
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split())


def _invisible(character: str) -> bool:
    """Return whether a character is a control, an invisible format character, or a noncharacter."""
    category, code = unicodedata.category(character), ord(character)
    noncharacter = 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE
    return category == "Cc" or (category == "Cf" and character not in _SEEN) or noncharacter


def _joins(text: list[str], place: int) -> bool:
    """Return whether the joiner or non-joiner at `place` shapes the letters next to it."""
    before = text[place - 1] if place else ""
    after = text[place + 1] if place + 1 < len(text) else ""
    return _of_joining(before) and (text[place] == _JOINER or _of_joining(after))


def _of_joining(character: str) -> bool:
    letter = character and unicodedata.category(character)[0] in "LM"
    return bool(letter) and unicodedata.name(character, "").split(" ")[0] in JOINING


def read_text(path: Path) -> str:
    """Read a UTF-8 file, without a byte-order mark.

    Raises:
        TextError: it is in another encoding; names file, line and byte.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TextError(f"{path}, line {line}: {not_utf8(data, data[error.start])}") from error


def not_utf8(start: bytes, byte: int) -> str:
    """Describe a file that begins with `start` and has a `byte` that is not UTF-8."""
    wide = start.startswith((b"\xff\xfe", b"\xfe\xff"))
    guess = "UTF-16" if wide else "Windows-1252 or Latin-1"
    return f"found byte 0x{byte:02x}, which is not UTF-8 (perhaps the file is in {guess}); save it as UTF-8"
