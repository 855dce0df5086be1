"""Normalisers: what counts as equal, and what does not, by language; the tables are in normalizers.json."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from steermoe.evaluation.normalizers import (
    NORMALIZERS,
    chinese,
    folded,
    is_unspaced,
    normalizer,
    whisper_basic,
    whisper_english,
)

CASES = json.loads(Path(__file__).with_name("normalizers.json").read_text(encoding="utf-8"))
# Whisper's are taken as they are, and promise nothing about a second pass.
STABLE = ("none", "folded", "chinese")


@pytest.mark.parametrize(
    ("name", "text", "expected"), [(n, *case) for n in ("folded", "chinese") for case in CASES[n]]
)
def test_known_texts(name: str, text: str, expected: str) -> None:
    assert normalizer(name)(text) == expected


@given(st.text())
@example("''a'b''c'")
@example("\u0345\u0301A")
def test_properties(text: str) -> None:
    """A second pass changes nothing; there are no spaces at the edges and none doubled."""
    for name, normalize in NORMALIZERS.items():
        once = normalize(text)
        assert name not in STABLE or normalize(once) == once
        assert name == "none" or once == " ".join(once.split())
    assert normalizer("none")(text) == text


def test_unknown_name_lists_the_legal_ones() -> None:
    with pytest.raises(
        ValueError, match="unknown normalizer 'whisper'; known: none, folded, whisper-english"
    ):
        normalizer("whisper")


SPOKEN = [
    "Mr. Brown's colour isn't [noise] twenty-three dollars, uh, 1,000 £5",
    "I'd've been two hundred and one percent sure",
    "double oh seven one point five million",
    "she'd gone on the 3rd of May nineteen eighty four",
    "won't y'all let's gotta (laughs) naïve œuvre",
    "GRÖßE: café! 12 €",
    "",
]


@pytest.mark.parametrize("text", SPOKEN)
def test_whispers_are_those_of_transformers(text: str) -> None:
    """Two ports of OpenAI's code, kept by different people, say the same."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer
    from whisper_normalizer.english import EnglishSpellingNormalizer

    english = EnglishTextNormalizer(EnglishSpellingNormalizer().mapping)
    assert whisper_english(text) == " ".join(english(text).split())
    assert whisper_basic(text) == " ".join(BasicTextNormalizer()(text).split())


def test_whispers_on_known_texts() -> None:
    assert whisper_english(SPOKEN[0]) == "mister brown is color is not $23 1000 £5"
    assert whisper_basic("Größe: café, (lacht) Straße! 12 €") == "größe café straße 12"
    assert whisper_basic("हिन्दी में!", "hi") == "हिन्दी में"  # keeps vowel marks
    for text in ("wait...", "wait\u2026", "wait..", "\u2026wait\u2026"):
        assert whisper_english(text) == "wait"  # dots are no words


@pytest.mark.parametrize(
    ("language", "text", "other", "expected"), CASES["alike"] + CASES["alike_when_folded"]
)
def test_what_is_typed_otherwise_is_no_error(language: str, text: str, other: str, expected: str) -> None:
    assert folded(text, language) == folded(other, language) == expected
    if [language, text, other, expected] in CASES["alike"]:
        whispers = whisper_english if language == "en" else whisper_basic
        assert whispers(text, language) == whispers(other, language)


@pytest.mark.parametrize(("language", "text", "other"), CASES["different"])
def test_what_is_another_letter_is_an_error(language: str, text: str, other: str) -> None:
    for normalize in (folded, whisper_basic):
        assert normalize(text, language) != normalize(other, language)


def test_languages_without_spaces_are_known_by_their_tags() -> None:
    assert all(map(is_unspaced, ("ja", "zh-Hans-CN", "ZH", "th_TH", "bo")))
    assert not any(map(is_unspaced, ("en", "ko", "vi", "und", "")))
    assert chinese("你 好", "zh") == "你好"
