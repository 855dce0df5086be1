import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from steermoe.evaluation.normalizers import (
    NORMALIZERS,
    chinese,
    folded,
    normalizer,
    whisper_basic,
    whisper_english,
)

# Whisper's are taken as they are, and promise nothing about a second pass.
STABLE = ("none", "folded", "chinese")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Hello,   World!\n", "hello world"),
        ("Don\u2019t \u2018stop\u2019 the dogs' 'bus", "don't stop the dogs bus"),
        ("twenty-three", "twenty three"),
        ("STRASSE Straße", "strasse strasse"),
        ("ﬁve \uff13 + \uff14", "five 3 + 4"),
        ("请\uff0c逐字\u3002复述", "请 逐字 复述"),
        ("naïve café", "naïve café"),
        ("...", ""),
        ("", ""),
    ],
)
def test_folded(text: str, expected: str) -> None:
    assert folded(text) == expected


@pytest.mark.parametrize("name", STABLE)
@given(st.text())
@example("''a'b''c'")
@example("\u0345\u0301A")
def test_a_second_pass_changes_nothing(name: str, text: str) -> None:
    once = normalizer(name)(text)
    assert normalizer(name)(once) == once


def test_none_keeps_every_character() -> None:
    assert normalizer("none")(" Hello,  World! ") == " Hello,  World! "


def test_unknown_name_lists_the_legal_ones() -> None:
    with pytest.raises(
        ValueError, match="unknown normalizer 'whisper'; known: none, folded, whisper-english"
    ):
        normalizer("whisper")


@pytest.mark.parametrize("name", NORMALIZERS)
@given(st.text())
def test_no_spaces_at_the_edges_and_none_doubled(name: str, text: str) -> None:
    if name != "none":
        assert normalizer(name)(text) == " ".join(normalizer(name)(text).split())


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("请\uff0c逐 字。复述", "请逐字复述"),
        ("\uff21\uff22 \uff23 你好 \uff13 三", "ab c你好3三"),
        ("你好 Hello, World 吧", "你好hello world吧"),
        ("𠀀 一", "𠀀一"),
    ],
)
def test_chinese(text: str, expected: str) -> None:
    assert chinese(text) == expected
