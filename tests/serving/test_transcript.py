"""The formats of a transcript."""

import json

import pytest

from steermoe.serving.transcript import FORMATS, Segment, Transcript, Word, clock, render

SAID = Transcript(
    (
        Segment(0.25, 1.5, "anna buys two lamps", 0.9, (Word("anna", 0.25, 0.6),)),
        Segment(3661.0, 3662.0046, "größer & <b>", 0.5),
    ),
    3700.0,
)


def test_clock_carries_rounding_into_the_next_minute() -> None:
    assert clock(59.9996, ",") == "00:01:00,000"
    assert clock(3661.0405, ".") == "01:01:01.040"


def test_srt_is_numbered_and_vtt_has_its_head() -> None:
    assert render(SAID, "srt").startswith(
        "1\n00:00:00,250 --> 00:00:01,500\nanna buys two lamps\n\n2\n01:01:01,000"
    )
    assert render(SAID, "vtt").startswith("WEBVTT\n\n00:00:00.250 --> 00:00:01.500\nanna")


def test_tsv_has_milliseconds() -> None:
    assert render(SAID, "tsv").splitlines()[2] == "3661000\t3662005\tgrößer & <b>"


def test_json_reads_back() -> None:
    assert json.loads(render(SAID, "json")) == {"text": SAID.text}
    found = json.loads(render(SAID, "verbose_json"))
    assert found["segments"][0]["words"] == [{"word": "anna", "start": 0.25, "end": 0.6}]
    assert [s["id"] for s in found["segments"]] == [0, 1] and found["duration"] == 3700.0


@pytest.mark.parametrize("format", FORMATS)
def test_silence_has_no_words_in_any_format(format: str) -> None:
    heads = {"vtt": "WEBVTT", "tsv": "start\tend\ttext"}
    found = render(Transcript((), 2.0), format)
    assert found.strip() == heads.get(format, "") if "json" not in format else json.loads(found)["text"] == ""


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'doc'; there are: text, json, verbose_json, srt, vtt, tsv"):
        render(SAID, "doc")
