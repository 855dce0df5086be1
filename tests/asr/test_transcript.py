"""Transcripts: estimated word times, joined texts, and the formats."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steermoe.asr.timestamps import joined, merged, words
from steermoe.asr.transcript import FORMATS, Segment, Transcript, Word, clock, render, wrapped
from steermoe.audio.io import RATE
from steermoe.audio.vad import WINDOW, SpeechSegment

SAID = Transcript(
    (
        Segment(0.25, 1.5, "anna buys two lamps", 0.9, (Word("anna", 0.25, 0.6),)),
        Segment(3661.0, 3662.0046, "größer & <b>", 0.5),
    ),
    3700.0,
)


def cue(text: str, start: float = 0.0, end: float = 1.0) -> Segment:
    return Segment(start, end, text, None, ())


@pytest.mark.parametrize(
    "broken", ["a\n\nb", "a\r\n \r\nb", "a\u2028\u2028b", "a\x0b\x0c\x85b", "\na\n\n2\n b\n"]
)
def test_a_line_break_in_a_text_breaks_no_format(broken: str) -> None:
    said = Transcript((cue(broken), cue(""), cue("  \n"), cue("z\tz", 2, 3)), 3.0)
    for format, head in (("srt", 0), ("vtt", 1)):
        blocks = render(said, format).strip().split("\n\n")[head:]
        assert len(blocks) == 2 and all(all(line.strip() for line in block.split("\n")) for block in blocks)
    rows = render(said, "tsv").splitlines()
    assert len(rows) == 3 and all(row.count("\t") == 2 for row in rows) and rows[2].endswith("z z")
    assert render(said, "text").count("\n") == 1 and json.loads(render(said, "json"))["text"] == said.text


def test_marks_in_a_text_are_text() -> None:
    said = Transcript((cue("1 < 2 & <i>00:01 --> 00:02</i>"),), 1.0)
    assert "\n1 &lt; 2 &amp; &lt;i&gt;00:01 --&gt; 00:02&lt;/i&gt;\n" in render(said, "vtt")
    for format in ("vtt", "srt"):
        assert render(said, format).count("-->") == 1


@pytest.mark.parametrize("format", ["srt", "vtt", "tsv"])
def test_cues_have_a_length_and_do_not_overlap(format: str) -> None:
    times = [(0, 5), (4, 8), (8, 8), (8.0001, 8.0002), (7, 9), (59.9996, 60.0004), (359_999.9996, 360_001.5)]
    found = render(Transcript(tuple(cue(f"w{i}", *pair) for i, pair in enumerate(times)), 4e5), format)
    if format == "tsv":
        spans = [tuple(map(int, row.split("\t")[:2])) for row in found.splitlines()[1:]]
    else:
        spans = []
        for line in found.replace(",", ".").splitlines():
            if " --> " in line:
                parts = [part.split(":") for part in line.split(" --> ")]
                spans.append(
                    tuple(round((int(h) * 3600 + int(m) * 60 + float(s)) * 1000) for h, m, s in parts)
                )
        assert "100:00:00" in found and "00:01:00" in found
    assert len(spans) == len(times) and all(start < end for start, end in spans)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert spans[0] == (0, 4000) and spans[5] == (60_000, 60_001)


def timed(text: str, seconds: float) -> tuple[Word, ...]:
    found = text.split() if " " in text else list(text)
    return tuple(Word(word, i * seconds, (i + 1) * seconds) for i, word in enumerate(found))


@pytest.mark.parametrize(
    ("text", "width", "lines", "expected"),
    [
        ("anna buys two lamps", 9, None, ["anna buys\ntwo lamps"]),
        ("anna buys two lamps", 9, 1, ["anna buys", "two lamps"]),
        ("anna buys two lamps", 8, 2, ["anna\nbuys two", "lamps"]),
        ("安娜买了两盏灯。", 3, 1, ["安娜买", "了两盏", "灯。"]),
    ],
)
def test_cues_are_no_longer_than_allowed(
    text: str, width: int, lines: int | None, expected: list[str]
) -> None:
    segment = Segment(0.0, 0.5 * len(timed(text, 0.5)), text, 0.9, timed(text, 0.5))
    found = wrapped(Transcript((segment,), 9.0), width, lines).segments
    assert [each.text for each in found] == expected
    assert (found[0].start, found[-1].end) == (segment.start, segment.end)
    assert all(a.end == b.start for a, b in itertools.pairwise(found))
    assert tuple(word for each in found for word in each.words) == segment.words


def test_formats() -> None:
    assert clock(59.9996, ",") == "00:01:00,000" and clock(3661.0405, ".") == "01:01:01.040"
    srt = "1\n00:00:00,250 --> 00:00:01,500\nanna buys two lamps\n\n2\n01:01:01,000"
    assert render(SAID, "srt").startswith(srt)
    assert render(SAID, "vtt").startswith("WEBVTT\n\n00:00:00.250 --> 00:00:01.500\nanna")
    assert render(SAID, "tsv").splitlines()[2] == "3661000\t3662005\tgrößer & <b>"
    assert json.loads(render(SAID, "json")) == {"text": SAID.text}
    found = json.loads(render(SAID, "verbose_json"))
    assert found["segments"][0]["words"] == [{"word": "anna", "start": 0.25, "end": 0.6}]
    assert [s["id"] for s in found["segments"]] == [0, 1] and found["duration"] == 3700.0
    with pytest.raises(ValueError, match="'doc'; there are: text, json, verbose_json, srt, vtt, tsv"):
        render(SAID, "doc")


@pytest.mark.parametrize("format", FORMATS)
def test_silence_has_no_words_in_any_format(format: str) -> None:
    heads = {"vtt": "WEBVTT", "tsv": "start\tend\ttext"}
    found = render(Transcript((), 2.0), format)
    assert found.strip() == heads.get(format, "") if "json" not in format else json.loads(found)["text"] == ""


def speech(voiced: list[bool], start: int = 0) -> SpeechSegment:
    return SpeechSegment(start, np.zeros(len(voiced) * WINDOW, np.float32), np.array(voiced))


@given(st.text(), st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 10**6))
def test_times_are_in_order_and_within_the_speech(text: str, voiced: list[bool], start: int):
    here = speech(voiced, start)
    found = words(text, here)
    assert joined(found) == text.strip()
    times = [start / RATE - 1e-3]
    for word in found:
        assert times[-1] <= word.start + 1e-3 and word.start <= word.end
        times.append(word.end)
    assert times[-1] <= start / RATE + here.seconds + 1e-3


def test_silence_between_words_belongs_to_none():
    here = speech([True] * 10 + [False] * 20 + [True] * 10)
    first, second = words("lamps boats", here)
    window = WINDOW / RATE
    assert (first.start, second.end) == pytest.approx((0, 40 * window), abs=1e-3)
    assert first.end == pytest.approx(10 * window, abs=0.01)
    assert [word.word.strip() for word in (first, second)] == ["lamps", "boats"]


def test_scripts_without_spaces_have_a_word_a_character():
    found = words("今天 GPT 好", speech([True] * 20))
    assert [word.word.strip() for word in found] == ["今", "天", "GPT", "好"]


def spread(text: str, start: float, end: float) -> list[Word]:
    edges = np.linspace(start, end, len(text.split()) + 1)
    return [
        Word(w + " ", float(a), float(b)) for w, a, b in zip(text.split(), edges, edges[1:], strict=False)
    ]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("anna had red lamps", "red lamps and boats", "anna had red lamps and boats"),
        ("anna had red lamps", "ed lamps and boats", "anna had red lamps and boats"),
        ("Anna had Red, lamps.", "red lamps and boats", "Anna had Red, lamps. and boats"),
    ],
)
def test_overlapping_texts_are_joined_at_what_they_share(before: str, after: str, expected: str):
    first, second = merged(spread(before, 0, 4), spread(after, 3, 7), 3.5)
    assert joined([*first, *second]) == expected


def test_without_common_words_the_times_decide():
    first, second = merged(spread("a b c d", 0, 4), spread("e f g h", 3, 7), 3.5)
    assert joined(first) == "a b c" and joined(second) == "e f g h"
    assert second[0].start >= first[-1].end
    first, second = merged(spread("a b c d", 0, 4), spread("e f g h", 2, 6), 3.0)
    assert joined(first) == "a b c" and joined(second) == "f g h"
