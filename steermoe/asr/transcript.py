"""Transcripts with times, and the formats in which they are written.

Formats: text; json and verbose_json as in OpenAI's API; srt (SubRip); vtt (WebVTT); tsv (Whisper's: milliseconds,
tab, text).
"""

import html
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest

from steermoe.models.inference import UNSURE

BREAKS = re.compile("[\x00-\x20\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True)
class Word:
    """A word with its beginning and end, seconds from the start of the recording."""

    word: str
    start: float
    end: float


@dataclass(frozen=True)
class Segment:
    """A piece of speech with its text.

    `confidence` is the geometric mean of the probabilities of its tokens, in 0..1; None where it was not computed.
    `truncated`: the text was cut at the limit of tokens.
    """

    start: float
    end: float
    text: str
    confidence: float | None = None
    words: tuple[Word, ...] = ()
    truncated: bool = False


@dataclass(frozen=True)
class Transcript:
    """A recording's segments in order; `seconds` is the length of the recording, silence included."""

    segments: tuple[Segment, ...]
    seconds: float

    @property
    def text(self) -> str:
        """Return the whole text, single spaces between segments."""
        return " ".join(segment.text for segment in self.segments if segment.text)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return reasons to doubt it, a line each."""
        if not self.segments:
            return ("no speech was understood",)
        found, count = [], len(self.segments)
        low = [s.confidence for s in self.segments if s.confidence is not None and s.confidence < UNSURE]
        if low:
            found.append(
                f"low confidence ({min(low):.2f} to {max(low):.2f}) in {len(low)} of {count} segments: "
                "it may not be what was said"
            )
        if cut := sum(segment.truncated for segment in self.segments):
            found.append(
                f"the text of {cut} of {count} segments was cut at the limit of tokens (max_new_tokens)"
            )
        return tuple(found)


def render(transcript: Transcript, format: str) -> str:
    """Return a transcript in a file format, with a line break at its end.

    Raises:
        ValueError: the format is unknown.
    """
    if format not in FORMATS:
        raise ValueError(f"format: found {format!r}; there are: {', '.join(FORMATS)}")
    return FORMATS[format](transcript)


def clock(seconds: float, mark: str) -> str:
    """Return a time as in subtitles: hh:mm:ss, `mark`, milliseconds."""
    whole = round(seconds * 1000)
    hours, minutes = whole // 3_600_000, whole // 60_000 % 60
    return f"{hours:02d}:{minutes:02d}:{whole // 1000 % 60:02d}{mark}{whole % 1000:03d}"


def one_line(text: str) -> str:
    """Replace each run of line breaks, tabs and other control characters by a space."""
    return BREAKS.sub(" ", text).strip()


def wrapped(transcript: Transcript, width: int, lines: int | None = None) -> Transcript:
    """Break texts into lines of at most `width` characters, and split segments of more than `lines` lines.

    Lines end between words; a word that is longer than a line is a line. Splitting needs the times of words: a part
    begins with its first word and ends with its last.
    """
    found: list[Segment] = []
    for segment in transcript.segments:
        broken = list(_lines(segment, width))
        step = lines or len(broken) or 1
        for first in range(0, len(broken), step):
            words = tuple(word for _, line in broken[first : first + step] for word in line)
            start = segment.start if first == 0 else words[0].start
            end = segment.end if first + step >= len(broken) else words[-1].end
            text = "\n".join(text for text, _ in broken[first : first + step])
            found.append(replace(segment, start=start, end=end, text=text, words=words))
    return replace(transcript, segments=tuple(found))


def _lines(segment: Segment, width: int) -> Iterator[tuple[str, list[Word]]]:
    """Yield each line of a segment's text, and its words."""
    text, words, line = one_line(segment.text), [], ""
    for word in segment.words:
        piece = text[: max(text.find(word.word), 0) + len(word.word)]  # with the space before it, if any
        text = text[len(piece) :]
        if words and len(line + piece) > width:
            yield line, words
            words, line, piece = [], "", piece.lstrip()
        words, line = [*words, word], line + piece
    if words:
        yield line + text, words


def cues(transcript: Transcript) -> Iterator[tuple[int, int, str]]:
    """Yield start, end (milliseconds) and text of the segments that have one; none begins before another's end."""
    said = [segment for segment in transcript.segments if one_line(segment.text)]
    starts: list[int] = []
    for segment in said:
        starts.append(max(round(segment.start * 1000), starts[-1] + 1 if starts else 0))
    for segment, start, following in zip_longest(said, starts, starts[1:]):
        end = max(round(segment.end * 1000), start + 1)
        yield start, end if following is None else min(end, following), segment.text


def _text(transcript: Transcript) -> str:
    return one_line(transcript.text) + "\n"


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


def _cue(start: int, end: int, text: str, mark: str) -> str:
    lines = "\n".join(filter(None, map(one_line, text.split("\n"))))
    return f"{clock(start / 1000, mark)} --> {clock(end / 1000, mark)}\n{lines}\n\n"


def _srt(transcript: Transcript) -> str:  # which has no escapes
    found = ((start, end, text.replace("-->", "->")) for start, end, text in cues(transcript))
    return "".join(f"{number}\n{_cue(*cue, ',')}" for number, cue in enumerate(found, 1))


def _vtt(transcript: Transcript) -> str:
    found = ((start, end, html.escape(text, quote=False)) for start, end, text in cues(transcript))
    return "WEBVTT\n\n" + "".join(_cue(*cue, ".") for cue in found)


def _tsv(transcript: Transcript) -> str:
    lines = (f"{start}\t{end}\t{one_line(text)}" for start, end, text in cues(transcript))
    return "\n".join(["start\tend\ttext", *lines]) + "\n"


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "text": _text,
    "json": _json,
    "verbose_json": _verbose,
    "srt": _srt,
    "vtt": _vtt,
    "tsv": _tsv,
}
