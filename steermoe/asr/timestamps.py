"""Estimate when each word of a segment was said, and join the texts of two overlapping segments.

Word times: the voiced time of the segment (what Silero VAD takes for speech) is divided among the words by their
letters. No model is asked, so it works for every encoder and LLM; `benchmarks/timestamps.py` measures the error.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np

from steermoe.asr.transcript import Word
from steermoe.audio.io import RATE
from steermoe.audio.vad import WINDOW, SpeechSegment

UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # scripts without spaces: a character is a word
WORDS = re.compile(rf"[{UNSPACED}]\s*|[^\s{UNSPACED}]+\s*")
PAUSE_LETTERS = 1  # the weight of the gap between two words


def words(text: str, segment: SpeechSegment) -> list[Word]:
    """Return the words of a text with estimated times; the space after a word belongs to it."""
    found = WORDS.findall(text.strip())
    letters = np.cumsum([0] + [len(word.rstrip()) + PAUSE_LETTERS for word in found])
    voiced = np.concatenate([[0], np.cumsum(segment.voiced)])
    if not voiced[-1]:  # nothing but a doubtful window: all of it counts
        voiced = np.arange(len(voiced))
    edges = segment.start + np.minimum(np.arange(len(voiced)) * WINDOW, len(segment.samples))
    spoken = np.flatnonzero(np.diff(voiced))
    # Each voiced window is a piece of the way; the silent ones between are skipped.
    way = np.concatenate([[voiced[i], voiced[i + 1]] for i in spoken]) + np.tile([1e-6, 0], len(spoken))
    times = np.concatenate([[edges[i], edges[i + 1]] for i in spoken])
    at = np.interp(letters / letters[-1] * voiced[-1], way, times) / RATE if found else []
    return [
        Word(word, round(float(start), 3), round(float(end), 3))
        for word, start, end in zip(found, at[:-1], at[1:], strict=True)
    ]


def joined(spoken: Sequence[Word]) -> str:
    """Return the text that `words` split."""
    return "".join(word.word for word in spoken).strip()


def merged(first: list[Word], second: list[Word], middle: float) -> tuple[list[Word], list[Word]]:
    """Return the words of two segments that share some audio, each without what the other has.

    They are joined at the longest run of words that both have near their common edge; words of the first after it,
    and of the second before it, are taken for words that the cut broke. Without such a run the words are divided by
    their times: before and after `middle`, in seconds.
    """
    slack = 2 * max((word.end - word.start for word in first + second), default=0.0)
    tail = [place for place, word in enumerate(first) if word.end > middle - 1 - slack]
    head = [place for place, word in enumerate(second) if word.start < middle + 1 + slack]
    one, other = [_plain(first[place]) for place in tail], [_plain(second[place]) for place in head]
    match = SequenceMatcher(None, one, other, autojunk=False).find_longest_match()
    if match.size:
        first, second = first[: tail[match.a] + match.size], second[head[match.b] + match.size :]
    else:
        first = [word for word in first if word.start + word.end < 2 * middle]
        second = [word for word in second if word.start + word.end >= 2 * middle]
    edge = first[-1].end if first else 0.0  # both are estimates: they may not go back in time
    return first, [Word(word.word, max(word.start, edge), max(word.end, edge)) for word in second]


def _plain(word: Word) -> str:
    return "".join(letter for letter in word.word.casefold() if letter.isalnum())
