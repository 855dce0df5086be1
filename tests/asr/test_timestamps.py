"""Word times are in order and within the speech; overlapping texts become one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steermoe.asr.timestamps import joined, merged, words
from steermoe.asr.transcript import Word
from steermoe.audio.segmentation import WINDOW, Stretch
from steermoe.audio.waveform import RATE


def stretch(voiced: list[bool], start: int = 0) -> Stretch:
    return Stretch(start, np.zeros(len(voiced) * WINDOW, np.float32), np.array(voiced))


@given(st.text(), st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 10**6))
def test_times_are_in_order_and_within_the_stretch(text: str, voiced: list[bool], start: int):
    here = stretch(voiced, start)
    found = words(text, here)
    assert joined(found) == text.strip()
    times = [start / RATE - 1e-3]
    for word in found:
        assert times[-1] <= word.start + 1e-3 and word.start <= word.end
        times.append(word.end)
    assert times[-1] <= start / RATE + here.seconds + 1e-3


def test_silence_between_words_belongs_to_none():
    here = stretch([True] * 10 + [False] * 20 + [True] * 10)
    first, second = words("lamps boats", here)
    window = WINDOW / RATE
    assert (first.start, second.end) == pytest.approx((0, 40 * window), abs=1e-3)
    assert first.end == pytest.approx(10 * window, abs=0.01)
    assert [word.word.strip() for word in (first, second)] == ["lamps", "boats"]


def test_scripts_without_spaces_have_a_word_a_character():
    found = words("今天 GPT 好", stretch([True] * 20))
    assert [word.word.strip() for word in found] == ["今", "天", "GPT", "好"]


def spread(text: str, start: float, end: float) -> list[Word]:
    edges = np.linspace(start, end, len(text.split()) + 1)
    return [
        Word(w + " ", float(a), float(b)) for w, a, b in zip(text.split(), edges, edges[1:], strict=False)
    ]


@pytest.mark.parametrize(
    ("before", "behind", "expected"),
    [
        ("anna had red lamps", "red lamps and boats", "anna had red lamps and boats"),
        ("anna had red la", "had red lamps and boats", "anna had red lamps and boats"),
        ("anna had red lamps", "ed lamps and boats", "anna had red lamps and boats"),
        ("Anna had Red, lamps.", "red lamps and boats", "Anna had Red, lamps. and boats"),
    ],
)
def test_overlapping_texts_are_joined_at_what_they_share(before: str, behind: str, expected: str):
    first, second = merged(spread(before, 0, 4), spread(behind, 3, 7), 3.5)
    assert joined([*first, *second]) == expected


def test_without_common_words_the_times_decide():
    first, second = merged(spread("a b c d", 0, 4), spread("e f g h", 3, 7), 3.5)
    assert joined(first) == "a b c" and joined(second) == "e f g h"
    assert second[0].start >= first[-1].end
    first, second = merged(spread("a b c d", 0, 4), spread("e f g h", 2, 6), 3.0)
    assert joined(first) == "a b c" and joined(second) == "f g h"


def test_nothing_to_join():
    assert merged([], spread("a b", 1, 2), 0.5) == ([], spread("a b", 1, 2))
    assert words("", stretch([True])) == []
