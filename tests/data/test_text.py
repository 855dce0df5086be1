"""Texts keep what a person reads, and nothing else."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steermoe.data.text import TextError, clean


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ufeff a\u00a0 b\r\nc\u2028d\u3000e\x85f\x1cg ", "a b c d e f g"),
        ("a\u200bb\u2060c\u200ed\u202ae\u2066f\u00adg\x07h\x1bi\u061cj\ufdd0k", "abcdefghijk"),
        ("e\u0301 \u1100\u1161", "\xe9 \uac00"),
        ("a\u200cb\u200dc", "abc"),  # joiners mean nothing between Latin letters
        (
            "\u0645\u06cc\u200c\u062e\u200c",
            "\u0645\u06cc\u200c\u062e",
        ),  # Persian: between letters, not behind them
        ("\u0915\u094d\u200d\u0937 \u0d15\u0d4d\u200d", "\u0915\u094d\u200d\u0937 \u0d15\u0d4d\u200d"),
        ("\U0001f469\u200d\U0001f467", "\U0001f469\U0001f467"),
        ("\u0600\u0661", "\u0600\u0661"),  # a number sign that is seen
    ],
)
def test_clean(text: str, expected: str):
    assert clean(text) == expected


@pytest.mark.parametrize("text", ["a\0b", "\ud83d smile"])
def test_no_text(text: str):
    with pytest.raises(TextError, match=r"U\+(0000|D83D)"):
        clean(text)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_clean_texts_stay(text: str):
    cleaned = clean(text)
    assert clean(cleaned) == cleaned == unicodedata.normalize("NFC", cleaned)
    assert "  " not in cleaned and not set(cleaned) & set("\ufeff\u200b\n\t")
