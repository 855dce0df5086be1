"""What the demo page's events do, from what the page holds to what it shows; nothing is kept here.

A page's state, which each event reads when its turn comes, is the path of its recording, the strengths, texts by name
(ITSELF: with those strengths), and the words with their times.
"""

import base64
import html
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from steermoe.asr import transcript as transcript_table
from steermoe.asr.transcript import Word
from steermoe.audio.io import AudioError
from steermoe.demo.inference import Listener
from steermoe.demo.plots import steering_picture

ITSELF, AS_TRAINED = "", "as trained"  # keys of texts, beside the names of others
WARNINGS = "\0warnings"  # another: what speaks against the text, not a text
NOT_HEARD = "What is said comes here."
LISTENING = "Listening …"
NOT_USED = "This recording cannot be used."
NOT_SEEN = "Which expert steers which moment comes here."
Strengths = dict[int, list[float]]
Texts = dict[str, str]
Words = list[tuple[str, float, float]]


class Visit:
    """What the demo page's events do.

    Args:
        listener: what answers.
        name: of its model.
    """

    def __init__(self, listener: Listener, name: str) -> None:
        self.listener, self.name = listener, name

    def hear(self, path: str | None, strengths: Strengths) -> tuple[str, Texts, Words]:
        """The transcript of another recording."""
        if path is None:  # it was taken away meanwhile
            return hint(NOT_HEARD), {}, []
        found = self.listener.transcript(self._samples(path), strengths)
        texts = {ITSELF: found.text} | ({} if _changed(strengths) else {AS_TRAINED: found.text})
        texts |= {WARNINGS: "; ".join(found.warnings)}
        words = [(word.word, word.start, word.end) for each in found.segments for word in each.words]
        return self._cards(texts, strengths), texts, words

    def compare(self, path: str | None, strengths: Strengths, texts: Texts) -> Iterator[tuple[str, Texts]]:
        """What the others make of it, one after the other."""
        if ITSELF not in texts:  # another recording has come meanwhile
            return
        samples = self._samples(path)
        if AS_TRAINED not in texts:
            texts = texts | {AS_TRAINED: self.listener.transcript(samples).text}
            yield self._cards(texts, strengths), texts
        for name, text in self.listener.others_heard(samples):
            texts = texts | {name: text}
            yield self._cards(texts, strengths), texts

    def answer(self, path: str | None, strengths: Strengths, question: str) -> str:
        """Answers to a question."""
        found = self.listener.answers(self._samples(path), question, strengths)
        rows, warnings = [], []
        for name, answer in found:
            rows.append((name or self._title(strengths), answer.text, None))
            warnings += [hint(f"{name or self.name}: {warning}") for warning in answer.warnings]
        return transcript_table.table(rows) + "".join(warnings)

    def turn(
        self, path: str | None, strengths: Strengths, texts: Texts, words: Words, expert: int, *factors: float
    ) -> tuple[Strengths, str, Texts, Words]:
        """Other strengths, and what is heard with them."""
        return self._again(path, strengths | {expert: list(factors)}, texts, words)

    def reset(self, path: str | None, texts: Texts, words: Words) -> tuple[Strengths, str, Texts, Words]:
        """All strengths as trained."""
        return self._again(path, {}, texts, words)

    def _again(
        self, path: str | None, strengths: Strengths, texts: Texts, words: Words
    ) -> tuple[Strengths, str, Texts, Words]:
        if path is None:
            return strengths, hint(NOT_HEARD), texts, words
        _, found, words = self.hear(path, strengths)
        texts = texts | found
        return strengths, self._cards(texts, strengths), texts, words

    def factors(self, expert: int, strengths: Strengths) -> list[tuple[float, bool]]:
        """What the sliders show of an expert (or ALL): its factor at each place, and whether it is there at all."""
        factors = strengths.get(expert, [1.0] * len(self.listener.places))
        there = [expert < count for count in self.listener.experts]
        return list(zip(factors, there, strict=True))

    def draw(self, path: str | None, strengths: Strengths, texts: Texts, words: Words, place: int) -> str:
        """The picture."""
        if path is None or ITSELF not in texts:  # it was taken away, or cannot be used
            return hint(NOT_SEEN)
        seen = self.listener.see(self._samples(path), strengths)
        data = base64.b64encode(steering_picture(seen, [Word(*word) for word in words], place)).decode()
        about = (
            f"Spectrogram, strongest expert of every layer, and gates of layer {seen.places[place]}, over "
            f"{seen.seconds:.1f} seconds: {texts.get(ITSELF, '')}"
        )
        return f'<img alt="{html.escape(about)}" src="data:image/png;base64,{data}">'

    def _samples(self, path: str | None) -> np.ndarray:
        if path is None:
            raise AudioError("there is no recording yet; record, upload, or take an example")
        return self.listener.load(path)

    def _title(self, strengths: Strengths) -> str:
        return f"{self.name}, strengths as set" if _changed(strengths) else self.name

    def _cards(self, texts: Texts, strengths: Strengths) -> str:
        plain = texts.get(AS_TRAINED)
        cards = [(self._title(strengths), texts[ITSELF], plain)]
        for name, text in texts.items():
            if name not in (ITSELF, WARNINGS) and (name != AS_TRAINED or _changed(strengths)):
                cards.append((name, text, plain))
        warnings = texts.get(WARNINGS)
        return transcript_table.table(cards) + (hint(warnings) if warnings else "")


def _changed(strengths: Mapping[int, Sequence[float]]) -> bool:
    return any(factor != 1 for factors in strengths.values() for factor in factors)


def hint(text: str) -> str:
    """A remark as HTML."""
    return f'<p class="hint">{html.escape(text)}</p>'
