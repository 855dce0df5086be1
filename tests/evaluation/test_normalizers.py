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
        ("\u266a la la \u266b \U0001f44d\U0001f3fd", "la la"),
        ("20 \u00b0 + \u20ac5", "20 ° + €5"),
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


MARKS = "\u00b4\u2018\u2019\u201b\u2032\u02bc\u02b9`\uff07\uff40\u1ffd"
DASHES = "\u2010\u2011\u2013\u2014\u2212\ufe63\uff0d "
INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u2060\ufeff\u202b\u2069\ufe0f\x07"
# Two spellings of one text in a language, and what `folded` makes of both.
ALIKE = [
    (
        "tr",
        "\u0130stanbul'da I\u015eIK",
        "i\u0307stanbul\u2019da \u0131\u015f\u0131k",
        "istanbul'da \u0131\u015f\u0131k",
    ),
    ("tr-TR", "I\u0307ZM\u0130R", "izmir", "izmir"),
    ("az", "QIZ", "q\u0131z", "q\u0131z"),
    ("en", "\u0130stanbul IT", "i\u0307stanbul it", "istanbul it"),
    ("und", "NA\u00cfVE", "nai\u0308ve", "na\u00efve"),
    *(("en", "don't", f"don{mark}t", "don't") for mark in MARKS),
    *(("en", "twenty-three", f"twenty{dash}three", "twenty three") for dash in DASHES),
    *(("en", "cooperate", f"coop{character}erate", "cooperate") for character in INVISIBLE),
    ("uz", "o\u02bbzbek", "O\u2018zbek", "o'zbek"),
    ("uk", "п\u02bcять", "П'ЯТЬ", "п'ять"),
    ("fr", "L\u2019\u00c9T\u00c9", "l'e\u0301te\u0301", "l'\u00e9t\u00e9"),
    ("ja", "今日 は、いい 天気 です。", "今日はいい天気です", "今日はいい天気です"),
    ("zh-Hans", "你好 WORLD, 吧 3", "你好world吧\uff13", "你好world吧3"),
    ("yue", "你 好", "你好", "你好"),
    ("th", "สวัสดี ครับ", "สวัสดี\u200bครับ", "สวัสดีครับ"),
    ("lo", "ສະບາຍ ດີ", "ສະບາຍດີ", "ສະບາຍດີ"),
    ("km", "សួស្តី បង", "សួស្តី\u200bបង", "សួស្តីបង"),
    ("my", "မင်္ဂလာ ပါ", "မင်္ဂလာပါ။", "မင်္ဂလာပါ"),
    ("bo", "བཀྲ་ཤིས", "བཀྲ ཤིས།", "བཀྲཤིས"),
    ("ko", "안녕 하세요!", "안녕 하세요", "안녕 하세요"),
    ("hi", "हिन्दी १२", "हिन्दी 12।", "हिन्दी 12"),
    ("ar", "الع\u0640\u0640ربية \u0663", "العربية 3", "العربية 3"),
    ("fa", "كتابي", "کتابی", "کتابی"),
    ("he", "ג\u05f3ירפה", "ג'ירפה", "ג'ירפה"),  # noqa: RUF001
]
# The same, of forms that only `folded` makes one.
FOLDED_ALIKE = [
    ("ja", "ｶﾞﾗｽ\uff5e", "ガラス\u301c", "ガラス"),
    ("ar", "\ufefb", "لا", "لا"),
    ("az", "\uff29", "\u0131", "\u0131"),
    ("de", "Stra\u00dfe GRO\u1e9e", "STRASSE gross", "strasse gross"),
    ("el", "\u039f\u0394\u039f\u03a3", "οδος", "οδοσ"),
    ("en", "\uff21\uff22\uff23 \uff11\uff12 \ufb01n", "abc 12 fin", "abc 12 fin"),
]


@pytest.mark.parametrize(("language", "text", "other", "expected"), [*ALIKE, *FOLDED_ALIKE])
def test_what_is_typed_otherwise_is_no_error(language: str, text: str, other: str, expected: str) -> None:
    assert folded(text, language) == folded(other, language) == expected
    if (language, text, other, expected) in ALIKE:
        whispers = whisper_english if language == "en" else whisper_basic
        assert whispers(text, language) == whispers(other, language)


@pytest.mark.parametrize(
    ("language", "text", "other"),
    [
        ("tr", "k\u0131z", "kiz"),
        ("en", "naïve", "naive"),
        ("hi", "कि", "की"),
        ("th", "ปู", "ปี"),
        ("ar", "كَتَبَ", "كتب"),
        ("ru", "всё", "все"),
        ("de", "für", "fuer"),
        ("zh", "3", "三"),
        ("ja", "は", "ば"),
        ("en", "well", "we'll"),
        ("en", "a b", "ab"),
    ],
)
def test_what_is_another_letter_is_an_error(language: str, text: str, other: str) -> None:
    for normalize in (folded, whisper_basic):
        assert normalize(text, language) != normalize(other, language)


def test_whispers_for_other_languages_keeps_vowel_marks() -> None:
    assert whisper_basic("हिन्दी में!", "hi") == "हिन्दी में"


@pytest.mark.parametrize("text", ["wait...", "wait\u2026", "wait..", "\u2026wait\u2026"])
def test_dots_are_no_words_to_whispers_for_english(text: str) -> None:
    assert whisper_english(text) == "wait"


def test_languages_without_spaces_are_known_by_their_tags() -> None:
    assert all(map(is_unspaced, ("ja", "zh-Hans-CN", "ZH", "th_TH", "bo")))
    assert not any(map(is_unspaced, ("en", "ko", "vi", "und", "")))
