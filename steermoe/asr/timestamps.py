"""When each word of a stretch of speech was said, and how the texts of two overlapping stretches become one.

Word times are an estimate: the voiced time of the stretch (what Silero VAD takes for speech) is shared out among the
words by their letters. No model is asked, so it works for every encoder and LLM; `benchmarks/timestamps.py` measures
how far off it is.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np

from steermoe.asr.transcript import Word
from steermoe.audio.segmentation import WINDOW, Stretch
from steermoe.audio.waveform import RATE

UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # scripts without spaces: a character is a word
WORDS = re.compile(rf"[{UNSPACED}]\s*|[^\s{UNSPACED}]+\s*")
PAUSE_LETTERS = 1  # that the gap between two words counts for


def words(text: str, stretch: Stretch) -> list[Word]:
    """The words of a text with estimated times; the space behind a word belongs to it."""
    found = WORDS.findall(text.strip())
    letters = np.cumsum([0] + [len(word.rstrip()) + PAUSE_LETTERS for word in found])
    voiced = np.concatenate([[0], np.cumsum(stretch.voiced)])
    if not voiced[-1]:  # nothing but a doubtful window: all of it counts
        voiced = np.arange(len(voiced))
    edges = stretch.start + np.minimum(np.arange(len(voiced)) * WINDOW, len(stretch.samples))
    spoken = np.flatnonzero(np.diff(voiced))
    # Each voiced window is a piece of the way; the silent ones between are stepped over.
    way = np.concatenate([[voiced[i], voiced[i + 1]] for i in spoken]) + np.tile([1e-6, 0], len(spoken))
    times = np.concatenate([[edges[i], edges[i + 1]] for i in spoken])
    at = np.interp(letters / letters[-1] * voiced[-1], way, times) / RATE if found else []
    return [
        Word(word, round(float(start), 3), round(float(end), 3))
        for word, start, end in zip(found, at[:-1], at[1:], strict=True)
    ]


def joined(spoken: Sequence[Word]) -> str:
    """The text that `words` took apart."""
    return "".join(word.word for word in spoken).strip()


def merged(before: list[Word], behind: list[Word], middle: float) -> tuple[list[Word], list[Word]]:
    """Two stretches that share some audio, each without what the other has.

    They are joined at the longest run of words that both have near their common edge; what the first has
    behind it, and the second before it, is taken for words that the cut broke. Without such a run the words are
    shared out by their times: before and after `middle`, in seconds.
    """
    slack = 2 * max((word.end - word.start for word in before + behind), default=0.0)
    tail = [place for place, word in enumerate(before) if word.end > middle - 1 - slack]
    head = [place for place, word in enumerate(behind) if word.start < middle + 1 + slack]
    first = [_plain(before[place]) for place in tail]
    second = [_plain(behind[place]) for place in head]
    match = SequenceMatcher(None, first, second, autojunk=False).find_longest_match()
    if match.size:
        before, behind = before[: tail[match.a] + match.size], behind[head[match.b] + match.size :]
    else:
        before = [word for word in before if word.start + word.end < 2 * middle]
        behind = [word for word in behind if word.start + word.end >= 2 * middle]
    edge = before[-1].end if before else 0.0  # both are estimates: they may not go back in time
    return before, [Word(word.word, max(word.start, edge), max(word.end, edge)) for word in behind]


def _plain(word: Word) -> str:
    return "".join(letter for letter in word.word.casefold() if letter.isalnum())
