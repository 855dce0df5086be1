"""What was said and when, and the formats in which people want it.

Formats: text; json and verbose_json as in OpenAI's API; srt (SubRip); vtt (WebVTT); tsv (Whisper's:
milliseconds, tab, text).
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from steermoe.models.trust import UNSURE


@dataclass(frozen=True)
class Word:
    """A word with its beginning and end, seconds from the start of the recording."""

    word: str
    start: float
    end: float


@dataclass(frozen=True)
class Segment:
    """A stretch of speech with its text.

    `confidence` is the geometric mean of the probabilities of its tokens, in 0..1; None where it was not computed.
    """

    start: float
    end: float
    text: str
    confidence: float | None = None
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Transcript:
    """A recording's segments in order; `seconds` is how long the recording is, silence included."""

    segments: tuple[Segment, ...]
    seconds: float

    @property
    def text(self) -> str:
        """All that was said, single spaces between segments."""
        return " ".join(segment.text for segment in self.segments if segment.text)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against it, a line each."""
        if not self.segments:
            return ("no speech was understood",)
        low = [s.confidence for s in self.segments if s.confidence is not None and s.confidence < UNSURE]
        if not low:
            return ()
        return (
            f"low confidence ({min(low):.2f} to {max(low):.2f}) in {len(low)} of {len(self.segments)} segments: "
            "it may not be what was said",
        )


def render(transcript: Transcript, format: str) -> str:
    """A transcript as a file of a format has it, with a line break at its end.

    Raises:
        ValueError: the format is unknown.
    """
    if format not in FORMATS:
        raise ValueError(f"format: found {format!r}; there are: {', '.join(FORMATS)}")
    return FORMATS[format](transcript)


def clock(seconds: float, mark: str) -> str:
    """A time as subtitles write it, hh:mm:ss and milliseconds behind `mark`."""
    whole = round(seconds * 1000)
    hours, minutes = whole // 3_600_000, whole // 60_000 % 60
    return f"{hours:02d}:{minutes:02d}:{whole // 1000 % 60:02d}{mark}{whole % 1000:03d}"


def _text(transcript: Transcript) -> str:
    return transcript.text + "\n"


def _json(transcript: Transcript) -> str:
    return json.dumps({"text": transcript.text}, ensure_ascii=False) + "\n"


def _verbose(transcript: Transcript) -> str:
    content = {
        "task": "transcribe",
        "duration": transcript.seconds,
        "text": transcript.text,
        "segments": [{"id": number, **asdict(segment)} for number, segment in enumerate(transcript.segments)],
    }
    return json.dumps(content, ensure_ascii=False) + "\n"


def _srt(transcript: Transcript) -> str:
    return "".join(
        f"{number}\n{clock(s.start, ',')} --> {clock(s.end, ',')}\n{s.text}\n\n"
        for number, s in enumerate(transcript.segments, 1)
    )


def _vtt(transcript: Transcript) -> str:
    cues = (f"{clock(s.start, '.')} --> {clock(s.end, '.')}\n{s.text}\n\n" for s in transcript.segments)
    return "WEBVTT\n\n" + "".join(cues)


def _tsv(transcript: Transcript) -> str:
    lines = (f"{round(s.start * 1000)}\t{round(s.end * 1000)}\t{s.text}" for s in transcript.segments)
    return "\n".join(["start\tend\ttext", *lines]) + "\n"


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "text": _text,
    "json": _json,
    "verbose_json": _verbose,
    "srt": _srt,
    "vtt": _vtt,
    "tsv": _tsv,
}
