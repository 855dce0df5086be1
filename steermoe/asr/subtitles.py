"""Subtitles of a length that can be read: lines of at most so many characters, cues of at most so many lines."""

from collections.abc import Iterator
from dataclasses import replace

from steermoe.asr.transcript import Segment, Transcript, Word, one_line


def shortened(transcript: Transcript, width: int, lines: int | None = None) -> Transcript:
    """The transcript with texts broken into lines, and segments cut where a cue would have too many.

    Lines end between words; a word that is longer than a line is a line. A cue begins with its first word and ends
    with its last.

    Args:
        transcript: with the times of words.
        width: characters of a line.
        lines: of a cue; None: any number.
    """
    found: list[Segment] = []
    for segment in transcript.segments:
        broken = list(_lines(segment, width))
        step = lines or len(broken) or 1
        for first in range(0, len(broken), step):
            cue = broken[first : first + step]
            words = tuple(word for _, line in cue for word in line)
            start = segment.start if first == 0 else words[0].start
            end = segment.end if first + step >= len(broken) else words[-1].end
            text = "\n".join(text for text, _ in cue)
            found.append(replace(segment, start=start, end=end, text=text, words=words))
    return replace(transcript, segments=tuple(found))


def _lines(segment: Segment, width: int) -> Iterator[tuple[str, list[Word]]]:
    """The text of each line, as it stands in the segment's, and its words."""
    text, words, line = one_line(segment.text), [], ""
    for word in segment.words:
        place = text.find(word.word)
        piece = text[: max(place, 0) + len(word.word)]  # with the space before it, where scripts have one
        text = text[len(piece) :]
        if words and len(line + piece) > width:
            yield line, words
            words, line, piece = [], "", piece.lstrip()
        words, line = [*words, word], line + piece
    if words:
        yield line + text, words
