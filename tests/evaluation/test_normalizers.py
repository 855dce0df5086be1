import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from steermoe.evaluation.normalizers import NORMALIZERS, folded, normalizer


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


@pytest.mark.parametrize("name", NORMALIZERS)
@given(st.text())
@example("''a'b''c'")
@example("\u0345\u0301A")
def test_a_second_pass_changes_nothing(name: str, text: str) -> None:
    once = normalizer(name)(text)
    assert normalizer(name)(once) == once


def test_none_keeps_every_character() -> None:
    assert normalizer("none")(" Hello,  World! ") == " Hello,  World! "


def test_unknown_name_lists_the_legal_ones() -> None:
    with pytest.raises(ValueError, match="unknown normalizer 'whisper'; known: none, folded"):
        normalizer("whisper")
